"""The page and the endpoint as one application, and its server."""

import logging
import socket
from collections.abc import Sequence
from types import FrameType

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from fairway.base.errors import UserError
from fairway.serve.completions import completions
from fairway.serve.costs import costs, documents
from fairway.serve.errors import HANDLERS, error_response
from fairway.serve.models import Desk
from fairway.serve.page import POLICY, page

LOOPBACK = "127.0.0.1"
# The names of this machine for itself.
_OWN_NAMES = ("localhost", "127.0.0.1", "[::1]")
_ANY_HOST = ("0.0.0.0", "::")
# The seconds that the step or window in progress may take when the server ends.
_LAST_S = 10


class Guard:
    """Refuses requests for another host. A foreign site may point its name to this machine in a
    browser.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http" and self._hosts:
            host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
            if _without_port(host) not in self._hosts:
                await error_response(
                    f"this server does not answer for the host '{host[:100]}'; it answers for "
                    f"{', '.join(self._hosts)}, and for the one that --host names",
                    400,
                )(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _without_port(host: str) -> str:
    """Return the name of a host in the form for comparison: lower case, without its port."""
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    return name.lower().removesuffix(".")


async def home(request: Request) -> Response:
    """Answer GET /: the page."""
    return HTMLResponse(page(request.app.state.desk), headers={"Content-Security-Policy": POLICY})


async def models(request: Request) -> Response:
    """Answer GET /v1/models: the names of all models."""
    desk: Desk = request.app.state.desk
    return JSONResponse({"object": "list", "data": [_model(name) for name in desk.served]})


async def model(request: Request) -> Response:
    """Answer GET /v1/models/NAME."""
    desk: Desk = request.app.state.desk
    return JSONResponse(_model(desk.find(request.path_params["name"]).name))


def _model(name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "fairway"}


def application(desk: Desk, hosts: Sequence[str] = _OWN_NAMES) -> Starlette:
    """Return the application; it answers only for these hosts, or for any if the list is empty."""
    routes = [
        Route("/", home),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/costs", costs, methods=["POST"]),
        Route("/documents", documents),
    ]
    app = Starlette(routes=routes, exception_handlers=dict(HANDLERS))
    app.add_middleware(Guard, hosts=hosts)
    app.state.desk = desk
    return app


def listening(host: str, port: int) -> socket.socket:
    """Return a socket bound to an address; UserError if that fails. Port 0 is any free port."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.listen(64)
    except (OSError, ValueError) as error:
        # A name that cannot be encoded raises ValueError.
        reason = error.strerror if isinstance(error, OSError) else "this is not the name of a host"
        raise UserError(
            f"cannot listen at {host[:100] or repr(host)} port {port}: {reason}; choose another "
            "with --port or --host"
        ) from None
    return bound


def is_loopback(bound: socket.socket) -> bool:
    """Return whether only this machine can reach a socket."""
    address = str(bound.getsockname()[0])
    return address == "::1" or address.startswith("127.")


def address_of(bound: socket.socket, host: str) -> str:
    """Return the address of the page."""
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{bound.getsockname()[1]}/"


class Server(uvicorn.Server):
    """A server whose signals also end the work in progress."""

    def __init__(self, config: uvicorn.Config, desk: Desk) -> None:
        super().__init__(config)
        self._desk = desk

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End the work of the models, and then the server."""
        self._desk.ending.set()
        super().handle_exit(sig, frame)
        # A second signal cuts off all clients; that is not an error to log.
        if self.force_exit:
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)


def server(desk: Desk, host: str) -> Server:
    """Return the server of a desk; it runs until it is interrupted."""
    name = f"[{host}]" if ":" in host else host
    hosts = [] if host in _ANY_HOST else list(dict.fromkeys([*_OWN_NAMES, _without_port(name)]))
    config = uvicorn.Config(
        application(desk, hosts),
        **{"http": "h11", "ws": "none", "lifespan": "off", "loop": "asyncio"},  # type: ignore[arg-type]
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_LAST_S,
    )
    return Server(config, desk)
