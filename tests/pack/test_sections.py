"""Sections of an artifact: their lengths, their order, which tensor lies where."""

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from specimens import (
    PROVENANCE,
    TINY,
    WORDS,
    fancy,
    quantised,
)  # fmt: skip

from fairway.base.errors import UserError
from fairway.config.settings import PackConfig
from fairway.model.gpt import GPT
from fairway.pack.artifact import save_artifact
from fairway.pack.layout import (
    Form,
    SectionSpec,
    TensorSpec,
    codes_bytes,
    layout,
    role_of,
    section_bits,
    section_bytes,
    section_trellis,
    threshold,
)
from fairway.quantise.grid import QuantisedTensor


def spec_of(kind: str) -> SectionSpec:
    return SectionSpec("x", kind, (TensorSpec("a", (3, 5)), TensorSpec("b", (7, 2))))


@pytest.mark.parametrize(
    ("kind", "bits", "expected"),
    [
        ("codes", 2, 29), ("codes", 8, 29), ("codes", 9, 58), ("codes", 16, 58), ("scales", 16, 20),
        ("steps", 16, 20), ("columns", 8, 7), ("vectors", 16, 58),
    ],
)  # fmt: skip
def test_sections_have_their_lengths(kind: str, bits: int, expected: int) -> None:
    assert spec_of(kind).raw_bytes(bits) == expected


def test_steps_lie_before_the_codes_and_scales_behind() -> None:
    codes = ["embedding", "query", "attention output", "MLP up", "MLP down"]
    coded = [name for name in quantised() if name in coded_names()]
    for form, names in (
        (Form(), [*codes, "scales", "vectors"]),
        (Form(log_steps=True), ["steps", *codes, "vectors"]),
        (Form(log_steps=True, columns=True), ["steps", "columns", *codes, "vectors"]),
    ):
        specs = layout(TINY, 40, form)
        assert [spec.name for spec in specs] == names
        for spec in specs:
            if spec.kind in ("scales", "steps", "columns"):
                assert [tensor.name for tensor in spec.tensors] == coded
            assert spec.kind == (spec.name if spec.name not in codes else "codes")


def test_every_matrix_has_the_section_of_its_role() -> None:
    config = replace(TINY, dim=16, num_kv_heads=2)
    found = {
        spec.name: [tensor.name for tensor in spec.tensors] for spec in layout(config, 40, Form())
    }
    whole = {
        "embedding": ["tok_emb"],
        "query": ["blocks.0.attn.c_q", "blocks.1.attn.c_q"],
        "key": ["blocks.0.attn.c_k", "blocks.1.attn.c_k"],
        "value": ["blocks.0.attn.c_v", "blocks.1.attn.c_v"],
        "attention output": ["blocks.0.attn.proj", "blocks.1.attn.proj"],
        "MLP up": ["blocks.0.mlp.fc", "blocks.1.mlp.fc"],
        "MLP down": ["blocks.0.mlp.proj", "blocks.1.mlp.proj"],
    }
    assert list(found) == [*whole, "scales", "vectors"]
    assert {role: sorted(found[role]) for role in whole} == {
        role: sorted(f"{name}.weight" for name in names) for role, names in whole.items()
    }
    for name in ("x.weight", "my_tok_emb.weight", "tok_emb.weights", "mlp.fc"):
        with pytest.raises(ValueError, match=f"the parameter {name} is declared nowhere"):
            role_of(name)


def test_the_largest_matrix_that_is_kept_sets_the_threshold() -> None:
    kept = {f"blocks.{n}.mlp.fc.weight": torch.ones(n, 3).half() for n in (2, 5, 4)}
    others = {"skip_gates": torch.ones(99).half(), "skip_weights": torch.ones(7, 9).half()}
    coded = {name: t for name, t in quantised().items() if isinstance(t, QuantisedTensor)}
    assert threshold({**others, **coded}) == threshold({}) == 0
    assert threshold({**kept, **others, **coded}) == 15


def coded_names() -> set[str]:
    return {name for name, t in quantised().items() if isinstance(t, QuantisedTensor)}


def test_what_a_packer_got_wrong_is_noticed() -> None:
    state = fancy()
    specs = {spec.name: spec for spec in layout(TINY, 40, Form(log_steps=True, columns=True))}
    name = "blocks.0.mlp.fc.weight"
    tensor = state[name]
    assert isinstance(tensor, QuantisedTensor)
    with pytest.raises(AssertionError, match=r"section MLP up mixes trellises of \{.*\} states"):
        section_trellis(specs["MLP up"], state | {name: replace(tensor, trellis=4)})
    assert section_bits(specs["MLP up"], state | {name: replace(tensor, bits=12)}) == 12
    with pytest.raises(AssertionError):
        section_bytes(specs["MLP up"], state | {name: replace(tensor, codes=tensor.codes[1:])})
    with pytest.raises(AssertionError):
        section_bytes(specs["MLP up"], state | {name: torch.ones(8, 8).half()})
    striped = replace(tensor, columns=torch.zeros(8).to(torch.int8), scale_steps=None)
    with pytest.raises(AssertionError, match="columns have steps where rows have"):
        section_bytes(specs["columns"], state | {name: striped})
    for wrong in (torch.ones(9).half(), tensor):
        with pytest.raises(AssertionError, match=r"blocks\.0\.attn_scale"):
            section_bytes(specs["vectors"], state | {"blocks.0.attn_scale": wrong})
    with pytest.raises(UserError, match="the tokenizer has 260 pieces but the model 261; pack"):
        larger = replace(TINY, vocab_size=261)
        save_artifact(
            Path("unwritten"), quantised(larger), larger, PackConfig(codec="raw"), WORDS, PROVENANCE
        )


def test_numbers_of_a_matrix_lie_column_by_column() -> None:
    codes = np.array([[1, -2, 3], [4, 5, -6]], np.int16)
    assert codes_bytes(codes, "i1") == bytes([1, 4, 254, 5, 3, 250])
    assert codes_bytes(codes, "<i2") == struct.pack("<6h", 1, 4, -2, 5, 3, -6)


def test_the_model_decides_what_is_a_vector() -> None:
    specs = layout(TINY, 40, Form())
    state = GPT(TINY).state_dict()
    shapes = {tensor.name: tensor.shape for spec in specs for tensor in spec.tensors}
    assert shapes == {name: tuple(value.shape) for name, value in state.items()}
    kept, coded = [tensor.name for tensor in specs[-1].tensors], coded_names()
    assert kept == [name for name in state if name not in coded]
