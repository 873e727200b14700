"""Artifacts that are damaged, cut, forged, or not artifacts at all."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pack.forged import BROTLI, RAW, forged, save
from specimens import (
    PUNY,
    change,
    header_of,
    quantised,
)

from fairway.base.errors import UserError
from fairway.base.files import digest_bytes
from fairway.pack.artifact import account, load_artifact
from fairway.quantise.gptq import dequantise


def places(data: bytes) -> list[int]:
    """Return all bytes before the header, both ends of every section, and one of 23 elsewhere."""
    ends = [48 + int.from_bytes(data[12:16], "little")]
    for entry in header_of(data)["sections"]:
        ends.append(ends[-1] + entry["bytes"])
    near = {end + n for end in ends for n in (-2, -1, 0, 1)}
    return [n for n in range(len(data)) if n < 48 or n in near or n % 23 == 0]


def test_a_flipped_byte_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.fwy", BROTLI, PUNY)
    data = path.read_bytes()
    for position in places(data):
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"a\.fwy: "):
            load_artifact(path)


def test_a_truncation_and_any_tail_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.fwy", BROTLI, PUNY)
    data = path.read_bytes()
    for length in places(data):
        path.write_bytes(data[:length])
        with pytest.raises(UserError, match=r"a\.fwy: "):
            account(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(UserError, match=r"but its header describes"):
        load_artifact(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the artifact .*none\.fwy does not exist"):
        load_artifact(tmp_path / "none.fwy")
    with pytest.raises(UserError, match="cannot read the artifact"):
        load_artifact(tmp_path)
    (tmp_path / "x").write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(UserError, match="x: this is not a Fairway artifact"):
        account(tmp_path / "x")


def test_the_forger_can_write_a_good_file(tmp_path: Path) -> None:
    load_artifact(forged(tmp_path / "a.fwy", lambda header: None))


@pytest.mark.parametrize(
    ("forge", "message"),
    [
        (change("model", "num_layers", to=10**9), "model.num_layers is 1,000,000,000; it must be"),
        (change("model", "dim", to=-8), "model.dim is -8"),
        (change("model", "dim", to=8.5), "wrong type"),
        (change("model", "dim", to=16), "do not match the model"),
        (change("model", "dim", to=16384), "do not match the model"),
        (change("model", "num_heads", to=3), "does not divide"),
        (change("model", "qk_gain", to=10**30), "not valid JSON"),
        (change("model", "speed", to=1), r"unknown config field 'model\.speed'"),
        (change("model", to=[]), "must be an object"),
        (change("min_numel", to=10**9), "do not match the model"),
        (change("min_numel", to=-1), "min_numel is -1"),
        (change("min_numel", to=True), "min_numel is True"),
        (change("extra", to=1), "the header must have exactly the fields"),
        (change("tokenizer_digest", to="A" * 64), "the tokenizer's digest is not a SHA-256"),
        (change("tokenizer_digest", to=0), "the tokenizer's digest is not a SHA-256"),
        (change("provenance", "looping", to=1), "the provenance has looping 1, not a bool"),
        (change("provenance", "host", to="h"), "the provenance must have exactly"),
        (change("provenance", "score", "stride", to=0), r"score\.stride is 0"),
        (change("provenance", to=None), "the provenance must have exactly"),
        (change("sections", to={}), "the section table is not a list"),
        (change("sections", to=[]), "do not match the model"),
        (change("sections", 0, to=7), "a section must have exactly the fields"),
        (change("sections", 0, "bytes", to=2**40), "but its header describes"),
        (change("sections", 0, "bytes", to=2**40 + 1), "the length of section 'embedding' is"),
        (change("sections", 0, "bytes", to=-1), "the length of section 'embedding' is -1"),
        (change("sections", 0, "bytes", to=2.0), "the length of section 'embedding' is 2.0"),
        (change("sections", 0, "raw_bytes", to=2**40), "do not match the model"),
        (change("sections", 0, "bits", to=17), "the bits of section 'embedding' is 17"),
        (change("sections", 0, "bits", to=4), "holds a code of"),
        (change("sections", 0, "codec", to="zip"), "unknown codec 'zip'"),
        (change("sections", 0, "codec", to=["raw"]), "unknown codec"),
        (change("sections", 0, "codec", to="lzma"), "in section 'embedding' a lzma stream is dam"),
        (change("sections", 0, "codec", to="brotli"), "in section 'embedding' a brotli stream"),
        (change("sections", 0, "stride", to=17), "the stride of section 'embedding' is 17"),
        (change("sections", 0, "kind", to="scales"), "the bits of section 'embedding' is 8"),
        (change("sections", 0, "kind", to={}), "the bits of section 'embedding' is 8"),
        (change("sections", 0, "name", to=3), "section '3'"),
        (change("sections", 0, "name", to="vectors"), "do not match the model"),
        (change("sections", 0, "sha256", to="0" * 64), "section 'embedding' is damaged"),
        (change("sections", 0, "sha256", to="0" * 63), "digest of section 'embedding' is not"),
        (lambda h: h["sections"].pop() and None, "do not match the model"),
        (lambda h: h["sections"].append(h["sections"][0]), "do not match the model"),
        (lambda h: h["sections"].reverse(), "do not match the model"),
        (lambda h: h.pop("model") and None, "the header must have exactly the fields"),
        (lambda h: b"[]", "the header must have exactly the fields"),
        (lambda h: b"{", "the header is not valid JSON"),
        (lambda h: b"\xff", "the header is not valid JSON"),
        (lambda h: b"NaN", "the header is not valid JSON"),
        (lambda h: b"1e999", "the header is not valid JSON"),
        (lambda h: b"9" * 5000, "the header is not valid JSON"),
        (lambda h: b"[" * 60_000, "the header is not valid JSON"),
        (lambda h: b'{"a":1,"a":1}', "the header is not in its canonical form"),
        (lambda h: json.dumps(h).encode(), "the header is not in its canonical form"),
        (lambda h: b" " * 65_537, "the header claims 65537 bytes; at most 65536"),
    ],
)
def test_forged_headers_are_refused(
    tmp_path: Path, forge: Callable[[dict[str, Any]], Any], message: str
) -> None:
    path = forged(tmp_path / "a.fwy", forge)
    with pytest.raises(UserError, match=message) as caught:
        load_artifact(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_a_tokenizer_of_another_digest_is_refused(tmp_path: Path) -> None:
    other = change("tokenizer_digest", to="0" * 64)
    path = forged(tmp_path / "a.fwy", other, pack=replace(RAW, with_tokenizer=True))
    with pytest.raises(UserError, match="the tokenizer inside is not the one"):
        load_artifact(path)


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.fwy")
    counts = account(path)
    data = bytearray(path.read_bytes())
    for section, message in (("scales", "tok_emb.weight holds"), ("vectors", "holds a number")):
        broken = bytearray(data)
        first = 0
        for name, count in counts:
            if name == section:
                # Shuffled by 2: upper bytes lie in the second half. 0x7c is infinity's.
                broken[first + count // 2] = 0x7C
                broken[first] = 0
                digest = digest_bytes(bytes(broken[first : first + count]))
                index = [name for name, _ in counts[2:]].index(section)
                tail = bytes(broken[counts[0][1] + counts[1][1] :])
            first += count
        forged(path, change("sections", index, "sha256", to=digest), tail)
        with pytest.raises(UserError, match=message):
            load_artifact(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda node: (
        st.lists(node, max_size=3) | st.dictionaries(st.text(max_size=5), node, max_size=3)
    ),
    max_leaves=5,
)


@pytest.mark.long
@settings(
    deadline=None,
    max_examples=75,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data(), value=JSON)
def test_any_value_anywhere_in_the_header_is_refused_or_harmless(
    tmp_path: Path, data: st.DataObject, value: Any
) -> None:
    def replace_somewhere(header: dict[str, Any]) -> bytes:
        node: Any = header
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            key = data.draw(st.sampled_from(keys))
            if not isinstance(node[key], (dict, list)) or not node[key] or data.draw(st.booleans()):
                node[key] = value
                break
            node = node[key]
        return json.dumps(header, sort_keys=True, separators=(",", ":")).encode()

    path = forged(tmp_path / "a.fwy", replace_somewhere)
    try:
        loaded = load_artifact(path)
    except UserError as error:
        assert str(error).startswith(str(path))
        return
    shapes = {name: tuple(weight.shape) for name, weight in loaded.state.items()}
    assert shapes == {name: tuple(w.shape) for name, w in dequantise(quantised()).items()}
