"""Reads lines of files as streams, plain or compressed, with limits on memory and work."""

from collections.abc import Iterator
from pathlib import Path

import zstandard

from fairway.base.errors import UserError
from fairway.base.files import opened
from fairway.base.units import megabytes

MAX_LINE_BYTES = 1 << 28
# The window of `zstd --long=31`, the largest that the program itself can write.
MAX_WINDOW_BYTES = 1 << 31
# A file may unpack to this much text, plus this many times its own size: English text shrinks three
# to five times, a log file fifty times, a decompression bomb twenty thousand times.
FREE_TEXT_BYTES, MAX_RATIO = 1 << 30, 100
_READ_BYTES = 1 << 20
# How frames begin; the first byte of a skippable one is 0x50 to 0x5f.
_FRAME, _SKIPPABLE = b"\x28\xb5\x2f\xfd", b"\x2a\x4d\x18"
# The decompressor gets this little at once, because 4 bytes may be a block of 128 kB: 4 MB in all.
_FEED_BYTES = 1 << 7


class Budget:
    """The remaining amount of text that a compressed file may unpack to."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._most = self._left = FREE_TEXT_BYTES + MAX_RATIO * path.stat().st_size

    def spend(self, size: int) -> None:
        """Count bytes of text; raise UserError if they are too many for the file."""
        self._left -= size
        if self._left < 0:
            raise UserError(
                f"{self._path} unpacks to over {megabytes(self._most)} of text, too much for its "
                "size; to use it all the same, decompress it first"
            )


def lines(path: Path, compressed: bool) -> Iterator[bytes]:
    """Yield the lines of a file without their line feeds, and the last one even if it is empty.

    Compressed means zstandard: any number of frames, windows up to 2 GiB, and skippable frames,
    which are skipped. Raises UserError for a line over 256 MiB, and for a stream that is damaged,
    cut short, followed by other data, or larger than its budget.
    """
    parts: list[bytes] = []
    size, number = 0, 1
    for piece in _unpacked(path) if compressed else _pieces(path, _READ_BYTES):
        first, *others = piece.split(b"\n")
        parts.append(first)
        size += len(first)
        if others:
            yield b"".join(parts)
            yield from others[:-1]
            parts, size = [others[-1]], len(others[-1])
            number += len(others)
        if size > MAX_LINE_BYTES:
            raise UserError(f"{path} line {number} is longer than {megabytes(MAX_LINE_BYTES)}")
    yield b"".join(parts)


def _pieces(path: Path, size: int) -> Iterator[bytes]:
    with opened(path) as stream:
        while piece := stream.read(size):
            yield piece


def _morsels(path: Path) -> Iterator[bytes]:
    for piece in _pieces(path, _READ_BYTES):
        for start in range(0, len(piece), _FEED_BYTES):
            yield piece[start : start + _FEED_BYTES]


def _require_frames(path: Path) -> None:
    """Raise UserError for an empty file, and for one that cannot begin with a frame."""
    head = next(_pieces(path, len(_FRAME)), b"")
    if not head:
        raise UserError(f"cannot read {path}: it is empty (0 bytes); compress its text again")
    # A file of fewer bytes may be cut short.
    skippable = _SKIPPABLE.startswith(head[1:]) and head[0] >> 4 == 5
    if not _FRAME.startswith(head) and not skippable:
        raise UserError(
            f"cannot read {path}: it is not a zstd file; if it is plain text, name it without .zst"
        )


def _unpacked(path: Path) -> Iterator[bytes]:
    """Yield the content of a file of zstandard frames; every frame must be complete."""
    _require_frames(path)
    budget = Budget(path)
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
    frame = decompressor.decompressobj()
    whole = False
    try:
        for unread in _morsels(path):
            while unread:
                frame = decompressor.decompressobj() if whole else frame
                found = frame.decompress(unread)
                budget.spend(len(found))
                yield found
                whole, unread = frame.eof, frame.unused_data
    except (zstandard.ZstdError, MemoryError) as error:
        raise UserError(f"cannot read {path}: {error or 'out of memory'}") from None
    if not whole:
        raise UserError(f"cannot read {path}: it is cut short")
