"""`python -m fairway`, which is `fairway`."""

from fairway.cli import main

# Processes that share out work import this module, too.
if __name__ == "__main__":
    main()
