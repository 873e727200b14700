"""Ways to spoil bytes and JSON values, the same for every format."""

import json
import random
from typing import Any

_ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3, 8, 9, 16, 17, 255, 2**31, 2**40, 2**63, 10**17, 0.5),
    *(1e308, -0.0, "", "x", "\x1b[2J", "\ud800", "../../etc/passwd", [], {}, [[]], {"": None}),
)


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Return other bytes: some changed, dropped, doubled or cleared, up to three times."""
    out = bytearray(data)
    for _ in range(1 + rng.randrange(3)):
        at, length = rng.randrange(len(out) + 1), 1 << rng.randrange(8)
        piece = out[at : at + length]
        match rng.randrange(6):
            case 0:
                out[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                out[at : at + length] = b""
            case 2:
                out[at:at] = piece
            case 3:
                out[at : at + length] = rng.randbytes(len(piece))
            case 4:
                out[at : at + length] = bytes(len(piece))
            case 5 if rng.random() < 0.2:
                del out[at:]
    return bytes(out) if out != data else data + b"\0"


def spoil_value(root: Any, rng: random.Random, words: tuple[str, ...] = ()) -> str:
    """Change one value somewhere in a JSON value, in place; return the path of its place.

    A number moves by one, by itself or by seven; other values become odd ones; a key goes, or a
    list gets longer or shorter. Texts may become one of `words`.
    """
    node, path = root, ""
    while isinstance(node, dict | list) and node:
        key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        inner, path = node[key], f"{path}/{key}"
        if isinstance(inner, dict | list) and inner and rng.random() < 0.93:
            node = inner
            continue
        _change(node, key, rng, words)
        break
    return path


def _change(node: Any, key: Any, rng: random.Random, words: tuple[str, ...]) -> None:
    inner, kind = node[key], rng.random()
    if kind < 0.08:
        del node[key]
    elif kind < 0.14 and isinstance(node, list):
        node[key:key] = node[key : key + 1] * rng.choice((1, 2, 1000))
    elif type(inner) is int and kind < 0.6:
        node[key] = inner + rng.choice((-1, 1, inner, 7))
    elif type(inner) is float and kind < 0.6:
        node[key] = inner * rng.choice((-1.0, 1.0000001, 2.0, 1e300))
    elif isinstance(inner, str) and kind < 0.5 and inner:
        at = rng.randrange(len(inner))
        node[key] = inner[:at] + chr(rng.randrange(32, 0x250)) + inner[at + 1 :]
    elif isinstance(inner, str) and words and kind < 0.8:
        node[key] = rng.choice(words)
    else:
        node[key] = rng.choice(_ODD)


def odd_json(value: Any, rng: random.Random) -> bytes:
    """Return a JSON text that is hard to read: deep, long, or with huge numbers or doubled keys."""
    text = json.dumps(value)
    match rng.randrange(9):
        case 0:
            depth = rng.choice((100, 1_000, 100_000))
            return ("[" * depth + "]" * depth).encode()
        case 1:
            return ('{"a":' * 5_000 + "1" + "}" * 5_000).encode()
        case 2:
            return _with_number(text, "9" * rng.choice((20, 400, 5_000, 100_000)), rng)
        case 3:
            return _with_number(text, rng.choice(("NaN", "-Infinity", "1e999", "1E400")), rng)
        case 4:
            return text[:-1].encode() + b"," + text[1:].encode()
        case 5:
            return b"\xef\xbb\xbf" + text.encode()
        case 6:
            return text.encode(rng.choice(("utf-16", "utf-32")))
        case 7:
            return text.encode() + rng.choice((b"\0", b"{}", b" " * 1000, b"\n\n"))
        case _:
            return ("[" + "0," * rng.choice((1_000, 100_000)) + "0]").encode()


def _with_number(text: str, number: str, rng: random.Random) -> bytes:
    """Put a number in the place of one of a JSON text's digits."""
    places = [at for at, letter in enumerate(text) if letter.isdigit()]
    if not places:
        return f"[{number}]".encode()
    at = rng.choice(places)
    return f"{text[:at]}{number}{text[at + 1 :]}".encode()
