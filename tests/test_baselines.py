import argparse
import lzma
import optparse
import shutil
import subprocess
from pathlib import Path

import brotli
import pyppmd
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from fairway.base.errors import UserError
from fairway.score import baselines
from fairway.submission.card import _scores

TEXT = Path(argparse.__file__).read_text(encoding="utf-8")[:40_000]
PRIME = Path(optparse.__file__).read_text(encoding="utf-8")

TOOLS = {
    "xz": ["xz", "-9e", "-T1", "-c"],
    "brotli": ["brotli", "-q", "11", "-w", "24", "-c"],
    "zstd": ["zstd", "-19", "-q", "-c"],
}


NAMES = [*TOOLS, "ppmd"]


@pytest.fixture(scope="module")
def measured():
    return baselines.measure([TEXT[:100], TEXT[100:]], [PRIME, "not this: "], prime_bytes=30_000)


def unprimed_zstd(data: bytes, dictionary: bytes) -> bytes:
    raw = zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    return zstandard.ZstdDecompressor(dict_data=raw).decompress(data)


def test_every_file_decompresses_to_the_text():
    text = TEXT.encode()
    assert lzma.decompress(baselines.xz_file(text), lzma.FORMAT_XZ) == text
    assert brotli.decompress(baselines.brotli_file(text)) == text
    assert zstandard.ZstdDecompressor().decompress(baselines.zstd_file(text)) == text


def test_primed_bytes_restore_the_text_given_what_primed_them():
    text, prime = TEXT.encode(), PRIME.encode()
    head, added = baselines.brotli_streams(prime, text)
    assert brotli.decompress(head + added) == prime + text
    assert unprimed_zstd(baselines.zstd_file(text, prime), prime) == text


@pytest.mark.parametrize("name", TOOLS)
def test_sizes_are_those_of_the_tools(name, measured, tmp_path):
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    path = tmp_path / "text"
    path.write_bytes(TEXT.encode())
    told = len(subprocess.run([*TOOLS[name], path], capture_output=True, check=True).stdout)
    # Another version of the tool than the library's may differ by a little.
    assert measured[name]["bytes"] == pytest.approx(told, rel=0.005)


def test_joined_documents_are_coded_without_separators(measured):
    text = TEXT.encode()
    assert measured["xz"]["bytes"] == len(baselines.xz_file(text))
    assert measured["xz"]["bpb"] == pytest.approx(8 * measured["xz"]["bytes"] / len(text))


@pytest.mark.parametrize("name", NAMES)
def test_priming_with_like_text_helps(name, measured):
    found = measured[name]
    assert 0 < found["primed_bytes"] < found["bytes"]
    assert found["primed_bpb"] == pytest.approx(8 * found["primed_bytes"] / len(TEXT.encode()))
    assert found["primed_with_bytes"] == 30_000
    assert found["seconds"] > 0 and "primed" in found["how"]


def test_primed_xz_is_the_difference_of_two_files(measured):
    prime, text = PRIME.encode()[-30_000:], TEXT.encode()
    both, alone = baselines.xz_file(prime + text), baselines.xz_file(prime)
    assert measured["xz"]["primed_bytes"] == len(both) - len(alone)


@pytest.mark.parametrize("prime", ["", PRIME, "ü" * 100])
def test_ppmd_restores_the_text_after_what_primed_it(prime):
    whole = prime.encode() + TEXT.encode()
    head, added = baselines.ppmd_streams(prime.encode(), TEXT.encode())
    decoder = pyppmd.Ppmd7Decoder(16, baselines.ppmd_memory(len(whole)))
    restored = decoder.decode(head + added, len(whole))
    while len(restored) < len(whole):
        restored += decoder.decode(b"\0", len(whole) - len(restored))
    assert restored == whole


def test_ppmd_is_the_strongest_and_sees_more_text(measured):
    assert min(measured, key=lambda name: measured[name]["bytes"]) == "ppmd"
    prime = [PRIME, "x" * baselines.PRIME_BYTES]
    found = baselines.measure([TEXT[:500]], prime)
    assert found["zstd"]["primed_with_bytes"] == baselines.PRIME_BYTES
    assert found["ppmd"]["primed_with_bytes"] == baselines.PRIME_BYTES + len(PRIME.encode())


def test_without_pyppmd_the_others_are_measured(monkeypatch):
    monkeypatch.setattr(baselines.importlib.util, "find_spec", lambda name: None)
    assert list(baselines.measure(["some text"], [])) == list(TOOLS)
    assert baselines.missing() == ["PPMd, order 16"]


def test_order_is_fixed_and_no_training_text_leaves_primed_empty():
    found = baselines.measure(["some text"], [])
    assert list(found) == NAMES
    for tool in found.values():
        assert tool["primed_bytes"] is None and tool["primed_bpb"] is None
        assert tool["primed_with_bytes"] == 0 and tool["bytes"] > 0


def test_of_a_long_text_only_the_first_bytes_are_compressed(monkeypatch):
    monkeypatch.setattr(baselines, "MOST_BYTES", 1000)
    found = baselines.measure([TEXT[:700], "é" * 200, TEXT], [])
    whole = baselines.measure([TEXT[:700] + "é" * 150], [])
    for name, tool in found.items():
        assert tool["text_bytes"] == 1000 == whole[name]["text_bytes"]
        assert (tool["bytes"], tool["bpb"]) == (whole[name]["bytes"], whole[name]["bpb"])


@pytest.mark.parametrize("documents", [[], [""], ["", ""]])
def test_no_text_is_one_sentence(documents):
    with pytest.raises(UserError, match="validation text is empty"):
        baselines.measure(documents, ["training text"])


@given(st.lists(st.text(max_size=12), max_size=8), st.integers(0, 40))
def test_last_bytes_are_the_end_of_all_texts_joined(texts, limit_bytes):
    joined = "".join(texts).encode()
    expected = joined[max(0, len(joined) - limit_bytes) :]
    assert baselines.last_bytes(reversed(texts), limit_bytes) == expected


def test_texts_before_the_last_bytes_are_not_asked_for():
    pieces = (f"{i:04d}" for i in range(4999, -1, -1))
    assert baselines.last_bytes(pieces, 6) == b"984999"
    assert next(pieces) == "4997"


def test_a_part_of_the_text_is_told_of_every_kind_of_results():
    tool = {"bpb": 2.0, "primed_bpb": None}
    assert baselines.part_bytes({"xz": {**tool, "text_bytes": 40}}, 100) == 40
    # All of the text; results of earlier versions; no compressors.
    assert baselines.part_bytes({"xz": {**tool, "text_bytes": 100}}, 100) is None
    assert baselines.part_bytes({"xz": tool}, 100) is None
    assert baselines.part_bytes({}, 100) is None and baselines.part_bytes(None, 100) is None


def test_a_card_says_what_the_compressors_read():
    tools = {"xz": {"bpb": 2.0, "text_bytes": 8_000_000}}
    results = {"text": {"bytes": 9_000_000}, "stages": {}, "baselines": tools}
    assert "| baseline: xz, first 8,000,000 bytes | 2.0000 |" in _scores(results)
