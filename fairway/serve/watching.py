"""A client that goes away, or a server that ends, ends the work that was done for a request."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from starlette.requests import Request

from fairway.score.ledger import Witness
from fairway.score.windows import Event

# A client that went away hears nothing more; this is what servers write down then.
CLIENT_GONE = 499


class GoneError(Exception):
    """Nobody waits for the rest."""


class Watching(Witness):
    """Looks whether a client and the server are still there; else it ends a score.

    `ending` is set once the server ends.
    """

    def __init__(self, ending: threading.Event) -> None:
        self._ending, self.left = ending, False

    @property
    def gone(self) -> bool:
        """Whether nobody waits for the rest any more."""
        return self.left or self._ending.is_set()

    def read(self, event: Event) -> None:
        """End a score before its next event if nobody waits for it."""
        if self.gone:
            raise GoneError

    @asynccontextmanager
    async def over(self, request: Request) -> AsyncIterator[None]:
        """Look after the client of a request whose body has been read, while this lasts."""
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
