"""The verb that serves models: serve."""

import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from fairway.base.errors import UserError
from fairway.cli.base import (
    AdapterFile,
    Json,
    RunOrArtifact,
    Set,
    TokenizerFile,
    emit,
    require_inputs,
    runtime_of,
)
from fairway.cli.options import path_argument, whole_option

_NEEDS = ("starlette", "uvicorn", "jinja2")


def serve(
    path: RunOrArtifact,
    beside: Annotated[
        Path | None,
        path_argument("RUN2|ARTIFACT2", "Another one, which the page shows beside the first."),
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            "--host", help="Address to listen at. The usual one is for this machine alone."
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, whole_option("--port", lo=0, hi=65535, help="Port to listen at; 0 takes a free one.")
    ] = 8000,
    tokenizer: TokenizerFile = None,
    adapter: AdapterFile = None,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Show a model on a local page, and answer programs as OpenAI's completions do."""
    paths = [path, *([beside] if beside else [])]
    for one in paths:
        require_inputs(one, tokenizer, adapter=adapter)
    _require_packages()
    from fairway.serve.app import address_of, is_loopback, listening, server
    from fairway.serve.models import open_desk

    with listening(host, port) as bound:
        desk = open_desk(paths, tokenizer, runtime_of(overrides), adapter)
        address = address_of(bound, host)
        reach = (
            "only this machine can reach it"
            if is_loopback(bound)
            else "every machine that reaches this one can use it: there is no password"
        )
        emit(
            as_json,
            {"address": address, "models": list(desk.served), "loopback": is_loopback(bound)},
            f"page {address} ({reach})",
            f"endpoint {address}v1/completions, models: {', '.join(desk.served)}",
            "Ctrl-C ends it",
        )
        sys.stdout.flush()
        # Ctrl-C is the normal end of a server.
        with suppress(KeyboardInterrupt):
            server(desk, host).run(sockets=[bound])


def _require_packages() -> None:
    from importlib.util import find_spec

    if missing := [name for name in _NEEDS if find_spec(name) is None]:
        raise UserError(
            f"serve needs {' and '.join(missing)}; install them: pip install 'fairway[serve]'"
        )
