from pathlib import Path

import pytest

from fairway.config.settings import RuntimeConfig
from fairway.prove.coding import Session, open_session
from fairway.prove.machine import coding_plan

RUNTIME = RuntimeConfig(threads=1, dtype="float32", matmul="highest")


@pytest.fixture(scope="session")
def artifact(smoke_run: Path) -> Path:
    return smoke_run / "artifact.fwy"


@pytest.fixture(scope="session")
def session(artifact: Path) -> Session:
    """Return the smoke run's artifact, frozen, to code with any number of times."""
    return open_session(artifact, None, coding_plan(RUNTIME))
