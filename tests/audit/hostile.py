"""Records that are hard to read: each function spoils a good folder in one way."""

import base64
import gzip
import json
import lzma
import os
import socket
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from audit.record import SCRIPT

LONG = 1_200_000
LOG = "train_seed42.log"
Spoil = Callable[[Path], object]


def log(*pieces: bytes) -> Spoil:
    """Return what adds lines to a log."""

    def spoil(folder: Path) -> None:
        with (folder / LOG).open("ab") as stream:
            stream.writelines(pieces)

    return spoil


def file(name: str, data: bytes | str) -> Spoil:
    """Return what replaces a file."""
    return lambda folder: (folder / name).write_bytes(
        data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    )


def script(text: str | bytes) -> Spoil:
    """Return what replaces the script."""
    return file("train_gpt.py", text)


def claim(value: object) -> Spoil:
    """Return what replaces the claim by a JSON value."""
    return file("submission.json", json.dumps(value))


def recoded(codec: str, name: str = LOG) -> Spoil:
    """Return what writes a text in another encoding."""
    return lambda folder: (folder / name).write_bytes((folder / name).read_text().encode(codec))


def unpacks(data: bytes, packer: Callable[[bytes], bytes], name: str) -> str:
    """Return a script that unpacks and runs another."""
    text = base64.b85encode(packer(data)).decode()
    return f"import {name},base64\nexec({name}.decompress(base64.b85decode({text!r})))\n"


def nested(depth: int) -> str:
    """Return a script inside a script, many times."""
    found = SCRIPT
    for _ in range(depth):
        found = unpacks(found.encode(), zlib.compress, "zlib")
    return found


def calls(count: int) -> str:
    """Return functions that call two others each: paths without number."""
    lines = [
        f"def f{n}(val_tokens):\n f{n + 1}(val_tokens)\n f{n + 2}(val_tokens)" for n in range(count)
    ]
    return "\n".join(lines) + "\ndef main():\n f0(val_tokens)\n serialize()\n"


def knot(count: int) -> str:
    """Return functions that all call one another and train."""
    body = "".join(f" f{n}(val_tokens)\n" for n in range(count))
    each = [f"def f{n}(val_tokens):\n{body} loss.backward()\n opt.step()\n" for n in range(count)]
    return "".join(each) + "def main():\n f0(val_tokens)\n serialize()\n"


def many(names: str, data: bytes, count: int) -> Spoil:
    """Return what adds many files."""

    def spoil(folder: Path) -> None:
        for number in range(count):
            (folder / names.format(number)).write_bytes(data)

    return spoil


def pipes(folder: Path) -> None:
    for name in ("a.log", "x.py", "README.md", "submission.json", "train_gpt.py"):
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)


def sockets(folder: Path) -> None:
    here = Path.cwd()
    os.chdir(folder)
    try:
        socket.socket(socket.AF_UNIX).bind("s.log")
    finally:
        os.chdir(here)


def links(folder: Path) -> None:
    for name, to in {
        "loop": "loop",
        "z.log": "/dev/zero",
        "up": "..",
        "a.log": "/etc/passwd",
        "x.py": "/dev/tty",
        "gone.log": "nowhere",
    }.items():
        (folder / name).symlink_to(to)


def names(folder: Path) -> None:
    (folder / "\x1b[31mred\n.log").write_text("x")
    (folder / ("a" * 250 + ".log")).write_text("val_bpb:1")
    (folder / "[bold].py").write_text("x=1")
    (folder / "\u202egol.log").write_text("step:1/2 train_time:1ms\n")
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe.log")).write_bytes(b"val_bpb: 1.0\n")


def sparse(folder: Path) -> None:
    for name in ("big.log", "big.py", LOG, "README.md", "submission.json", "train_gpt.py"):
        with (folder / name).open("wb") as stream:
            stream.truncate(1 << 36)


def deep(folder: Path) -> None:
    for _ in range(200):
        folder = folder / "d"
        folder.mkdir()


def folders(folder: Path) -> None:
    for name in ("README.md", "submission.json", "train_gpt.py", LOG):
        (folder / name).unlink()
        (folder / name).mkdir()


