import functools
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceNormalizer

from fairway.base.errors import UserError
from fairway.data.spmodel import parse_model

BYTE_PIECES = [(f"<0x{value:02X}>", 6) for value in range(256)]
PIECES = [
    ("<pad>", 3),
    ("<s>", 3),
    ("</s>", 3),
    ("<unk>", 2),
    *BYTE_PIECES,
    ("\u2581", 1),
    ("a", 1),
]


def number(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def part(field: int, value: bytes | int) -> bytes:
    if isinstance(value, int):
        return number(field << 3) + number(value)
    return number(field << 3 | 2) + number(len(value)) + value


@functools.cache
def piece(text: str | bytes, kind: int, score: float = 0.0) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return part(1, part(1, raw) + b"\x15" + struct.pack("<f", score) + part(3, kind))


def model(
    pieces: list[tuple[str, int]] = PIECES,
    trainer: bytes = part(3, 2) + part(35, 1),
    normaliser: bytes = part(3, 0) + part(4, 0),
    rest: bytes = b"",
) -> bytes:
    return b"".join(piece(*p) for p in pieces) + part(2, trainer) + part(3, normaliser) + rest


@functools.cache
def charsmap() -> bytes:
    """The tables of nmt_nfkc, the normaliser of the published tokenizers."""
    spec = SentencePieceNormalizer(rule_name="nmt_nfkc").serialized_model_proto()
    at = spec.index(b"nmt_nfkc") + len(b"nmt_nfkc") + 1
    size, shift = 0, 0
    while True:
        size |= (spec[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if spec[at - 1] < 128:
            return spec[at : at + size]


def test_a_plain_model_is_read() -> None:
    read = parse_model(model())
    assert read.pieces == [text for text, _ in PIECES]
    assert read.types == [kind for _, kind in PIECES]
    assert read.lossless


@pytest.mark.parametrize(
    "normaliser", [part(3, 1) + part(4, 0), part(3, 0) + part(4, 1), b"", part(2, charsmap())]
)
def test_a_normaliser_that_changes_text_is_not_lossless(normaliser: bytes) -> None:
    assert not parse_model(model(normaliser=normaliser)).lossless


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "has 0 bytes"),
        (b"\x00" * 16_000_001, "16000001 bytes"),
        (b"not a model\x00", "unknown kind"),
        (model()[:-1], "cut short|bytes but"),
        (model() + b"\x0a\xff\xff\xff\xff\x7f", "announces 34359738367 bytes but 0 are left"),
        (model() + b"\x0a" + b"\xff" * 11, "is too long"),
        (model() + b"\x0b", "unknown kind"),
        (model(rest=part(2, part(3, 2))), "repeated part number 2"),
        (model(rest=part(4, b"x")), "part number 4"),
        (model(rest=part(5, b"x")), "part number 5"),
        (model(rest=part(900, 3)), "part number 900"),
        (model([*PIECES, ("a", 1)]), "two of its pieces are equal"),
        (model([*PIECES, ("", 1)]), "has 0 bytes and kind 1"),
        (model([*PIECES, ("b" * 1025, 1)]), "has 1025 bytes"),
        (model([*PIECES, ("b", 7)]), "kind 7"),
        (model(rest=piece(b"\xff", 1)), "piece 262 is not UTF-8"),
        (model(rest=piece("b", 1, float("nan"))), "the score nan"),
        (model(rest=part(1, part(9, 1))), "unexpected part number 9"),
        (model([p for p in PIECES if p[0] != "<0x7F>"]), "255 of the 256 byte pieces"),
        (model([*PIECES, ("<0x100>", 6)]), "256 of the 256 byte pieces"),
        (model([p for p in PIECES if p[0] != "\u2581"]), "no piece for a single space"),
        (model([p for p in PIECES if p[0] != "<s>"]), "no control piece '<s>'"),
        (model([(t, 1 if t == "<s>" else k) for t, k in PIECES]), "no control piece '<s>'"),
        (model(trainer=part(3, 2) + part(35, 1) + part(46, b"<go>")), "no control piece '<go>'"),
        (model(trainer=part(3, 2)), "byte fallback is off"),
        (model(trainer=part(3, 4) + part(35, 1)), "model type is 4"),
        (model(trainer=part(3, 2) + part(35, 1) + part(24, 1)), "spaces at the end"),
        (model(normaliser=part(5, 0)), "does not mark spaces"),
        (model(normaliser=part(2, 5)), "not a byte string"),
        (model(normaliser=part(2, b"abc")), "cut short"),
        (model([*PIECES, *((f"x{i}", 1) for i in range(65_300))]), "more than 65535 pieces"),
    ],
)
def test_a_bad_model_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        parse_model(data)
    assert "not a usable SentencePiece model" in str(caught.value)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (
            b'{"version": "1.0", "added_tokens": [], "model": {}}',
            r"a Hugging Face tokenizer \(JSON\)",
        ),
        (b'\n {"tokenizer_class": "LlamaTokenizer"}', r"a Hugging Face tokenizer \(JSON\)"),
        ('{"\u0120the": 0, "\u00e9": 1}'.encode(), "a JSON file"),
        (b"IQ== 0\nIg== 1\n", "a tiktoken file"),
        (b"IQ== 0\r\nIg== 1\r\n", "a tiktoken file"),
        ("<pad>\t0\n\u2581the\t-1.25\n".encode(), r"a list of pieces \(\.vocab\)"),
        ('["\u00a0", "\u2028"]'.encode(), "a JSON file"),
        (b"#version: 0.2\nt h\n", "a text file"),
        (("x" * 4095 + "\u00e9").encode(), "a text file"),
    ],
)
def test_other_kinds_of_file_are_named(data: bytes, kind: str) -> None:
    with pytest.raises(
        UserError, match=rf": it is {kind}.*; name a SentencePiece file \(\.model\)$"
    ):
        parse_model(data)


