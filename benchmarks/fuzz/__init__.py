"""Spoiled inputs without end, for everything that Fairway reads and a stranger can have written.

    python -m benchmarks.fuzz FORMAT... --count N --seed S [--first F] [--log FILE]
    python -m benchmarks.fuzz FORMAT --seed S --only NUMBER --keep FOLDER

Each input is a folder of good files with some of them spoiled. It is read the way a user's command
reads it. One of two things must happen: `UserError` with one sentence, or a value that is right.
The campaign fails on anything else: another exception, more than 2 s of processor time, more memory
than the input's size justifies, a sentence of more than 1,000 characters, or damage that nobody
noticed. `--only` makes one input again, keeps its files and shows the traceback.

To add a format, write a class with the interface of `Format` in a module of this package and add it
to `FORMATS`. All of its randomness comes from the `rng` it is given; number N of seed S is then the
same input on every machine. `damage` has what most formats need.

    class Shards:
        name = "shard"

        def specimens(self) -> list[Files]:
            return [{"a.bin": good_bytes}]                     # made once, in memory

        def spoil(self, files: Files, rng: random.Random) -> Case:
            return Case({"a.bin": damaged(files["a.bin"], rng)}, repaired=False, note="bytes")

        def read(self, folder: Path) -> Any:
            return np.array(open_shard(folder / "a.bin"))      # or raises UserError

        def wrong(self, files: Files, case: Case, found: Any) -> str:
            return "" if np.array_equal(found, decoded(files)) else "damage was not noticed"
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

# Good files by name; a name may have folders in it.
Files = dict[str, bytes]
# What becomes of a file: other bytes, nothing, or whatever a function puts at its path.
Change = bytes | None | Callable[[Path], object]

MOST_S = 2.0


@dataclass(frozen=True, slots=True)
class Case:
    """What is changed of good files, and whether digests and lengths were made right again."""

    changes: dict[str, Change]
    repaired: bool
    note: str = ""


class Format(Protocol):
    """A kind of foreign input."""

    name: str

    def specimens(self) -> list[Files]:
        """Return good inputs. The campaign reads each of them once before it measures."""

    def spoil(self, files: Files, rng: random.Random) -> Case:
        """Return a spoiled copy of a good input."""

    def read(self, folder: Path) -> Any:
        """Read an input as a user's command does; raise UserError to refuse it.

        The files of the folder may not be changed.
        """

    def wrong(self, files: Files, case: Case, found: Any) -> str:
        """Return what is wrong with what was read, or an empty text.

        Compare with a second decoder or a digest. If nothing was repaired, and a digest covers the
        file, then only what equals the original is right.
        """

    # Optional: `def most_bytes(self, size_bytes: int) -> int`, the memory that one input of this
    # size may take, and `most_s`, its processor time; `most_bytes` and `MOST_S` hold without them.


def most_bytes(size_bytes: int) -> int:
    """Return the memory that reading an input of some size may take: 64 MB, and 64 times its size.

    64 MB are four times what the largest tokenizer inside an artifact may unfold to. The factor
    covers JSON, whose shortest values, of two bytes, become objects of up to 64.
    """
    return 64_000_000 + 64 * size_bytes


# Where each format's class is: module below this package, and name.
FORMATS: dict[str, tuple[str, str]] = {
    "artifact": ("artifacts", "Artifacts"),
    "proof": ("coded", "Proofs"),
    "compressed": ("coded", "Archives"),
    "checkpoint": ("checkpoints", "Checkpoints"),
    "trail": ("trails", "Trails"),
    "bundle": ("bundles", "Bundles"),
    "shard": ("data", "Shards"),
    "tokenizer": ("data", "Tokenizers"),
    "data": ("data", "DataFolders"),
    "text": ("data", "Texts"),
    "request": ("harness", "Requests"),
    "record": ("records", "Records"),
    "run": ("runs", "Runs"),
}
