"""Ends the work for a request when its client leaves or the server ends."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from starlette.requests import Request

from fairway.score.ledger import Witness
from fairway.score.windows import Event


class GoneError(Exception):
    """Nobody waits for the result any more."""


class Watching(Witness):
    """Watches whether a client and the server are still there, and ends a score if not.

    `ending` is set when the server ends.
    """

    def __init__(self, ending: threading.Event) -> None:
        self._ending, self.left = ending, False

    @property
    def gone(self) -> bool:
        """Whether nobody waits for the result any more."""
        return self.left or self._ending.is_set()

    def read(self, event: Event) -> None:
        """End a score before its next event if nobody waits for it."""
        if self.gone:
            raise GoneError

    @asynccontextmanager
    async def over(self, request: Request) -> AsyncIterator[None]:
        """Watch the client of a request whose body has been read, while this context lasts."""
        task = asyncio.create_task(self._watch(request))
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _watch(self, request: Request) -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self.left = True
