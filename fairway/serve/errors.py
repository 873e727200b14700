"""Errors of a request, as JSON in OpenAI's form."""

from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from fairway.base.errors import UserError
from fairway.base.terminal import sentence


class RequestError(Exception):
    """A request that is refused: why, by which status, and for which field."""

    def __init__(
        self, message: str, status: int = 400, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


def told(
    message: str, status: int, param: str | None = None, code: str | None = None
) -> JSONResponse:
    """Return the answer to a request that is refused."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    error: dict[str, Any] = {"message": sentence(message), "type": kind}
    return JSONResponse({"error": {**error, "param": param, "code": code}}, status)


async def refused(request: Request, error: Exception) -> Response:
    """Answer a request that this package refuses."""
    if isinstance(error, RequestError):
        return told(str(error), error.status, error.param, error.code)
    return told(str(error), 400)


async def unknown(request: Request, error: Exception) -> Response:
    """Answer a request for a path that is not there, or by another method than the path has."""
    assert isinstance(error, HTTPException)
    words = {404: f"there is nothing at {request.url.path}", 405: "this path takes another method"}
    answer = told(words.get(error.status_code, error.detail), error.status_code)
    answer.headers.update(error.headers or {})
    return answer


HANDLERS = {RequestError: refused, UserError: refused, HTTPException: unknown}
