"""Bytes of an artifact by section and role, beside the entropy of their content."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fairway.pack.artifact import account, read_sections
from fairway.pack.layout import Numbers, SectionSpec, split


@dataclass(frozen=True, slots=True)
class Part:
    """A part of an artifact: stored bytes, how many numbers they hold (0 where it holds none).

    entropy_bits: order-0 entropy of the codes per number, with a separate distribution for each
    matrix. An ideal coder without context needs this many bits. None for other parts than codes.
    """

    name: str
    codec: str
    bytes: int
    numbers: int
    entropy_bits: float | None

    @property
    def bits_per_number(self) -> float | None:
        """Return the stored bits per number, or None for a part without numbers."""
        return 8 * self.bytes / self.numbers if self.numbers else None


def byte_account(path: Path) -> list[Part]:
    """Return the parts of an artifact in file order; their bytes sum to the file's size.

    It reads the whole file and checks every digest. Raises UserError as `load_artifact` does.
    """
    parts = {entry["name"]: _part(entry, spec, raw) for entry, spec, raw in read_sections(path)}
    return [parts.get(name, Part(name, "", count, 0, None)) for name, count in account(path)]


def _part(entry: dict[str, Any], spec: SectionSpec | None, raw: bytes) -> Part:
    name, codec, stored_bytes = entry["name"], entry["codec"], entry["bytes"]
    if spec is None:
        return Part(name, codec, stored_bytes, 0, None)
    found = [values for _, values in split(spec, raw, entry["bits"])]
    numbers = sum(map(len, found))
    if spec.kind != "codes":
        return Part(name, codec, stored_bytes, numbers, None)
    total_bits = math.fsum(len(values) * order_0_bits(values) for values in found)
    return Part(name, codec, stored_bytes, numbers, total_bits / numbers)


def order_0_bits(values: Numbers) -> float:
    """Return the order-0 entropy of some whole numbers in bits per number."""
    counts = np.unique(values, return_counts=True)[1] / len(values)
    return -math.fsum(share * math.log2(share) for share in counts.tolist())
