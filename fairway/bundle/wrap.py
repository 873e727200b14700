"""A program in as few bytes as a Python file can carry it, and back.

The file unpacks the program into a folder of its own that goes when the process ends, since kernels
and numba functions need real source lines, and imports it from there. It neither reads its own file
nor writes over anything.
"""

import ast
import base64
import functools
import re
import warnings
from dataclasses import dataclass

import brotli

from fairway.base.errors import UserError

# What the unpacked program is called, and how a wrapped file is known.
MODULE = "fairway_bundle"
# What runs it, once it is imported.
START = "start"
_STEPS = (
    "import {imported},sys,tempfile as t\n"
    "d=t.TemporaryDirectory()\n"
    "sys.path.insert(0,d.name)\n"
    f"open(d.name+'/{MODULE}.py','xb').write(brotli.decompress({{literal}}))\n"
    f"import {MODULE}\n"
)
_HEAD = "#coding:latin1\n"
# The largest bundle has 75 kB and unfolds to 220. A syntax tree takes hundreds of times the size of
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
        """Return the call that starts a program which is shipped in this many bytes."""
        words = f"{size_bytes:7},{self.seed:10},{self.source!r:10},{self.clock!r:7}"
        assert len(words) == 37, f"a field is too narrow: {words}"
        return f"{START}({words})\n"


def wrap(program: str, started: Started, ascii_only: bool = False) -> bytes:
    """Return a Python file that unpacks a program by Brotli and runs it.

    The packed bytes stand in a Latin-1 literal, or, with `ascii_only`, in base85. The program is
    told the bytes of the whole file. What comes out is checked to hold the program again.
    """
    packed = _packed(program)
    if ascii_only:
        literal = f"base64.b85decode('{base64.b85encode(packed).decode()}')"
        text = _STEPS.format(imported="base64,brotli", literal=literal)
    else:
        literal = f"{_latin1(packed)}.encode('latin1')"
        text = _HEAD + _STEPS.format(imported="brotli", literal=literal)
    size = len(text) + len(f"{MODULE}.{started.call(0)}")
    file = f"{text}{MODULE}.{started.call(size)}".encode("latin1")
    assert len(file) == size and unwrap(file) == program, "the file does not hold its program"
    return file


@functools.lru_cache(maxsize=8)
def _packed(program: str) -> bytes:
    packed: bytes = brotli.compress(program.encode(), quality=11, lgwin=24)
    return packed


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
        packed = next(found for node in ast.walk(tree) if (found := _unpacked(node)))
        return _unfold(_literal(packed)).decode()
    except (SyntaxError, ValueError, LookupError, StopIteration, RecursionError, MemoryError):
        raise UserError("this is not a bundle of Fairway, or it is damaged") from None
    except brotli.error:
        raise UserError("this is not a bundle of Fairway, or it is damaged") from None


def _unpacked(node: ast.AST) -> ast.expr | None:
    """Return on what a node calls `brotli.decompress`; None if it calls no such thing."""
    match node:
        case ast.Call(
            func=ast.Attribute(value=ast.Name(id="brotli"), attr="decompress"), args=[packed, *_]
        ):
            return packed
    return None


def _unfold(packed: bytes) -> bytes:
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
