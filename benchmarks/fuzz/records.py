"""Records: folders in the challenge's format, and those that `fairway submit` wrote."""

import json
import os
import random
import re
import tempfile
from pathlib import Path
from typing import Any

from audit.hostile import HOSTILE
from audit.record import SCRIPT, wrapped
from audit.record import Case as Written

from fairway.audit.records.audit import audit_record
from fairway.audit.records.unwrap import MOST_BYTES, MOST_PARSED
from fairway.base.errors import UserError

from . import Case, Change, Files, most_bytes
from .damage import damaged, odd_json, spoil_value

_CLAIM = "submission.json"


class Records:
    """A record of the challenge with a plain script, and one whose script unpacks itself."""

    name = "record"
    # Issue 17: an audit ends itself after 6 s.
    most_s = 10.0

    def specimens(self) -> list[Files]:
        """Return both."""
        found = []
        for script in (SCRIPT, wrapped(wrapped(SCRIPT))):
            with tempfile.TemporaryDirectory() as place:
                folder = Written(script=script).write(Path(place) / "record")
                found.append({f"r/{path.name}": path.read_bytes() for path in folder.iterdir()})
        return found

    def most_bytes(self, size_bytes: int) -> int:
        """Return what any input may take, with trees of what is parsed and what is unpacked."""
        return most_bytes(size_bytes) + 400 * MOST_PARSED + 8 * MOST_BYTES

    def spoil(self, files: Files, rng: random.Random) -> Case:
        """Spoil bytes, values of the claim, lines of a log or README, the script, or the folder."""
        kind = rng.random()
        if kind < 0.2:
            name = rng.choice(list(files))
            return Case({name: damaged(files[name], rng)}, True, name)
        if kind < 0.3:
            claim = json.loads(files[f"r/{_CLAIM}"])
            note = "claim" + spoil_value(claim, rng)
            data = odd_json(claim, rng) if rng.random() < 0.2 else json.dumps(claim).encode()
            return Case({f"r/{_CLAIM}": data}, True, note)
        if kind < 0.4:
            return _lines(files, rng)
        if kind < 0.5:
            script = _script(rng)
            return Case({"r/train_gpt.py": script}, True, "script")
        if kind < 0.55:
            return _folder(files, rng)
        if kind < 0.75:
            return _hostile(files, rng)
        return _texts(files, rng)

    def read(self, folder: Path) -> Any:
        """Return the audit; UserError where it finds the record invalid."""
        found = audit_record(folder / "r")
        if not found.valid:
            raise UserError(found.findings[0].why)
        return found

    def wrong(self, files: Files, case: Case, found: Any) -> str:
        """Return findings that could not be printed or are not of this folder."""
        for finding in found.findings:
            texts = (finding.why, finding.place, finding.value)
            if any(len(text) > 2_000 for text in texts):
                return f"{finding.code} is a page long"
        json.dumps(found.facts, allow_nan=False)
        return ""


# ---------------------------------------------------------------------------------------------
# Ways to spoil

# What makes thousands of files, or none that are bytes, is left to `_folder`.
_SPOILS = sorted(
    HOSTILE.keys()
    - {
        "many logs",
        "many files",
        "many scripts",
        "many bombs",
        "pipes",
        "sockets",
        "links",
        "names",
    }
    - {"huge files", "deep folders", "folders by the names of files", "files that are archives"}
)
_NUMBERS = (
    *(b"1e400", b"-1", b"0", b"nan", b"inf", b"1_000", b"1,000", b"", b"None", b"1e-400", b"0.0.0"),
    *(b"9" * 30, b"9" * 5_000, b"-0.0", b"0x1f", b"1e5", b"12:34", b"5 %", b"1.2.3", b"\xc2\xbd"),
)
_WORDS = (
    *(
        b"val_bpb:",
        b"val_loss:",
        b"step:",
        b"train_time:",
        b"Hyperparameters:",
        b"seed:",
        b"ms",
        b"=",
    ),
    *(
        b"{",
        b"}",
        b"[",
        b"(",
        b")",
        b"'",
        b'"',
        b"|",
        b"\\",
        b"\n",
        b"\r",
        b"\t",
        b" " * 40,
        b":",
        b",",
    ),
    *(
        b"ttt",
        b"epoch",
        b"1/20000",
        b"val_tokens:",
        b"Total submission size",
        b"bytes",
        b"Namespace(",
    ),
    *(
        b"exec(",
        b"lambda x:",
        b"def f(",
        b"if 1:\n",
        b"f'{",
        b"b'",
        b"import ",
        b"#",
        b'"""',
        b"~" * 9,
    ),
)


def _hostile(files: Files, rng: random.Random) -> Case:
    """Take a record that is hard to read, at times with damage on top."""
    kind = rng.choice(_SPOILS)
    with tempfile.TemporaryDirectory() as place:
        for name, data in files.items():
            (Path(place) / Path(name).name).write_bytes(data)
        HOSTILE[kind](Path(place))
        spoiled = {f"r/{path.name}": path.read_bytes() for path in Path(place).iterdir()}
    changes: dict[str, Change] = {
        name: damaged(data, rng) if data and rng.random() < 0.5 else data
        for name, data in spoiled.items()
        if data != files.get(name)
    }
    return Case(changes, True, kind)


def _texts(files: Files, rng: random.Random) -> Case:
    """Change numbers, lines, words, nesting and lengths of some files, several times."""
    changes: dict[str, Change] = {}
    for name in rng.sample(sorted(files), 1 + rng.randrange(2)):
        data = files[name]
        for _ in range(1 + rng.randrange(4)):
            data = _text(data, files, rng)
        changes[name] = data
    return Case(changes, True, " ".join(changes))


