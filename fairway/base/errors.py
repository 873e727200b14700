"""Errors that the command line prints as one sentence instead of a traceback."""


class UserError(ValueError):
    """Bad input, in one sentence: what is wrong, the value, the bound, the remedy.

    The command line prints the sentence without a traceback and ends with exit code 2.
    """


def shown(value: object) -> str:
    """Return a value for a sentence, cut after 60 characters, since foreign values can be long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


class LedgerError(ValueError):
    """The score protocol was broken, or the account is inconsistent: there is no score."""


class InterruptedRun(Exception):  # noqa: N818 - it reports a wish, not an error
    """A signal stopped the run; its state is saved, and `--resume` continues it."""
