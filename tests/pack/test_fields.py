"""Every field of an artifact: wrong, missing or one too many, and every bound.

Numbers are spelt out here, not taken from the modules: a bound that moves must be noticed.
"""

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pack.forged import RAW, Change, refuse, section
from specimens import (
    PROVENANCE,
    TINY,
    WORDS,
    change,
    fancy,
    header_of,
    quantised,
    striped,
)  # fmt: skip

from fairway.config.settings import PackConfig
from fairway.pack import artifact
from fairway.pack.artifact import load_artifact, save_artifact
from fairway.quantise.gptq import QuantisedModel
from fairway.quantise.grid import QuantisedTensor, restore, scale_of

WITH_WORDS = {"with_tokenizer": True}
AMENDED = ["tok_emb.weight", "blocks.0.mlp.proj.weight", "blocks.1.mlp.proj.weight"]


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        ("scales", {"log_steps": False, "columns": False}),
        ("scales, coded", {"log_steps": False, "columns": False}),
        ("steps", {"log_steps": True, "columns": False}),
        ("columns", {"log_steps": True, "columns": True}),
        ("columns, coded", {"log_steps": True, "columns": True}),
        (
            "corrections",
            {
                "log_steps": False,
                "columns": False,
                "corrections": {"rank": 8, "matrices": AMENDED},
            },
        ),
    ],
)
def test_the_header_says_how_scales_are_written(
    kept: dict[str, bytes], kind: str, flags: dict[str, Any]
) -> None:
    data = kept[kind]
    assert data[:12] == b"FAIRWAY\0" + struct.pack("<I", 5)
    header = header_of(data)
    fields = {"model", "min_numel", "provenance", "sections", "tokenizer_digest"}
    assert set(header) == fields | set(flags)
    assert {key: header[key] for key in flags} == flags
    fields = {"name", "kind", "bits", "codec", "stride", "trellis", "bytes", "raw_bytes", "sha256"}
    for entry in header["sections"]:
        assert set(entry) == fields


@pytest.mark.parametrize("version", [0, 1, 2, 3, 4, 6, 2**31, 2**32 - 1])
def test_any_other_version_is_refused_by_its_number(
    kept: dict[str, bytes], tmp_path: Path, version: int
) -> None:
    path = tmp_path / "a.fwy"
    path.write_bytes(kept["steps"][:8] + struct.pack("<I", version) + kept["steps"][12:])
    told = f"the file has format version {version}, but this Fairway reads only version 5; pack"
    refuse(path, told)


@pytest.mark.parametrize("kind", ["scales", "steps", "columns"])
@pytest.mark.parametrize("flag", ["log_steps", "columns"])
def test_flags_are_all_there_and_true_or_false(
    forge: Callable[[str, Change], Path], kind: str, flag: str
) -> None:
    refuse(forge(kind, lambda header: header.pop(flag) and None), "header must have exactly the f")
    refuse(forge(kind, change("orders", to=False)), "header must have exactly the f")
    for value in (0, 1, None, "true", 1.0, []):
        told = f"{flag} is .*; it must be true or false"
        refuse(forge(kind, change(flag, to=value)), told)


@pytest.mark.parametrize(
    ("kind", "flag", "value", "told"),
    [
        ("scales", "log_steps", True, "do not match the model"),
        ("scales", "columns", True, "steps for columns but none for rows"),
        ("steps", "log_steps", False, "do not match the model"),
        ("steps", "columns", True, "do not match the model"),
        ("columns", "log_steps", False, "steps for columns but none for rows"),
        ("columns", "columns", False, "do not match the model"),
    ],
)
def test_a_flag_is_held_to_the_sections(
    forge: Callable[[str, Change], Path], kind: str, flag: str, value: bool, told: str
) -> None:
    refuse(forge(kind, change(flag, to=value)), told)


