"""Checkpoints: exact round trips, and refusal of anything that is not a whole one."""

import hashlib
import json
import tracemalloc
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from fairway.base.errors import UserError
from fairway.train.checkpoint import check_digest, load_checkpoint, save_checkpoint


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
    size = save_checkpoint(tmp_path / "c.safetensors", tensors, facts)
    assert size == (tmp_path / "c.safetensors").stat().st_size
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


# ---------------------------------------------------------------------------------------------
# Files from outside


def written(path: Path) -> bytes:
    """A checkpoint of a few kilobytes, with names and facts that look like its own digest."""
    tensors = {'"digest":"' + "0" * 64: torch.arange(700.0), "b": torch.ones(3, dtype=torch.int8)}
    save_checkpoint(path, tensors, {"step": 1, "said": '"digest":"' + "0" * 64 + '"'})
    return path.read_bytes()


def header(data: bytes) -> tuple[int, dict[str, object]]:
    size = int.from_bytes(data[:8], "little")
    return size, json.loads(data[8 : 8 + size])


def test_the_digest_is_that_of_all_bytes_with_zeros_in_its_place(tmp_path: Path) -> None:
    data = written(tmp_path / "c.safetensors")
    told = header(data)[1]["__metadata__"]["digest"].encode()
    assert data.count(told) == 1
    assert hashlib.sha256(data.replace(told, b"0" * 64)).hexdigest().encode() == told
    assert load_checkpoint(tmp_path / "c.safetensors")[1]["said"].startswith('"digest"')


def test_any_flipped_bit_and_any_cut_or_longer_file_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    data = written(path)
    size, _ = header(data)
    bits = {(at, at % 8) for at in (*range(8 + size), *range(8 + size, len(data), 37))}
    copies = [data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :] for at, bit in bits]
    copies += [data[:end] for end in (*range(0, 12), size, size + 8, len(data) - 1)]
    copies += [data + b"\0", data + data, data[:8] + b" " + data[8:]]
    for copy in copies:
        path.write_bytes(copy)
        with pytest.raises(UserError) as caught:
            load_checkpoint(path)
        told = str(caught.value)
        assert told.startswith(f"{path} is a damaged checkpoint (") and "\n" not in told
        assert told.endswith("); delete it, or begin again with --restart")


def foreign(path: Path, metadata: dict[str, str] | None, sealed: bool) -> Path:
    """A file of safetensors that another program wrote, its digest right if it is sealed."""
    data = save({"a": torch.ones(2)}, metadata=metadata)
    if sealed:
        told = hashlib.sha256(data).hexdigest().encode()
        data = data.replace(b'"digest":"' + b"0" * 64, b'"digest":"' + told)
    path.write_bytes(data)
    return path


ZEROS = {"digest": "0" * 64}


@pytest.mark.parametrize(
    ("metadata", "sealed"),
    [
        (None, False),
        ({"format": "pt"}, False),
        ({"fairway": "{}"}, False),
        ({"fairway": "{}", "digest": ""}, False),
        ({"fairway": "{}", **ZEROS}, False),
        ({"fairway": "{}", "digest": "A" * 64}, False),
        (ZEROS, True),
        ({"fairway": "{", **ZEROS}, True),
        ({"fairway": "", **ZEROS}, True),
        ({"fairway": "[" * 100_000, **ZEROS}, True),
        ({"format": "pt", **ZEROS}, True),
    ],
)
def test_files_of_other_programs_are_no_checkpoints(
    tmp_path: Path, metadata: dict[str, str] | None, sealed: bool
) -> None:
    path = foreign(tmp_path / "c.safetensors", metadata, sealed)
    with pytest.raises(UserError, match="is a damaged checkpoint"):
        load_checkpoint(path)


def test_what_is_sealed_is_read_whoever_wrote_it(tmp_path: Path) -> None:
    path = foreign(tmp_path / "c.safetensors", {"fairway": '{"step": 7}', **ZEROS}, True)
    tensors, facts = load_checkpoint(path)
    assert facts == {"step": 7} and tensors["a"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("size", "told"),
    [
        (0, "its header is not one of safetensors"),
        (100_000_001, "its header is not one of safetensors"),
        (2**63, "its header is not one of safetensors"),
        (100_000_000, "its content does not match its digest"),
        (1, "its content does not match its digest"),
    ],
)
def test_a_header_has_a_byte_and_at_most_100_million(tmp_path: Path, size: int, told: str) -> None:
    path = tmp_path / "c.safetensors"
    path.write_bytes(size.to_bytes(8, "little") + b"{}" * 40)
    with pytest.raises(ValueError, match=told), path.open("rb") as stream:
        check_digest(stream)


def test_long_files_are_read_in_parts(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, {"a": torch.zeros(1_300_000)}, {})
    assert load_checkpoint(path)[0]["a"].numel() == 1_300_000
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(UserError, match="its content does not match its digest"):
        load_checkpoint(path)
    # A part is 1 MiB; the next is read before the last is forgotten.
    assert tracemalloc.get_traced_memory()[1] < 3_500_000
    tracemalloc.stop()


def test_tensors_are_copies_on_the_cpu_without_gradients(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    save_checkpoint(tmp_path / "c", {"w": weight, "t": weight.T, "same": weight}, {})
    loaded, _ = load_checkpoint(tmp_path / "c")
    assert loaded["t"].tolist() == weight.T.tolist()
    loaded["w"][0, 0] = 5.0
    assert not loaded["w"].requires_grad and float(loaded["same"][0, 0]) == 0.0


def test_a_file_that_cannot_be_opened_is_told_of_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path / "c.safetensors")

    def refuse(path: Path) -> None:
        raise UserError("cannot read it: Permission denied")

    monkeypatch.setattr("fairway.train.checkpoint.opened", refuse)
    with pytest.raises(UserError, match=r"^cannot read it: Permission denied$"):
        load_checkpoint(tmp_path / "c.safetensors")


def test_the_same_state_has_the_same_bytes(tmp_path: Path) -> None:
    """safetensors writes metadata in an order that differs from call to call."""
    paths = [tmp_path / f"{n}.safetensors" for n in range(12)]
    for path in paths:
        save_checkpoint(path, {"a": torch.ones(3)}, {"step": 1})
    assert len({path.read_bytes() for path in paths}) == 1
    assert load_checkpoint(paths[0])[1] == {"step": 1}
