"""A program in as few bytes as a Python file can carry it, and back.

The file unpacks the program into a folder of its own that goes when the process ends, since kernels
and numba functions need real source lines, and imports it from there. It neither reads its own file
nor writes over anything.
"""

import ast
import base64
import itertools
import lzma
import re
import warnings
from dataclasses import dataclass
from typing import Any

import brotli

from fairway.base.errors import UserError

# What the unpacked program is called, and how a wrapped file is known.
MODULE = "fairway_bundle"
# What runs it, once it is imported.
START = "start"
_STEPS = (
    "import {library},sys,tempfile as t\n"
    "d=t.TemporaryDirectory()\n"
    "sys.path.insert(0,d.name)\n"
    "open(d.name+'/{module}.py','xb').write({decode})\n"
    "import {module}\n"
)
_HEAD = "#coding:latin1\n"
# The raw stream carries everything but the size of its window, for which this is the default.
_WINDOW_BYTES = 1 << 23
# The largest bundle has 50 kB and unfolds to 250. A syntax tree takes hundreds of times the size of
# its source.
MOST_FILE_BYTES = 1 << 19
_MOST_PROGRAM_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class Started:
    """What starts a program: the settings that its command line may still say.

    They stand behind the packed program, each in as many characters as the longest value takes. So
    the bytes of a bundle follow from the other settings alone, and a bundle can hold that number.
    """

    seed: int
    source: str
    clock: str

    def call(self, size_bytes: int) -> str:
        """Return the call that starts a program which is shipped in so many bytes."""
        words = f"{size_bytes:7},{self.seed:10},{self.source!r:10},{self.clock!r:7}"
        assert len(words) == 37, f"a field is too narrow: {words}"
        return f"{START}({words})\n"


def _chains() -> list[dict[str, Any]]:
    """Return the filter chains tried, everything stated."""
    return [
        {
            "id": lzma.FILTER_LZMA2,
            "dict_size": _WINDOW_BYTES,
            "lc": lc,
            "lp": 0,
            "pb": pb,
            "mode": lzma.MODE_NORMAL,
            "nice_len": nice,
            "mf": lzma.MF_BT4,
            "depth": 1000,
        }
        for lc, pb, nice in itertools.product((0, 1, 2, 3, 4), (0, 1), (32, 64, 273))
    ]


def _packed(data: bytes) -> list[tuple[str, str, bytes]]:
    """Return (library, call of its decoder, packed bytes) for each library, at its best."""
    raw = [lzma.compress(data, lzma.FORMAT_RAW, filters=[chain]) for chain in _chains()]
    coded = [brotli.compress(data, mode=mode, quality=11, lgwin=24) for mode in (0, 1)]
    return [
        ("lzma", "lzma.decompress({0},3,None,[{{'id':33}}])", min(raw, key=len)),
        ("brotli", "brotli.decompress({0})", min(coded, key=len)),
    ]


def wrap(program: str, started: Started, ascii_only: bool = False) -> bytes:
    """Return a Python file that runs a program: the smaller of LZMA2 and Brotli, decoder included.

    The packed bytes stand in a Latin-1 literal, or, with `ascii_only`, in base85. The program is
    told the bytes of the whole file. What comes out is checked to hold the program again.
    """
    data = program.encode()
    files = []
    for library, call, packed in _packed(data):
        literal = _base85(packed) if ascii_only else f"{_latin1(packed)}.encode('latin1')"
        imported = f"base64,{library}" if ascii_only else library
        steps = _STEPS.format(library=imported, module=MODULE, decode=call.format(literal))
        files.append((("" if ascii_only else _HEAD) + steps).encode("latin1"))
    file, ending = min(files, key=len), len(f"{MODULE}.{started.call(0)}")
    file += f"{MODULE}.{started.call(len(file) + ending)}".encode()
    assert unwrap(file) == program, "the file does not hold its program"
    return file


def _base85(packed: bytes) -> str:
    return f"base64.b85decode('{base64.b85encode(packed).decode()}')"


def _latin1(packed: bytes) -> str:
    """Return bytes as a string literal in Latin-1 with as few escapes as Python lets pass.

    NUL may not stand in a source, and a carriage return would become a newline. Between three
    quotes newlines and single quotes stand for themselves.
    """
    body = packed.decode("latin1").replace("\\", "\\\\").replace("\r", "\\r")
    body = re.sub("\0(?=[0-7])", r"\\000", body).replace("\0", "\\0")
    body = re.sub('"""|"$', lambda found: found[0][:-1] + '\\"', body)
    return f'"""{body}"""'


def unwrap(file: bytes) -> str:
    """Return the program in a file that `wrap` made, without running anything.

    Raises UserError for any other file.
    """
    try:
        if len(file) > MOST_FILE_BYTES:
            raise ValueError("too long")
        with warnings.catch_warnings():
            # Escapes that Python does not know, of which a bundle has some, would each be told.
            warnings.simplefilter("ignore")
            tree = ast.parse(file)
        library, packed = next(found for node in ast.walk(tree) if (found := _unpacked(node)))
        opens = {"brotli": _unfold_brotli, "lzma": _unfold_lzma}[library]
        return opens(_literal(packed)).decode()
    except (SyntaxError, ValueError, LookupError, StopIteration, RecursionError, MemoryError):
        raise UserError("this is not a bundle of Fairway, or it is damaged") from None
    except (brotli.error, lzma.LZMAError):
        raise UserError("this is not a bundle of Fairway, or it is damaged") from None


def _unpacked(node: ast.AST) -> tuple[str, ast.expr] | None:
    """Return whose `decompress` a node calls and on what; None if it calls no such thing."""
    match node:
        case ast.Call(
            func=ast.Attribute(value=ast.Name(id=str(library)), attr="decompress"),
            args=[packed, *_],
        ):
            return library, packed
    return None


def _unfold_brotli(packed: bytes) -> bytes:
    decoder, found = brotli.Decompressor(), b""
    while packed or not decoder.is_finished():
        piece = decoder.process(packed, output_buffer_limit=_MOST_PROGRAM_BYTES)
        if not piece and not decoder.is_finished():
            break
        packed, found = b"", found + piece
        if len(found) > _MOST_PROGRAM_BYTES:
            break
    if not decoder.is_finished():
        raise ValueError("cut short, or too long")
    return found


def _unfold_lzma(packed: bytes) -> bytes:
    chain = [{"id": lzma.FILTER_LZMA2, "dict_size": _WINDOW_BYTES}]
    decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=chain)
    found = decoder.decompress(packed, _MOST_PROGRAM_BYTES)
    if not decoder.eof or decoder.unused_data:
        raise ValueError("cut short, or too long")
    return found


def _literal(node: ast.expr) -> bytes:
    """Return the bytes of `'...'.encode('latin1')` or of `base64.b85decode('...')`."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
        raise ValueError("no literal")
    if node.func.attr == "encode" and isinstance(node.func.value, ast.Constant):
        return str(node.func.value.value).encode("latin1")
    argument = node.args[0]
    if node.func.attr != "b85decode" or not isinstance(argument, ast.Constant):
        raise ValueError("no literal")
    return base64.b85decode(str(argument.value))
