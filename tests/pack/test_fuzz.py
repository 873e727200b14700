from pathlib import Path

from mutants import spoil


def test_spoiled_artifacts_load_or_are_refused(tmp_path: Path) -> None:
    loaded, _ = spoil(tmp_path, 60, 1)
    # The forger's files get through the digests: some must even be good.
    assert loaded > 4
