"""`python -m fairway`, and the command `fairway`.

Nothing but this is imported before Ctrl-C is handled; the imports of the command line take a while.
"""

import os
import signal
from types import FrameType


def main() -> None:
    """Run the command line; a Ctrl-C before it begins ends with the same sentence as later."""
    # A process that was started to ignore Ctrl-C still does.
    early = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if early:
        signal.signal(signal.SIGINT, _leave)
    from fairway.cli.main import main as run

    if early:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        run()
    except KeyboardInterrupt:
        _leave(signal.SIGINT, None)


def _leave(number: int, frame: FrameType | None) -> None:
    """End at once: an exception inside an import could be printed or hidden by a library."""
    os.write(2, b"fairway: interrupted\n")
    os._exit(128 + number)


# Worker processes import this module, too.
if __name__ == "__main__":
    main()
