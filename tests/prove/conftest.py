from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from small_run import small_run

from fairway.config.settings import Config, RuntimeConfig
from fairway.prove.coding import Session, open_session
from fairway.prove.machine import coding_plan

RUNTIME = RuntimeConfig(threads=1, dtype="float32", matmul="highest")


@pytest.fixture(scope="session", autouse=True)
def _fingerprints_once() -> Iterator[None]:
    """Let this process walk its made-up tokens once for an artifact and a number of rows.

    Every coding and decoding does so, for a machine that computes other numbers. Processes that
    tests start compare their own with those of this one.
    """
    real, known = Session.fingerprint, {}

    def fingerprint(session: Session, rows: int) -> str:
        key: Any = (session.artifact, session.machine, session.language.score_config.seq_len, rows)
        if key not in known:
            known[key] = real(session, rows)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "fingerprint", fingerprint)
        yield


@pytest.fixture(scope="session")
def artifact(tiny: Callable[..., Config]) -> Path:
    return small_run(tiny) / "artifact.fwy"


@pytest.fixture(scope="session")
def session(artifact: Path) -> Session:
    """Return that artifact, frozen, to code with any number of times."""
    return open_session(artifact, None, coding_plan(RUNTIME))
