"""Every number of a record edited, one at a time: what does nobody notice?"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from fairway.base.errors import UserError
from fairway.base.files import digest_file, read_json, write_json
from fairway.submission.submission import DIGESTS
from fairway.submission.verify import verify

Place = tuple[str, int]


def numbers(record: Path) -> list[Place]:
    """Return the last digit of every number in every file but the artifacts."""
    files = sorted(path for path in record.rglob("*") if path.is_file() and path.suffix != ".fwy")
    return [
        (path.relative_to(record).as_posix(), found.end() - 1)
        for path in files
        for found in re.finditer(rb"\d+", path.read_bytes())
    ]


def unnoticed(record: Path, places: Iterable[Place], fitting: bool) -> Iterator[Place]:
    """Yield where another digit lets the record hold; `fitting` puts the digests right again."""
    kept = (record / DIGESTS).read_bytes()
    for name, at in places:
        path = record / name
        data = path.read_bytes()
        digit = b"%d" % ((data[at] - 47) % 10)
        path.write_bytes(data[:at] + digit + data[at + 1 :])
        if fitting:
            write_json(record / DIGESTS, read_json(record / DIGESTS) | {name: digest_file(path)})
        try:
            if verify(record).holds:
                yield name, at
        except UserError:
            # Refused in a sentence, such as a seed without results.
            pass
        path.write_bytes(data)
        (record / DIGESTS).write_bytes(kept)
    assert verify(record).holds
