"""Checkpoints: exact round trips, and refusal of anything that is not a whole one."""

from pathlib import Path

import pytest
import torch

from fairway.checkpoint import load_checkpoint, save_checkpoint
from fairway.errors import UserError


def test_round_trip_is_exact(tmp_path: Path) -> None:
    base = torch.randn(4, 6)
    tensors = {
        "view": base[:, ::2],
        "half": torch.randn(3).bfloat16(),
        "scalar": torch.tensor(3.0),
        "shared": base,
        "empty": torch.empty(0, 5),
    }
    facts = {"step": 3, "progress": 0.1, "loader": {"rng": 2**100}}
    save_checkpoint(tmp_path / "c.safetensors", tensors, facts)
    loaded, got = load_checkpoint(tmp_path / "c.safetensors")
    assert got == facts
    for name, value in tensors.items():
        assert loaded[name].dtype == value.dtype and torch.equal(loaded[name], value)
    assert list(tmp_path.iterdir()) == [tmp_path / "c.safetensors"]


def test_refusals(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    with pytest.raises(UserError, match="does not exist; there is nothing to resume from"):
        load_checkpoint(path)
    for content in (b"", b"hello", b"\xff" * 100):
        path.write_bytes(content)
        with pytest.raises(UserError, match="is a damaged checkpoint"):
            load_checkpoint(path)


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, {"a": torch.ones(2)}, {"step": 1})

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(path, {"a": torch.zeros(2)}, {"step": 2})
    assert load_checkpoint(path)[1] == {"step": 1}
    assert len(list(tmp_path.iterdir())) == 1
