"""A notice before the first loop is compiled, since a new installation waits for it."""

from typing import Any

from numba.core import event

from fairway.base.progress import notice

TEXT = "compiling loops for this processor; this happens once and takes 10 to 30 seconds"


class _First(event.Listener):  # type: ignore[misc]
    """Announces the first compilation; loading compiled code from disk does not count."""

    told = False

    def on_start(self, event: Any) -> None:
        """Announce, once in a process, that a loop of Fairway is compiled."""
        if not self.told and event.data["dispatcher"].py_func.__module__.startswith("fairway."):
            _First.told = True
            notice(TEXT)

    def on_end(self, event: Any) -> None:
        """Do nothing."""


def tell_of_compiling() -> None:
    """Let this process announce its first compilation of a loop; a second call has no effect."""
    if not _listening:
        _listening.append(_First())
        event.register("numba:compile", _listening[0])


_listening: list[_First] = []
