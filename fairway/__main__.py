"""`python -m fairway`, which is `fairway`."""

from fairway.cli.main import main

# Processes that share out work import this module, too.
if __name__ == "__main__":
    main()