@pytest.mark.parametrize("kind", ["scales", "steps", "columns"])
def test_every_field_of_a_section_is_needed_and_of_its_type(
    kept: dict[str, bytes], forge: Callable[[str, Change], Path], kind: str
) -> None:
    entries = header_of(kept[kind])["sections"]
    for place in (0, len(entries) - 1):
        entry = entries[place]
        for key in entry:
            path = forge(kind, lambda header, p=place, k=key: header["sections"][p].pop(k) and None)
            refuse(path, "a section must have exactly the fields")
        refuse(forge(kind, change("sections", place, "more", to=0)), "a section must have exactly")
    for key in ("bits", "stride", "bytes", "raw_bytes"):
        for value in (None, True, "8", float(entry[key]), -1):
            told = f"of section '{entry['name']}' is .*; it must be a whole number from"
            refuse(forge(kind, change("sections", place, key, to=value)), told)


@pytest.mark.parametrize(
    ("where", "to", "told"),
    [
        (("corrections",), None, "the header's corrections must have exactly the fields matrices,"),
        (("corrections", "more"), 1, "the header's corrections must have exactly the fields"),
        (("corrections", "rank"), 0, "the rank of corrections is 0; it must be .* from 1 to 64"),
        (("corrections", "rank"), 65, "the rank of corrections is 65; it must be"),
        (("corrections", "rank"), True, "the rank of corrections is True; it must be"),
        (("corrections", "rank"), 7, "do not match the model"),
        (("corrections", "matrices"), [], "name no list of matrices"),
        (("corrections", "matrices"), "tok_emb.weight", "name no list of matrices"),
        (("corrections", "matrices"), [1], "name no list of matrices"),
        (("corrections", "matrices"), ["tok_emb.weight"], "do not match the model"),
        (("corrections", "matrices"), ["q_gain"], "not of matrices with codes, in order"),
        (("corrections", "matrices"), ["tok_emb.weight"] * 2, "not of matrices with codes, in"),
    ],
)
def test_corrections_are_held_to_the_model(
    forge: Callable[[str, Change], Path], where: tuple[Any, ...], to: Any, told: str
) -> None:
    refuse(forge("corrections", change(*where, to=to)), told)


def test_corrections_are_named_where_there_are_such(
    forge: Callable[[str, Change], Path],
) -> None:
    named = {"rank": 8, "matrices": ["tok_emb.weight"]}
    refuse(forge("scales", change("corrections", to=named)), "do not match the model")
    without = forge("corrections", lambda header: header.pop("corrections") and None)
    refuse(without, "do not match the model")
    # A rank above what a side of every matrix has changes nothing.
    load_artifact(forge("corrections", change("corrections", "rank", to=64)))


@pytest.mark.parametrize(
    ("kind", "name", "told"),
    [
        ("steps", "vectors", "section 'vectors' has the unknown codec 'cabac'"),
        ("steps", "tokenizer", "section 'tokenizer' has the unknown codec 'cabac'"),
        ("columns", "columns", "section 'columns' has the unknown codec 'cabac'"),
        ("steps", "steps", "in section 'steps' a cabac stream is damaged"),
        ("steps", "embedding", "in section 'embedding' a cabac stream is damaged"),
    ],
)
def test_the_entropy_coder_has_its_sections(
    forge: Callable[[str, Change], Path], kind: str, name: str, told: str
) -> None:
    refuse(forge(kind, section(name, "codec", "cabac")), told)