def archives(folder: Path) -> None:
    (folder / "train.log.gz").write_bytes(gzip.compress(bytes(20_000_000)))
    with zipfile.ZipFile(folder / "x.zip", "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("a", bytes(20_000_000))


def repeated(folder: Path) -> None:
    (folder / LOG).write_bytes((folder / LOG).read_bytes() * 500)


def emptied(folder: Path) -> None:
    for found in folder.iterdir():
        found.write_bytes(b"")


_NINES = b"9" * 6_000
_DIGITS = "9" * 6_000
_BOMB = unpacks(b"x=1\n" * 3_900_000, zlib.compress, "zlib")

HOSTILE: dict[str, Spoil] = {
    # Lines
    "digits": log(b"quantized val_loss:" + b"1" * LONG + b" val_bpb:" + b"1" * LONG + b"\n"),
    "words": log(b"val_bpb " * 150_000, b"\n", b"serialized model quant " * 60_000),
    "lists": log(b"hyperparameters:" * 70_000, b"\n", b"a=1 " * 300_000, b"\n", b"a=" * 600_000),
    "blanks": log(
        b"step", b" " * LONG, b"x val_bpb:", b" " * LONG, b"\n  a", b" " * LONG, b": 1\n"
    ),
    "brackets": log(*(byte * LONG + b"\n" for byte in (b"(", b"[", b"{", b'"', b"'", b"<"))),
    "dictionaries": log(b"Hyperparameters:\n", b"{'a': " * 200_000, b"\n", b'{"a":' * 200_000),
    "namespace": log(b"args: Namespace(", b"a=1, " * 200_000, b")\n"),
    "commas": log(b"val_loss:" + b"1," * 600_000 + b" val_bpb 1.1\n"),
    "dashes": log(b"total submission size", b"-" * LONG, b"\ncode size", b"-" * LONG, b":1"),
    "time stamps": log(b"[2026-01-01 00:00:00,000] INFO - " * 40_000, b"val_bpb:1\n"),
    "a table": log(b"|" * LONG, b"\n", b"| a | 1 " * 100_000, b"\n", b"+---" * 200_000),
    "source": log(SCRIPT.encode() * 2_000),
    "zeros": log(bytes(20_000_000)),
    "carriage returns": lambda folder: (folder / LOG).write_bytes(
        (folder / LOG).read_bytes().replace(b"\n", b"\r") * 50
    ),
    "settings": file(
        LOG, b"Hyperparameters:\n" + b"".join(b"  a%d: 1\n" % n for n in range(200_000))
    ),
    "stages": log(*(b"s%d val_loss:1.0 val_bpb:1.0\n" % n for n in range(25_000))),
    "runs": repeated,
    "a README of numbers": file(
        "README.md", b"1.0810 " * 170_000 + b"|" * LONG + b"**1.08" * 99_999
    ),
    "a README of words": file("README.md", b"ttt epochs 3 seed 42 " * 90_000 + b"`" * 500_000),
    "a README of commands": file("README.md", b"```\n" + b"A=1 " * 300_000 + b"python x.py\n```"),
    "a README of fences": file("README.md", b"```\nA=1 python\n```\n" * 60_000),
    "a README of links": file("README.md", b"[" * LONG + b"](" * 300_000 + b"<" * LONG),
    # Numbers
    "numbers in a log": log(
        b"step:",
        _NINES,
        b"/1 train_time:",
        _NINES,
        b"ms step_avg:1e999ms\nseed: ",
        _NINES,
        b"\nval_tokens: ",
        _NINES,
        b"\nx val_loss:nan val_bpb:inf\nx val_loss:1e400 val_bpb:1e400 "
        b"eval_time:1e999ms\nx val_loss:0 val_bpb:0\nmodel_params:",
        _NINES,
        b"\ncode size: 1e400\n",
    ),
    "numbers in settings": file(
        LOG,
        b"Hyperparameters:\n  a: %b\n  seed: %b\n  b: 1e400\n  world_size: %b\n" % ((_NINES,) * 3),
    ),
    "1e400": file("submission.json", '{"val_bpb": 1e400, "seeds": [1e400, NaN, -Infinity]}'),
    "a long number": file("submission.json", '{"val_bpb": ' + "9" * 100_000 + "}"),
    "long numbers as text": claim(
        {
            "val_bpb": _DIGITS,
            "seeds": [_DIGITS],
            "steps": _DIGITS,
            "val_bpb_std": "1e400",
            "bytes_total": _DIGITS,
            "seed_results": {"9" * 9: {"val_bpb": _DIGITS}},
        },
    ),
    # Nesting
    "lists in lists": file("submission.json", "[" * 500_000 + "]" * 500_000),
    "objects in objects": file("submission.json", '{"a":' * 50_000 + "1" + "}" * 50_000),
    "a wide claim": claim(
        {f"seed{n}": {str(m): {"val_bpb": 1.0 + m} for m in range(60)} for n in range(600)}
    ),
    "odd kinds": claim(
        {"val_bpb": True, "seeds": {"42": None}, "seed_results": [[[]]], "track": []}
    ),
    "a long sum": script("x=1" + "+1" * 100_000),
    "brackets in a script": script("(" * 100_000),
    "attributes": script("x" + ".a" * 100_000),
    "signs": script("x=" + "-" * 100_000 + "1"),
    "calls of calls": script("x=" + "f(" * 90 + "1" + ")" * 90 + "\nx=a" + "(1)" * 50_000),
    "elif": script("if a:\n pass\n" + "elif a:\n pass\n" * 20_000),
    "lambdas": script("f=" + "lambda:" * 50_000 + "0"),
    "f-strings": script(
        "x=" + "f'{" * 100 + "1" + "}'" * 100 + "\n" + "x=f'{a:{b:{c}}}'\n" * 9_999
    ),
    "indented": script("".join(" " * n + "if 1:\n" for n in range(99)) + " " * 99 + "pass"),
    # Paths through a script
    "paths without number": script(calls(2_000)),
    "everything calls everything": script(knot(120)),
    "names of themselves": script("a='aaaa'\n" + "a=a+a\n" * 8_000 + "exec(a)\n"),
    "doubled sixty times": script(
        "a0='aaaa'\n" + "".join(f"a{n + 1}=a{n}+a{n}\n" for n in range(60)) + "exec(a60)\n"
    ),
    "a gate in a gate": script(
        "def mix_ppm(y, nll):\n" + " lam = 1 if nll[nll[y]] > 0 else 2\n" * 4_000
    ),
    "huge strings": script(
        "exec('x=1;'*999999999)\nexec('a'.join(['b']*10**9))\nexec('a'.ljust(10**10))\n"
        "exec('%1000000000d'%1)\nexec(f'{1:1000000000}')\nexec(b'x'*(1<<40))\nx=2**(2**40)\n"
    ),
    "C in a string": script('x="""' + "#include <x>\nint f(int tgt){h^=tgt;}\n" * 20_000 + '"""\n'),
    "a long script": script(SCRIPT * 1_500),
    "backslashes": script("x=1\\\n" * 300_000 + "'" + "\\" * LONG),
    "bytes that are none": script(b"# -*- coding: rot13 -*-\n\xff\xfe\0" * 1_000),
    # Archives
    "a bomb": script(_BOMB),
    # Packed when it is asked for, which takes its time.
    "a large bomb": lambda folder: script(
        unpacks(b"#" * 40_000_000, partial(lzma.compress, preset=0), "lzma")
    )(folder),
    "many bombs": many("s{}.py", _BOMB.encode(), 16),
    "archive in archive": script(nested(40)),
    "files that are archives": archives,
    # Files
    "UTF-16": recoded("utf-16"),
    "UTF-16 without a mark": recoded("utf-16-be"),
    "a script in UTF-16": recoded("utf-16", "train_gpt.py"),
    "Latin-1": log(b"\xe9\xff\n" * 10_000),
    "many logs": many("{}.log", b"step:1/2 val_bpb: 1.0\n" * 50, 2_500),
    "many files": many("a{}", b"", 4_000),
    "many scripts": many("s{}.py", SCRIPT.encode() * 200, 60),
    "pipes": pipes,
    "sockets": sockets,
    "links": links,
    "names": names,
    "huge files": sparse,
    "deep folders": deep,
    "folders by the names of files": folders,
    "nothing in any file": emptied,
}
