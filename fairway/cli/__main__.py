"""`python -m fairway.cli`: the command of child processes."""

from fairway.cli.main import main

# Worker processes import this module, too.
if __name__ == "__main__":
    main()