def test_damaged_models_are_not_another_kind() -> None:
    for data in (
        model()[:-1],
        model() + b"\x0b",
        model(rest=part(4, b"x")),
        bytes(40),
        b"PK\x03\x04",
    ):
        with pytest.raises(UserError) as caught:
            parse_model(data)
        assert "name a SentencePiece file" not in str(caught.value)


def test_tables_that_lead_outside_are_refused() -> None:
    good = charsmap()
    far = good[:4] + struct.pack("<I", 0x3FFFFF << 10) + good[8:]
    short = good[:-1000] + b"\x00"
    for bad in (far, short, good[:2000], b"\xff" * 4 + good[4:], good[:-1] + b"x"):
        with pytest.raises(UserError, match=r"its own tables|cut short"):
            parse_model(model(normaliser=part(2, bad)))


def follow(units: list[int], strings: int, key: bytes) -> bool:
    """Walk the trie as darts-clone does, with every read checked; False for one outside."""
    offset = lambda unit: (unit >> 10) << ((unit & 0x200) >> 6)  # noqa: E731
    at = offset(units[0])
    for byte in key:
        at ^= byte
        if at >= len(units):
            return False
        unit = units[at]
        if unit & 0x800000FF != byte:
            return True
        at ^= offset(unit)
        if unit >> 8 & 1 and (at >= len(units) or units[at] & 0x7FFFFFFF >= strings):
            return False
    return True


@pytest.mark.long
@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 2**32 - 1)), max_size=3))
def test_accepted_tables_never_lead_outside(damage: list[tuple[int, int]]) -> None:
    good = charsmap()
    size = int.from_bytes(good[:4], "little")
    units = list(struct.unpack(f"<{size // 4}I", good[4 : 4 + size]))
    for at, value in damage:
        units[at % len(units)] = value
    raw = good[:4] + struct.pack(f"<{len(units)}I", *units) + good[4 + size :]
    try:
        parse_model(model(normaliser=part(2, raw)))
    except UserError:
        return
    for code in range(0x80, 0x3100, 5):
        assert follow(units, len(good) - 4 - size, chr(code).encode())