def _text(data: bytes, files: Files, rng: random.Random) -> bytes:
    lines = data.splitlines(keepends=True)
    at = rng.randrange(len(data) + 1)
    match rng.randrange(10):
        case 0:
            share = rng.choice((0.01, 0.2, 1.0))
            number = re.compile(rb"\d+(\.\d+)?")
            return number.sub(
                lambda m: rng.choice(_NUMBERS) if rng.random() < share else m[0], data
            )
        case 1:
            rng.shuffle(lines)
        case 2:
            lines = [line for line in lines for _ in range(rng.choice((0, 1, 1, 1, 2, 50)))]
        case 3:
            other = files[rng.choice(sorted(files))]
            start = rng.randrange(len(other) + 1)
            return data[:at] + other[start : start + rng.choice((20, 2_000, 200_000))] + data[at:]
        case 4:
            return data[:at] + rng.choice(_WORDS) * rng.choice((1, 10, 1_000, 50_000)) + data[at:]
        case 5:
            words = b"".join(rng.choice(_WORDS) for _ in range(rng.choice((5, 100, 5_000))))
            return data[:at] + words + data[at:]
        case 6:
            return data.replace(b"\n", rng.choice((b"\r", b"\r\n", b" ", b"", b"\n\n", b"\0")))
        case 7:
            opening, closing = rng.choice(((b"[", b"]"), (b"{", b"}"), (b"(", b")"), (b"-", b"1")))
            depth = rng.choice((5, 500, 50_000))
            return data[:at] + opening * depth + data[at : at + 9] + closing * depth + data[at:]
        case 8:
            return data.decode("utf-8", "replace").encode(
                rng.choice(("utf-16", "utf-16-be", "utf-7"))
            )
        case _:
            prefix = rng.choice((b"[2026-04-01 00:00:00] ", b"  ", b"\t", b"# ", b"rank0: ", b"| "))
            lines = [prefix + line for line in lines]
    return b"".join(lines)


def _lines(files: Files, rng: random.Random) -> Case:
    """Change the lines of a log or of the README so that they are hard to read."""
    name = rng.choice([name for name in files if name.endswith((".log", ".md"))])
    lines = files[name].splitlines(keepends=True)
    at = rng.randrange(len(lines))
    many = rng.choice((10, 1_000, 5_000, 100_000))
    line = lines[at].rstrip(b"\n")
    digit = next((n for n, byte in enumerate(line) if 48 <= byte < 58), 0)
    lines[at] = rng.choice(
        (
            line[:digit] + b"9" * many + line[digit:], line + b" " * many + b":", line * 1_000,
            line.replace(b":", b" " * many + b":", 1), line[:digit] + b"\xc2\xb2" + line[digit:],
            line.replace(b":", b":-"), line[:digit] + b"1e999" + line[digit:], b"\x1b[2J" + line,
            (b"serialized model quant " * many)[:200_000], line + b"\0", b"step" + b" " * many,
            line[:digit] + "\u0663".encode() + line[digit:], line.replace(b".", b"."* many, 1),
            line[:digit] + b"nan" + line[digit + 1 :], line[:digit] + b"0" + line[digit + 1 :],
            b"Hyperparameters:\n" + b"  a: 1\n" * many, (line + b"\n") * min(many, 5_000),
            b"".join(b"A%d=1 " % n for n in range(min(many, 5_000))) + b"python x.py",
        )
    ) + b"\n"  # fmt: skip
    return Case({name: b"".join(lines)}, True, f"{name}:{at + 1}")


def _script(rng: random.Random) -> bytes:
    """Return a script that is hard to read or to unpack."""
    many = rng.choice((100, 1_000, 20_000))
    kind = rng.randrange(9)
    if kind == 0:
        return wrapped("#" * rng.choice((10**5, 10**7, 10**8))).encode()
    if kind == 1:
        return wrapped(SCRIPT).encode() * min(many, 30)
    if kind == 2:
        return damaged(wrapped(SCRIPT).encode(), rng)
    return rng.choice(
        (
            b"exec(x)\nx=x+x\n", b"a='aaaa'\n" + b"a=a+a\n" * many + b"exec(a)\n",
            b"if 1:\n" * 1 + b" x=1\n" * many, b"x" + b".a" * many, b"(" * many,
            b"1" + b"+1" * many,
            b"def f():\n" + b" while 1:\n  pass\n" * many, b"'\\q'\n" * many, b"\0", b"\xff" * many,
            b"exec(__import__('zlib').decompress(b''))\n" * many, b"lambda:" * many + b"0",
            b"import base64 as b\nexec(b.b85decode(" + repr("~" * many).encode() + b"))",
            b"def mix_ppm(y):\n" + b" y=y[y[y]]\n" * many, b"x=" + b"[" * 90 + b"]" * 90,
        )
    )  # fmt: skip


def _folder(files: Files, rng: random.Random) -> Case:
    """Change what kind of thing lies in the folder."""
    name = rng.choice(list(files))
    many = rng.choice((3, 100, 3_000))
    change: Change = rng.choice(
        (
            None, os.mkfifo, Path.mkdir, lambda path: path.symlink_to("."), _sparse,
            lambda path: path.symlink_to("/dev/zero"), lambda path: path.symlink_to(path.name),
            lambda path: _many(path, many), lambda path: _deep(path, 50),
        )
    )  # fmt: skip
    return Case({name: change}, True, f"{name} as another thing")


def _sparse(path: Path) -> None:
    with path.open("wb") as stream:
        stream.truncate(1 << 34)


def _many(path: Path, count: int) -> None:
    path.mkdir()
    for number in range(count):
        (path / f"{number}.log").write_bytes(b"step 1/2 val_bpb: 1.0 \n")


def _deep(path: Path, depth: int) -> None:
    for _ in range(depth):
        path.mkdir()
        path = path / "submission.json"
