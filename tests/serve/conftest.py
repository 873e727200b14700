from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="needs the extra `serve`")

from starlette.testclient import TestClient

from fairway.config.settings import RuntimeConfig
from fairway.serve.app import application
from fairway.serve.models import Desk, open_desk

RUNTIME = RuntimeConfig(threads=1, dtype="float32", matmul="highest")


@pytest.fixture(scope="session")
def desk(smoke_run: Path) -> Desk:
    """Return the desk of the smoke run: its artifact, last and averaged weights."""
    return open_desk([smoke_run], None, RUNTIME)


@pytest.fixture(scope="module")
def client(desk: Desk) -> Iterator[TestClient]:
    with TestClient(application(desk), base_url="http://127.0.0.1") as client:
        yield client
