"""Packs a program into a Python file of as few bytes as possible, and unpacks it.

The file unpacks the program into a temporary folder and imports it from there, because kernels and
numba functions need real source lines. The folder is removed when the process ends. The file
neither reads itself nor overwrites anything.
"""

import ast
import base64
import functools
import re
import warnings
from dataclasses import dataclass

import brotli

from fairway.base.errors import UserError

# The name of the unpacked program, by which a packed file is recognised.
MODULE = "fairway_bundle"
# The function that runs it after the import.
START = "start"
_STEPS = (
    "import {imported},sys,tempfile as t\n"
    "d=t.TemporaryDirectory()\n"
    "sys.path.insert(0,d.name)\n"
    f"open(d.name+'/{MODULE}.py','xb').write(brotli.decompress({{literal}}))\n"
    f"import {MODULE}\n"
)
_HEAD = "#coding:latin1\n"
# The largest bundle has 75 kB and unpacks to 220 kB. A syntax tree takes hundreds of times the size
# of its source.
MOST_FILE_BYTES = 1 << 19
_MOST_PROGRAM_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class Started:
    """The start arguments of a program: the settings that its command line may still change.

    They are written after the packed program, each padded to the length of its longest value. So
    the bytes of a bundle depend only on the other settings, and a bundle can contain its own size.
    """

    seed: int
    source: str
    clock: str

    def call(self, size_bytes: int) -> str:
        """Return the call that starts a program of this shipped size."""
        words = f"{size_bytes:7},{self.seed:10},{self.source!r:10},{self.clock!r:7}"
        assert len(words) == 37, f"a field is too narrow: {words}"
        return f"{START}({words})\n"


def wrap(program: str, started: Started, ascii_only: bool = False) -> bytes:
    """Return a Python file that unpacks a program with Brotli and runs it.

    The packed bytes are in a Latin-1 literal, or, with `ascii_only`, in base85. The start call
    passes the size of the file. The result is unpacked again and compared.
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
    assert len(file) == size and unwrap(file) == program, "the file does not contain its program"
    return file


@functools.lru_cache(maxsize=8)
def _packed(program: str) -> bytes:
    packed: bytes = brotli.compress(program.encode(), quality=11, lgwin=24)
    return packed


def _latin1(packed: bytes) -> str:
    """Return bytes as a string literal in Latin-1 with as few escapes as Python allows.

    A source must not contain NUL, and a carriage return would become a newline. In a string with
    triple quotes, newlines and single quotes need no escape.
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
            # A bundle contains some escapes that Python does not know; each would cause a warning.
            warnings.simplefilter("ignore")
            tree = ast.parse(file)
        packed = next(found for node in ast.walk(tree) if (found := _unpacked(node)))
        return _unfold(_literal(packed)).decode()
    except (SyntaxError, ValueError, LookupError, StopIteration, RecursionError, MemoryError):
        raise UserError("this is not a bundle of Fairway, or it is damaged") from None
    except brotli.error:
        raise UserError("this is not a bundle of Fairway, or it is damaged") from None


def _unpacked(node: ast.AST) -> ast.expr | None:
    """Return the argument if a node calls `brotli.decompress`, else None."""
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
