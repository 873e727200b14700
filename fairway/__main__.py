"""`python -m fairway`: the same as the command `fairway`."""

from fairway.cli.main import main

# Worker processes import this module, too.
if __name__ == "__main__":
    main()
