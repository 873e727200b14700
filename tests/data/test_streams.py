from pathlib import Path

import pytest
import zstandard

from fairway.base.errors import UserError
from fairway.data import streams
from fairway.data.streams import lines

TEXT = b"".join(b"line %d\n" % n for n in range(5000)) + b"end"
SKIPPED = b"\x5a\x2a\x4d\x18\x05\x00\x00\x00notes"


def long_frame(data: bytes, window_log: int = 31) -> bytes:
    """What `zstd --long=31` writes from a pipe: the window is announced, the length is not."""
    settings = zstandard.ZstdCompressionParameters(window_log=window_log, enable_ldm=True)
    made = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    return made.compress(data) + made.flush()


def frames(data: bytes) -> bytes:
    return b"".join(zstandard.compress(data[n : n + 999]) for n in range(0, len(data), 999))


@pytest.mark.parametrize(
    "raw",
    [
        zstandard.compress(TEXT),
        long_frame(TEXT),
        long_frame(TEXT, 27),
        frames(TEXT),
        SKIPPED + frames(TEXT) + SKIPPED,
        zstandard.ZstdCompressor(write_checksum=True).compress(TEXT) + zstandard.compress(b""),
    ],
    ids=["one", "long31", "long27", "frames", "skippable", "checksum"],
)
def test_every_way_to_write_zstandard_is_read(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "a.zst"
    path.write_bytes(raw)
    assert list(lines(path, True)) == TEXT.split(b"\n")


@pytest.mark.parametrize("data", [b"", b"\n", b"a", b"a\n", b"\na\n\n", TEXT])
@pytest.mark.parametrize("size", [1, 2, 7, 1 << 20])
def test_lines_are_those_of_split(
    tmp_path: Path, data: bytes, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "_READ_BYTES", size)
    (tmp_path / "a").write_bytes(data[:3000])
    assert list(lines(tmp_path / "a", False)) == data[:3000].split(b"\n")


SPOILED = {
    "empty": b"",
    "cut": zstandard.compress(TEXT)[:-1],
    "cut header": zstandard.compress(TEXT)[:3],
    "cut second": zstandard.compress(TEXT) + long_frame(TEXT)[:-4],
    "cut skippable": zstandard.compress(TEXT) + SKIPPED[:-2],
    "garbage": zstandard.compress(TEXT) + b"garbage",
    "zeros": zstandard.compress(TEXT) + bytes(16),
    "other": b"no frame at all",
    "checksum": zstandard.ZstdCompressor(write_checksum=True).compress(TEXT)[:-1] + b"?",
}


@pytest.mark.parametrize("raw", SPOILED.values(), ids=SPOILED)
def test_what_is_no_whole_stream_is_refused(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "a.zst").write_bytes(raw)
    with pytest.raises(UserError, match=r"cannot read .*a\.zst"):
        list(lines(tmp_path / "a.zst", True))


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "it is empty"),
        (
            b'{"text": "plain"}\n',
            "it is not a zstd file; if it is plain text, name it without .zst",
        ),
        (b"\x1f\x8b\x08\x00", "it is not a zstd file"),
        (b"\n", "it is not a zstd file"),
        (b"P*M?", "it is not a zstd file"),
        (SPOILED["cut header"], "it is cut short"),
        (SPOILED["cut"], "it is cut short"),
        (SKIPPED[:3], "it is cut short"),
    ],
)
def test_what_is_wrong_with_a_compressed_file_is_told(
    tmp_path: Path, raw: bytes, reason: str
) -> None:
    (tmp_path / "a.zst").write_bytes(raw)
    with pytest.raises(UserError, match=rf"cannot read .*a\.zst: {reason}"):
        list(lines(tmp_path / "a.zst", True))


def test_a_bomb_is_refused_before_it_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "FREE_TEXT_BYTES", 1_000_000)
    (tmp_path / "a.zst").write_bytes(zstandard.compress(b"\n" * 40_000_000))
    with pytest.raises(UserError, match="too much for its size"):
        for _ in lines(tmp_path / "a.zst", True):
            pass
    (tmp_path / "b.zst").write_bytes(zstandard.compress(b"\n" * 1_000_000))
    assert sum(1 for _ in lines(tmp_path / "b.zst", True)) == 1_000_001


def test_a_line_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MAX_LINE_BYTES", 100)
    monkeypatch.setattr(streams, "_READ_BYTES", 10)
    (tmp_path / "a").write_bytes(b"b\n" * 7 + b"a" * 100 + b"\n" + b"c" * 111)
    with pytest.raises(UserError, match="line 9 is longer than 0.00 MB"):
        list(lines(tmp_path / "a", False))