def test_each_section_has_the_codec_and_the_stride_that_suit_it(tmp_path: Path) -> None:
    def found(make: Callable[[], QuantisedModel], pack: PackConfig) -> dict[str, tuple[str, int]]:
        save_artifact(tmp_path / "a.fwy", make(), TINY, pack, WORDS, PROVENANCE)
        entries = header_of((tmp_path / "a.fwy").read_bytes())["sections"]
        return {entry["name"]: (entry["codec"], entry["stride"]) for entry in entries}

    codes = {"embedding", "query", "attention output", "MLP up", "MLP down"}
    two, one = ("brotli", 2), ("brotli", 1)
    pack = PackConfig(codec="brotli", **WITH_WORDS)
    wanted = dict.fromkeys(codes, one) | {"scales": two, "vectors": two, "tokenizer": one}
    assert found(quantised, pack) == wanted
    wanted = dict.fromkeys(codes, one) | {
        "steps": two, "columns": one, "vectors": two, "tokenizer": one
    }  # fmt: skip
    assert found(striped, pack) == wanted
    wanted = dict.fromkeys(codes, ("cabac", 1)) | {
        "steps": ("cabac", 1), "columns": one, "vectors": two, "tokenizer": one
    }  # fmt: skip
    assert found(striped, replace(pack, codec="cabac")) == wanted
    raw = {name: ("raw", stride) for name, (_, stride) in found(striped, pack).items()}
    assert found(striped, replace(pack, codec="raw")) == raw

    def repeating() -> QuantisedModel:
        state = fancy()
        for name, tensor in state.items():
            if isinstance(tensor, QuantisedTensor):
                steps = (torch.arange(len(tensor.codes)) * 31 % 2 * 400 - 300).short()
                state[name] = replace(tensor, scale_steps=steps, scale=scale_of(steps))
        return state

    # Brotli sees what repeats.
    assert found(repeating, replace(pack, codec="cabac"))["steps"] == two


@pytest.mark.parametrize("codec", ["raw", "lzma", "brotli"])
@pytest.mark.parametrize("stride", [1, 16])
def test_every_stride_is_read(
    tmp_path: Path, codec: str, stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifact, "_STRIDE", stride)
    pack = PackConfig(codec=codec)
    save_artifact(tmp_path / "a.fwy", striped(), TINY, pack, WORDS, PROVENANCE)
    found = load_artifact(tmp_path / "a.fwy").state
    for name, tensor in striped().items():
        wanted = restore(tensor) if isinstance(tensor, QuantisedTensor) else tensor.float()
        assert torch.equal(found[name], wanted)


@pytest.mark.parametrize("headline", ["auto", "sliding", "ttt", "mixture"])
def test_an_artifact_is_read_whichever_score_its_run_claims(headline: str, tmp_path: Path) -> None:
    provenance = {**PROVENANCE, "score": {**PROVENANCE["score"], "headline": headline}}  # type: ignore[dict-item]
    save_artifact(tmp_path / "a.fwy", quantised(), TINY, RAW, WORDS, provenance)
    assert load_artifact(tmp_path / "a.fwy").header["provenance"] == provenance


def test_strides_have_bounds(forge: Callable[[str, Change], Path]) -> None:
    for stride in (0, 17):
        path = forge("steps", section("vectors", "stride", stride))
        refuse(
            path, f"stride of section 'vectors' is {stride}; it must be a whole number from 1 to 16"
        )


def test_lengths_have_bounds(forge: Callable[[str, Change], Path]) -> None:
    for key, what in (("bytes", "the length"), ("raw_bytes", "the raw length")):
        path = forge("steps", section("steps", key, 2**40 + 1))
        refuse(path, f"{what} of section 'steps' is {2**40 + 1}; it must be a whole")
    refuse(forge("steps", section("steps", "bytes", 2**40)), "but its header describes")
    refuse(forge("steps", section("steps", "raw_bytes", 2**40)), "do not match the model")
    refuse(forge("steps", change("min_numel", to=2**40)), "do not match the model")
    refuse(
        forge("steps", change("min_numel", to=2**40 + 1)), "min_numel is 1099511627777; it must be"
    )
    # Sixteen digits are read, seventeen are not.
    refuse(forge("steps", change("min_numel", to=10**15)), "min_numel is 1000000000000000;")
    refuse(forge("steps", change("min_numel", to=10**16)), "the header is not valid JSON")


@pytest.mark.parametrize("off", [-1, 1])
@pytest.mark.parametrize("name", ["embedding", "steps", "columns", "vectors"])
def test_raw_lengths_follow_from_the_model(
    kept: dict[str, bytes], forge: Callable[[str, Change], Path], name: str, off: int
) -> None:
    [entry] = [e for e in header_of(kept["columns"])["sections"] if e["name"] == name]
    refuse(
        forge("columns", section(name, "raw_bytes", entry["raw_bytes"] + off)),
        "do not match the mod",
    )


