"""The server itself: a client that leaves, and the command that starts and ends it."""

import asyncio
import http.client
import json
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import AsyncGenerator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

from fairway.base.errors import UserError
from fairway.cli.main import app
from fairway.serve.app import application, is_loopback, listening, server
from fairway.serve.completions import _ahead
from fairway.serve.models import Desk, open_desk
from fairway.tuning import tune

from .conftest import RUNTIME

SETTINGS = ["--set", "runtime.threads=1", "--set", "runtime.dtype=float32"]


@pytest.fixture(scope="module")
def port(desk: Desk) -> Iterator[int]:
    """Return the port of a real server in a thread."""
    with listening("127.0.0.1", 0) as bound:
        running = server(desk, "127.0.0.1")
        thread = threading.Thread(target=lambda: asyncio.run(running.serve([bound])))
        thread.start()
        yield bound.getsockname()[1]
        running.should_exit = True
        thread.join()


def opened(
    port: int, **fields: object
) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse | None]:
    line = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    line.request(
        "POST", "/v1/completions", json.dumps(fields), {"Content-Type": "application/json"}
    )
    return line, line.getresponse() if fields.get("stream") else None


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_generation(
    port: int, desk: Desk, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    language, steps = desk.first.language, []
    write = language.writing

    def counted(*how: object) -> Iterator[None]:
        for step in write(*how):  # type: ignore[arg-type]
            steps.append(step)
            yield step

    monkeypatch.setattr(language, "writing", counted)
    most = 4000
    line, answer = opened(port, prompt="The", max_tokens=most, seed=1, stream=stream)
    while not steps:
        time.sleep(0.01)
    if answer:
        assert answer.readline().startswith(b"data: ")
        answer.close()
    line.close()
    # Whoever comes next has the model to herself.
    body = json.dumps({"prompt": "The", "max_tokens": 1}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as next_one:
        assert json.loads(next_one.read())["choices"][0]["text"] is not None
    assert len(steps) < most / 2


def test_a_client_that_leaves_in_its_body_is_no_error(desk: Desk) -> None:
    parts = iter([{"type": "http.request", "body": b"{", "more_body": True}])
    sent: list[Any] = []

    async def receive() -> Any:
        return next(parts, {"type": "http.disconnect"})

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers}
    asyncio.run(application(desk)({**scope, "query_string": b""}, receive, send))
    assert sent[0]["status"] == 499


def test_a_slow_reader_keeps_no_model_from_others() -> None:
    async def read() -> list[int]:
        written, closed = [], []

        async def source() -> AsyncGenerator[str, None]:
            try:
                for number in range(1000):
                    written.append(number)
                    yield str(number)
                    await asyncio.sleep(0)
            finally:
                closed.append(True)

        parts = _ahead(source())
        assert await anext(parts) == "0"
        while not closed:
            await asyncio.sleep(0)
        assert len(written) == 1000 and [part async for part in parts] == [*map(str, written[1:])]
        left = _ahead(source())
        assert await anext(left) == "0"
        await left.aclose()
        return [len(written), len(closed)]

    count, closed = asyncio.run(read())
    assert count < 1990 and closed == 2


def test_weights_that_are_gone_or_others_are_told(smoke_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(smoke_run, run)
    desk = open_desk([run], None, RUNTIME)
    before = desk.first.fingerprint
    (run / "artifact.fwy").write_bytes(b"another")
    assert desk.first.fingerprint == before and before.startswith("fairway-")
    (run / "weights.safetensors").unlink()
    with pytest.raises(UserError, match=r"the weights of 'run:raw' are gone: .* does not exist; a"):
        desk.find("run:raw").language.score("a")


def test_a_name_of_either_case_is_served(desk: Desk) -> None:
    with TestClient(server(desk, "MyHost.").config.app) as client:  # type: ignore[arg-type]
        for host in ("myhost", "MYHOST:8000", "localhost"):
            assert client.get("/v1/models", headers={"host": host}).status_code == 200


def test_addresses(smoke_run: Path) -> None:
    with listening("127.0.0.1", 0) as bound:
        assert is_loopback(bound)
        number = bound.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen at 127.0.0.1 port {number}"):
            listening("127.0.0.1", number)
    with listening("0.0.0.0", 0) as bound:
        assert not is_loopback(bound)
    with pytest.raises(UserError, match="cannot listen at no.such.host"):
        listening("no.such.host", 0)
    for host in ("a" * 300, "\u00fc" * 70, "a\0b"):
        with pytest.raises(UserError, match="cannot listen at .* choose another with --port or"):
            listening(host, 0)


def test_runs_and_artifacts_have_names(smoke_run: Path, tmp_path: Path) -> None:
    (tmp_path / "smoke").mkdir()
    for name in ("smoke/artifact.fwy", "other.fwy"):
        shutil.copy(smoke_run / "artifact.fwy", tmp_path / name)
    with pytest.raises(UserError, match="named twice"):
        open_desk([smoke_run, smoke_run / "artifact.fwy"], None, RUNTIME)
    desk = open_desk([smoke_run, tmp_path / "smoke"], None, RUNTIME)
    assert list(desk.served) == ["smoke", "smoke-2", "smoke:raw", "smoke:average"]
    desk = open_desk([tmp_path / "other.fwy"], None, RUNTIME)
    assert list(desk.served) == ["other"]
    with pytest.raises(UserError, match="an artifact has no validation text"):
        desk.documents()


@pytest.mark.long
def test_an_adapter_is_a_model_of_its_own(smoke_run: Path, tmp_path: Path) -> None:
    file = tmp_path / "moon.safetensors"
    text = "the moon rises over the hill; count and wait.\n" * 10
    config = replace(tune.TUNING, lora_rank=2, lora_lr=0.02)
    tune.tune(smoke_run, [text] * 8, file, config, epochs=1, runtime=RUNTIME)
    desk = open_desk([smoke_run], None, RUNTIME, file)
    assert list(desk.served)[:2] == ["smoke", "smoke:moon"]
    alone, tuned = (desk.find(name) for name in ("smoke", "smoke:moon"))
    assert tuned.language.bits_per_byte(text) < 0.95 * alone.language.bits_per_byte(text)
    assert alone.fingerprint != tuned.fingerprint and tuned.described == "with adapter"
    assert desk.documents()
    # Stages and records keep their names.
    for name in ("raw", "average", "ttt"):
        desk = open_desk([smoke_run], None, RUNTIME, file.replace(tmp_path / f"{name}.safetensors"))
        file = tmp_path / f"{name}.safetensors"
        assert desk.find(f"smoke:adapter-{name}").described == "with adapter"
        assert {"smoke:raw", "smoke:average"} <= set(desk.served) and "smoke:ttt" in desk.records


def test_mistakes_of_the_command_are_sentences(
    smoke_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*words: str) -> str:
        return str(CliRunner().invoke(app, ["serve", *words]).exception)

    assert "does not exist" in refused(str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    assert "artifact" in refused(str(tmp_path / "empty"))
    assert "70000 is out of bounds" in refused(str(smoke_run), "--port", "70000")
    (tmp_path / "bad.fwy").write_bytes(b"no artifact at all" * 9)
    assert "bad.fwy" in refused(str(tmp_path / "bad.fwy"), "--port", "0", *SETTINGS)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'fairway[serve]'" in refused(str(smoke_run))


@pytest.mark.long
def test_the_command_says_who_can_reach_it_and_ends_quietly(
    smoke_run: Path, forked: list[str]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [*forked, "serve", str(smoke_run), "--port", str(port), *SETTINGS]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        assert run.stdout and run.stderr
        told = [run.stdout.readline() for _ in range(3)]
        address = f"http://127.0.0.1:{port}/"
        assert told[0] == f"page {address} (only this machine can reach it)\n"
        assert told[1].startswith(f"endpoint {address}v1/completions, models: smoke, smoke:raw")
        with urllib.request.urlopen(f"{address}v1/models", timeout=60) as answer:
            assert json.loads(answer.read())["data"][0]["id"] == "smoke"
        line, writing = opened(port, prompt="The", max_tokens=4000, stream=True)
        assert writing and writing.readline().startswith(b"data: ")
        run.send_signal(signal.SIGINT)
        assert run.wait(30) == 0 and run.stderr.read() == ""
        assert not writing.read().endswith(b"[DONE]\n\n"), "what was cut off does not look whole"
        line.close()
