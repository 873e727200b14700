"""Errors of a request, as JSON in OpenAI's form."""

from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from fairway.base.errors import UserError
from fairway.base.terminal import sentence

# The usual status in logs for a client that left; the client itself never receives it.
CLIENT_GONE = 499
STOPPED = "the server has been stopped; ask again when it runs", 503


class RequestError(Exception):
    """A refused request: the reason, the status, and the field."""

    def __init__(
        self, message: str, status: int = 400, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


def error_response(
    message: str, status: int, param: str | None = None, code: str | None = None
) -> JSONResponse:
    """Return the answer to a refused request."""
    return JSONResponse(error_body(message, status, param, code), status)


def error_body(
    message: str, status: int, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """Return an error as the body of an answer, or as an event of a stream."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": sentence(message), "type": kind, "param": param, "code": code}}


async def refused(request: Request, error: Exception) -> Response:
    """Answer a request that this package refuses."""
    if isinstance(error, RequestError):
        return error_response(str(error), error.status, error.param, error.code)
    return error_response(str(error), 400)


async def unknown(request: Request, error: Exception) -> Response:
    """Answer a request for an unknown path, or with a wrong method."""
    assert isinstance(error, HTTPException)
    takes = (error.headers or {}).get("Allow", "none")
    path = request.url.path[:100]
    hint = "; this model continues texts: use /v1/completions" if "/chat/" in path else ""
    words = {
        404: f"there is nothing at {path}{hint}",
        405: f"this path has another method: {takes}",
    }
    answer = error_response(words.get(error.status_code, error.detail), error.status_code)
    answer.headers.update(error.headers or {})
    return answer


def gone(ending: bool) -> Response:
    """Return the answer to a request whose work was given up: its client left, or we end."""
    if ending:
        return error_response(*STOPPED)
    return Response(status_code=CLIENT_GONE)


async def left(request: Request, error: Exception) -> Response:
    """End a request whose client left before its body was complete."""
    return Response(status_code=CLIENT_GONE)


HANDLERS = {
    RequestError: refused,
    UserError: refused,
    HTTPException: unknown,
    ClientDisconnect: left,
}