def test_a_tokenizer_comes_last_under_its_name_and_within_16_mib(
    forge: Callable[[str, Change], Path],
) -> None:
    for to in (2**24 + 1, 2**24):
        path = forge("steps", section("tokenizer", "raw_bytes", to))
        above = "the length of the tokenizer is 16777217; .* number from 0 to 16777216"
        refuse(path, above if to > 2**24 else "decode to")
    refuse(forge("steps", section("tokenizer", "name", "words")), "do not match the model")
    refuse(forge("steps", section("tokenizer", "kind", "codes")), "do not match the model")

    def doubled(header: dict[str, Any]) -> None:
        header["sections"].append(dict(header["sections"][-1]))

    def first(header: dict[str, Any]) -> None:
        header["sections"].insert(0, header["sections"].pop())

    refuse(forge("steps", doubled), "do not match the model")
    refuse(forge("steps", first), "do not match the model")


def test_a_file_unfolds_to_16_times_its_size_and_4_mib(
    kept: dict[str, bytes], forge: Callable[[str, Change], Path]
) -> None:
    sections = header_of(kept["steps"])["sections"]
    others = sum(entry["raw_bytes"] for entry in sections[:-1])
    size = len(forge("steps", section("tokenizer", "raw_bytes", 4_000_000)).read_bytes())
    most = 4_194_304 + 16 * size - others
    assert 10**6 <= most < 10**7 - 1
    inside = forge("steps", section("tokenizer", "raw_bytes", most))
    assert len(inside.read_bytes()) == size
    refuse(inside, f"in section 'tokenizer' a raw stream does not hold the {most} bytes it should")
    told = f"{size} bytes decode to {4_194_305 + 16 * size}, more than 16 times as many; no tr"
    refuse(forge("steps", section("tokenizer", "raw_bytes", most + 1)), told)


def test_a_header_has_at_most_65_536_bytes(forge: Callable[[str, Change], Path]) -> None:
    def long(total: int) -> Path:
        path = forge("steps", change("provenance", "recipe", to=""))
        length = struct.unpack_from("<I", path.read_bytes(), 12)[0]
        return forge("steps", change("provenance", "recipe", to="x" * (total - length)))

    assert len(load_artifact(long(65_536)).header["provenance"]["recipe"]) > 50_000
    refuse(long(65_537), "the header claims 65537 bytes; at most 65536 are read")


@pytest.mark.parametrize("key", sorted(PROVENANCE))
def test_provenance_is_complete_and_of_its_types(
    forge: Callable[[str, Change], Path], key: str
) -> None:
    told = "the provenance must have exactly the fields fairway, looping, recipe, recipe_hash, sc"
    refuse(forge("columns", lambda header: header["provenance"].pop(key) and None), told)
    others = {str: 1, int: True, bool: 1, dict: []}[type(PROVENANCE[key])]
    for value in (others, None):
        refuse(forge("columns", change("provenance", key, to=value)), f"the provenance has {key} ")
    load_artifact(forge("columns", change("provenance", "seed", to=-7)))
    odd = forge("columns", change("provenance", "score", "speed", to=1))
    refuse(odd, r"unknown config field 'score\.speed'")


@pytest.mark.parametrize("digest", ["0" * 63, "0" * 65, "A" * 64, "g" * 64, "", None, 0, []])
def test_digests_are_64_small_hexadecimal_digits(
    forge: Callable[[str, Change], Path], digest: Any
) -> None:
    told = "the digest of section 'steps' is not a SHA-256 in hex"
    refuse(forge("columns", section("steps", "sha256", digest)), told)
    refuse(
        forge("columns", change("tokenizer_digest", to=digest)),
        "the tokenizer's digest is not a SHA",
    )
