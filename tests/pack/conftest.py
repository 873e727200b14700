from collections.abc import Callable
from pathlib import Path

import pytest
from pack.forged import KINDS, Change
from specimens import PROVENANCE, TINY, WORDS, reheaded

from fairway.pack.artifact import save_artifact


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the bytes of a file of every kind."""
    path = tmp_path_factory.mktemp("fields") / "a.fwy"
    found = {}
    for kind, (make, pack) in KINDS.items():
        save_artifact(path, make(), TINY, pack, WORDS, PROVENANCE)
        found[kind] = path.read_bytes()
    return found


@pytest.fixture
def forge(kept: dict[str, bytes], tmp_path: Path) -> Callable[[str, Change], Path]:
    """Return a function: a file of a kind whose header was changed."""

    def write(kind: str, change: Change) -> Path:
        (tmp_path / "a.fwy").write_bytes(kept[kind])
        return reheaded(tmp_path / "a.fwy", change)

    return write
