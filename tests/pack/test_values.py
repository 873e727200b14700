"""Numbers inside an artifact: each just inside and just outside its bounds, and damage."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pack.forged import CABAC, KINDS, RAW, Change, refuse, section
from specimens import (
    PROVENANCE,
    PUNY,
    WORDS,
    fancy,
    header_of,
    quantised,
    resealed,
)  # fmt: skip

from fairway.pack.artifact import load_artifact, save_artifact
from fairway.quantise.grid import QuantisedTensor, restore

# What a section of each kind may have: fields, values just inside, values just outside.
BITS = [
    ("scales", "embedding", (8,), (1, 17)),
    ("scales", "scales", (16,), (15, 17)),
    ("scales", "vectors", (16,), (15, 17)),
    ("scales", "tokenizer", (8,), (7, 9)),
    ("steps", "embedding", (10, 16), (1, 17)),
    ("steps", "steps", (16,), (15, 17)),
    ("columns", "columns", (8,), (7, 9)),
    ("corrections", "left factors", (2,), (1, 3)),
    ("corrections", "right factors", (4,), (3, 8)),
    ("corrections", "factor scales", (16,), (8, 17)),
]


@pytest.mark.parametrize(("kind", "name", "inside", "outside"), BITS)
def test_bits_have_bounds_by_kind(
    forge: Callable[[str, Change], Path],
    kind: str,
    name: str,
    inside: tuple[int, ...],
    outside: tuple[int, ...],
) -> None:
    for bits in inside:
        load_artifact(forge(kind, section(name, "bits", bits)))
    for bits in outside:
        refuse(forge(kind, section(name, "bits", bits)), f"the bits of section '{name}' is {bits};")


@pytest.mark.parametrize("bits", [2, 8, 9])
def test_codes_of_two_bits_are_the_narrowest_and_nine_take_two_bytes(
    tmp_path: Path, bits: int
) -> None:
    state = quantised(PUNY)
    for name, tensor in state.items():
        if isinstance(tensor, QuantisedTensor):
            codes = tensor.codes.sign().short() * (2 ** (bits - 1) - 1)
            state[name] = replace(tensor, codes=codes if bits > 8 else codes.char(), bits=bits)
    for pack in (RAW, CABAC):
        save_artifact(tmp_path / "a.fwy", state, PUNY, pack, WORDS, PROVENANCE)
        header = header_of((tmp_path / "a.fwy").read_bytes())
        assert {e["bits"] for e in header["sections"] if e["kind"] == "codes"} == {bits}
        for name, tensor in state.items():
            if isinstance(tensor, QuantisedTensor):
                found = load_artifact(tmp_path / "a.fwy").state[name]
                assert torch.equal(found, restore(tensor)), name


@pytest.mark.parametrize("kind", ["scales", "steps", "columns"])
def test_a_code_is_within_its_bits_on_both_sides(
    kept: dict[str, bytes], tmp_path: Path, kind: str
) -> None:
    bits, dtype = (8, "i1") if kind == "scales" else (10, "<i2")
    most = 2 ** (bits - 1) - 1

    def with_code(code: int) -> Path:
        codes = np.zeros(260 * 8, dtype)
        codes[77] = code
        return resealed(tmp_path / "a.fwy", kept[kind], "embedding", codes.tobytes())

    for code in (most, -most):
        state = load_artifact(with_code(code)).state
        weights_RC = state["tok_emb.weight"]
        # Behind an odd code a trellis never comes back to zeros.
        others = torch.count_nonzero(weights_RC, 1).tolist()
        assert [row for row, count in enumerate(others) if count] == [77]
    for code in (-most - 1, *(() if kind == "scales" else (most + 1, -(2**15), 2**15 - 1))):
        told = rf"tok_emb\.weight holds a code of {abs(code)}, but {bits} bits end at {most}; the f"
        refuse(with_code(code), told)


@pytest.mark.parametrize("kind", ["steps", "columns"])
def test_a_step_is_within_640_on_both_sides(
    kept: dict[str, bytes], tmp_path: Path, kind: str
) -> None:
    count = next(e for e in header_of(kept[kind])["sections"] if e["name"] == "steps")["bytes"]

    def with_step(step: int) -> Path:
        steps = np.zeros(count // 2, "<i2")
        # The last one's matrix has no steps of columns.
        steps[-20] = step
        return resealed(tmp_path / "a.fwy", kept[kind], "steps", steps.tobytes())

    for step in (641, -641, -(2**15), 2**15 - 1):
        refuse(with_step(step), r"holds a step beyond \+-640; the file is not usable")
    if kind == "steps":
        for step in (640, -640):
            load_artifact(with_step(step))


@pytest.mark.parametrize("name", ["scales", "vectors", "factor scales"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_every_number_is_finite(
    kept: dict[str, bytes], tmp_path: Path, name: str, value: float
) -> None:
    data = kept["corrections"]
    count = next(e for e in header_of(data)["sections"] if e["name"] == name)["bytes"]
    values = np.ones(count // 2, "<f2")
    load_artifact(resealed(tmp_path / "a.fwy", data, name, values.tobytes()))
    values[-1] = value
    path = resealed(tmp_path / "a.fwy", data, name, values.tobytes())
    refuse(path, "holds a number that is not finite; the file is not usable")


@pytest.mark.parametrize(("name", "inside", "outside"), [("left", 1, 2), ("right", -8, -9)])
def test_factors_are_within_their_bits(
    kept: dict[str, bytes], tmp_path: Path, name: str, inside: int, outside: int
) -> None:
    data = kept["corrections"]
    name = f"{name} factors"
    count = next(e for e in header_of(data)["sections"] if e["name"] == name)["bytes"]
    for value in (inside, outside):
        numbers = np.zeros(count, "i1")
        numbers[-1] = value
        path = resealed(tmp_path / "a.fwy", data, name, numbers.tobytes())
        if value == inside:
            load_artifact(path)
        else:
            refuse(path, r"the correction of blocks\.1\.mlp\.proj\.weight holds a number th")


TRELLIS_BAD = [
    (1, "has a trellis of 1 states; 4, 8, 16 or 32 exist"),
    (3, "has a trellis of 3 states; 4, 8, 16 or 32 exist"),
    (64, "has a trellis of 64 states; 4, 8, 16 or 32 exist"),
    (2**16, "has a trellis of 65536 states; 4, 8, 16 or 32 exist"),
    (2**16 + 1, "is 65537; it must be a whole number from 0 to 65536"),
    (-4, "is -4; it must be a whole number from 0 to 65536"),
    (True, "is True; it must be a whole number"),
    (None, "is None; it must be a whole number"),
    (8.0, "is 8.0; it must be a whole number"),
]


@pytest.mark.parametrize(("states", "told"), TRELLIS_BAD)
@pytest.mark.parametrize("kind", ["steps", "columns"])
def test_a_trellis_nobody_knows_is_refused(
    forge: Callable[[str, Change], Path], kind: str, states: Any, told: str
) -> None:
    refuse(forge(kind, section("embedding", "trellis", states)), f"'embedding' {told}|{told}")


def test_only_codes_have_a_trellis(forge: Callable[[str, Change], Path]) -> None:
    for name in ("steps", "vectors", "tokenizer"):
        refuse(forge("steps", section(name, "trellis", 8)), f"'{name}' has a trellis of 8 states")
    refuse(
        forge("columns", section("columns", "trellis", 4)), "'columns' has a trellis of 4 states"
    )


@pytest.mark.parametrize("states", [0, 4, 8])
def test_the_trellis_of_a_header_is_the_one_that_restores(
    forge: Callable[[str, Change], Path], states: int
) -> None:
    found = load_artifact(forge("steps", section("embedding", "trellis", states))).state
    tensor = fancy()["tok_emb.weight"]
    assert isinstance(tensor, QuantisedTensor)
    assert torch.equal(found["tok_emb.weight"], restore(replace(tensor, trellis=states)))


@pytest.mark.parametrize("kind", list(KINDS))
def test_damage_anywhere_is_refused(kept: dict[str, bytes], tmp_path: Path, kind: str) -> None:
    data, path = kept[kind], tmp_path / "a.fwy"
    for at in [*range(0, 50, 3), *range(50, len(data), len(data) // 40)]:
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])
        refuse(path, r"a\.fwy: ")
    for end in range(0, len(data), len(data) // 5):
        path.write_bytes(data[:end])
        refuse(path, r"a\.fwy: ")


@pytest.mark.parametrize("digit", ["0", "f"])
def test_a_digest_that_is_too_small_or_too_large_is_damage(
    kept: dict[str, bytes], forge: Callable[[str, Change], Path], tmp_path: Path, digit: str
) -> None:
    refuse(
        forge("steps", section("steps", "sha256", digit * 64)), "section 'steps' is damaged; copy"
    )
    data = kept["steps"]
    (tmp_path / "a.fwy").write_bytes(data[:16] + bytes.fromhex(digit * 64) + data[48:])
    refuse(tmp_path / "a.fwy", "the header is damaged; copy the file again")


@pytest.mark.parametrize("length", [0, 7, 8, 47, 48])
def test_a_file_that_ends_in_its_first_bytes(
    kept: dict[str, bytes], tmp_path: Path, length: int
) -> None:
    (tmp_path / "a.fwy").write_bytes(kept["columns"][:length])
    told = f"the file ends after {length} bytes; copy it again"
    if not 8 <= length < 48:
        told = "the header is damaged" if length else "this is not a Fairway artifact"
    refuse(tmp_path / "a.fwy", "not a Fairway artifact" if length == 7 else told)
