"""`python -m fairway.cli`, as child processes are started."""

from fairway.cli.main import main

# Processes that share out work import this module, too.
if __name__ == "__main__":
    main()
