"""Errors that the command line prints as one sentence instead of a traceback."""


class UserError(ValueError):
    """Bad input, told in one sentence: what is wrong, the value, the bound, the remedy.

    The command line prints it without a traceback and leaves with exit code 2.
    """


def shown(value: object) -> str:
    """Return a value as a sentence shows it: cut after 60 characters, since strangers' are long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


class LedgerError(ValueError):
    """The score protocol was broken, or the account does not add up: no score is given."""


class InterruptedRun(Exception):  # noqa: N818 - it reports a wish, not an error
    """A signal asked the run to stop; its state is saved and `--resume` continues."""
