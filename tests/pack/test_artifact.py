import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pack.forged import BROTLI, RAW, forged, save
from specimens import (
    PROVENANCE,
    ROUND,
    TINY,
    WORDS,
    amended,
    fancy,
    quantised,
    striped,
)

from fairway.base.errors import UserError
from fairway.base.files import digest_bytes, digest_file
from fairway.config.settings import ModelConfig, PackConfig
from fairway.config.written import to_dict
from fairway.model.gpt import GPT
from fairway.pack.account import byte_account
from fairway.pack.artifact import account, load_artifact, save_artifact
from fairway.pack.layout import Form, layout, role_of, threshold
from fairway.quantise.gptq import QuantisedModel, dequantise, is_coded, quantise_model
from fairway.quantise.grid import QuantisedTensor, restore, scale_of


@pytest.mark.parametrize("codec", ["cabac", "brotli", "lzma", "raw"])
@pytest.mark.parametrize("with_tokenizer", [True, False])
def test_round_trip(tmp_path: Path, codec: str, with_tokenizer: bool) -> None:
    pack = PackConfig(codec=codec, with_tokenizer=with_tokenizer)
    loaded = load_artifact(save(tmp_path / "a.fwy", pack))
    assert loaded.config == TINY
    assert loaded.tokenizer == (WORDS.data if with_tokenizer else None)
    assert loaded.header["tokenizer_digest"] == WORDS.digest
    assert loaded.header["provenance"] == PROVENANCE
    expected = dequantise(quantised())
    assert set(loaded.state) == set(expected)
    for name, weight in expected.items():
        assert loaded.state[name].dtype == torch.float32
        assert torch.equal(loaded.state[name], weight), name
    model = GPT(loaded.config)
    model.load_state_dict(loaded.state)
    ids = torch.arange(12)[None]
    other = GPT(TINY)
    other.load_state_dict(expected)
    assert torch.equal(model.logits(model.hidden(ids)), other.logits(other.hidden(ids)))


@pytest.mark.parametrize(
    "changes",
    [
        {"gate_features": 3},
        {"loop_extra": 0},
        {"num_kv_heads": 2, "mlp_dim": 24},
        {"smear": True},
    ],
    ids=str,
)
def test_round_trip_of_every_shape_of_model(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = replace(TINY, **changes)
    loaded = load_artifact(save(tmp_path / "a.fwy", BROTLI, config))
    for name, weight in dequantise(quantised(config)).items():
        assert torch.equal(loaded.state[name], weight), name


@pytest.mark.parametrize("codec", ["cabac", "brotli", "lzma", "raw"])
def test_trellis_and_steps_come_back(tmp_path: Path, codec: str) -> None:
    path = tmp_path / "a.fwy"
    counts = save_artifact(path, fancy(), TINY, PackConfig(codec=codec), WORDS, PROVENANCE)
    assert [name for name, _ in counts][2:4] == ["steps", "embedding"]
    loaded = load_artifact(path)
    for name, weight in dequantise(fancy()).items():
        assert torch.equal(loaded.state[name], weight), name


@pytest.mark.parametrize("codec", ["cabac", "brotli", "lzma", "raw"])
def test_steps_of_columns_come_back(tmp_path: Path, codec: str) -> None:
    path = tmp_path / "a.fwy"
    counts = save_artifact(path, striped(), TINY, PackConfig(codec=codec), WORDS, PROVENANCE)
    assert [name for name, _ in counts][2:5] == ["steps", "columns", "embedding"]
    assert sum(part.bytes for part in byte_account(path)) == path.stat().st_size
    loaded = load_artifact(path)
    for name, tensor in striped().items():
        weight = restore(tensor) if isinstance(tensor, QuantisedTensor) else tensor.float()
        assert torch.equal(loaded.state[name], weight), name


@pytest.mark.parametrize("codec", ["cabac", "brotli", "lzma", "raw"])
def test_corrections_come_back(tmp_path: Path, codec: str) -> None:
    # Several scales a factor, and a matrix that is too small for the rank.
    config = replace(TINY, dim=16, mlp_dim=40)
    path, made = tmp_path / "a.fwy", amended(config)
    ranks = {
        tensor.correction.left.shape[1]
        for tensor in made.values()
        if isinstance(tensor, QuantisedTensor) and tensor.correction is not None
    }
    assert ranks == {8, 12}
    counts = save_artifact(path, made, config, PackConfig(codec=codec), WORDS, PROVENANCE)
    names = [name for name, _ in counts]
    assert names[-5:] == ["scales", "left factors", "right factors", "factor scales", "vectors"]
    assert sum(part.bytes for part in byte_account(path)) == path.stat().st_size
    plain, loaded = dequantise(quantised(config)), load_artifact(path).state
    for name, weight in dequantise(made).items():
        assert torch.equal(loaded[name], weight), name
    assert not torch.equal(loaded["tok_emb.weight"], plain["tok_emb.weight"])
    # Weights of a file come in the order of their names.
    other = tmp_path / "b.fwy"
    save_artifact(
        other, dict(sorted(made.items())), config, PackConfig(codec=codec), WORDS, PROVENANCE
    )
    assert other.read_bytes() == path.read_bytes()


def test_the_step_of_a_weight_is_that_of_its_row_and_column() -> None:
    tensor = QuantisedTensor(
        torch.tensor([[3, -1, 0], [2, 1, -4]]).to(torch.int8), torch.tensor([2.0, 0.5]), 8,
        torch.tensor([16, -16]).short(), columns=torch.tensor([0, -32, 8]).to(torch.int8),
    )  # fmt: skip
    root = float(scale_of(torch.tensor(8)))
    assert restore(tensor).tolist() == [[6.0, -0.5, 0.0], [1.0, 0.125, -2 * root]]


def test_a_step_beyond_the_grid_is_refused(tmp_path: Path) -> None:
    path, name = tmp_path / "a.fwy", "tok_emb.weight"
    far = replace(striped()[name], scale_steps=torch.full((260,), 640).short())
    save_artifact(path, striped() | {name: far}, TINY, RAW, WORDS, PROVENANCE)
    with pytest.raises(UserError, match="a scale step lies beyond"):
        load_artifact(path)


def test_scales_of_two_kinds_are_refused(tmp_path: Path) -> None:
    mixed = quantised() | {"tok_emb.weight": fancy()["tok_emb.weight"]}
    with pytest.raises(UserError, match="some matrices have float16 scales and others steps"):
        save_artifact(tmp_path / "a.fwy", mixed, TINY, RAW, WORDS, PROVENANCE)


def test_account_sums_to_the_file(tmp_path: Path) -> None:
    path = save(tmp_path / "a.fwy", BROTLI)
    counts = account(path)
    assert sum(count for _, count in counts) == path.stat().st_size
    assert counts == load_artifact(path).account
    assert [name for name, _ in counts] == [
        "magic, version, digest", "header", "embedding", "query", "attention output", "MLP up",
        "MLP down", "scales", "vectors", "tokenizer",
    ]  # fmt: skip


def test_saving_returns_the_account_and_repeats_its_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "a.fwy", tmp_path / "b" / "c.fwy"
    counts = save_artifact(first, quantised(), TINY, BROTLI, WORDS, PROVENANCE)
    save_artifact(second, quantised(), TINY, BROTLI, WORDS, PROVENANCE)
    assert first.read_bytes() == second.read_bytes()
    assert counts == account(first)
    assert str(tmp_path).encode() not in first.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.fwy", "b"]


def test_settings_of_the_packer_take_effect(tmp_path: Path) -> None:
    digests = {
        digest_file(save(tmp_path / "a.fwy", pack))
        for pack in (
            RAW,
            BROTLI,
            PackConfig(codec="lzma"),
            PackConfig(codec="cabac"),
        )
    }
    assert len(digests) == 4


def test_codes_lie_column_by_column(tmp_path: Path) -> None:
    path = save(tmp_path / "a.fwy")
    names = dict(account(path))
    data = path.read_bytes()
    first = names["magic, version, digest"] + names["header"]
    embedding = quantised()["tok_emb.weight"]
    stored = torch.frombuffer(bytearray(data[first : first + 260 * 8]), dtype=torch.int8)
    assert torch.equal(stored.reshape(8, 260).T, embedding.codes)  # type: ignore[union-attr]


def counted() -> QuantisedModel:
    """Codes and numbers from whole-number formulas: the same on every machine."""
    tensors: QuantisedModel = {}
    for name, weight in GPT(TINY).state_dict().items():
        steps = torch.arange(weight.numel()) * 37 % 61 - 30
        if is_coded(name, weight, 40):
            codes = steps.to(torch.int8).reshape(weight.shape)
            scale = (1 + torch.arange(len(weight)) % 16).half() / 64
            tensors[name] = QuantisedTensor(codes, scale, 6)
        else:
            tensors[name] = (steps / 32).half().reshape(weight.shape)
    return tensors


@pytest.mark.parametrize(
    ("made", "pack", "digest"),
    [
        (counted, RAW, "1e37f39f3988a898"),
        (counted, PackConfig(codec="lzma", with_tokenizer=True), "cc74b03e4ac21ab1"),
        (fancy, RAW, "fb84d09946831190"),
        (fancy, PackConfig(codec="cabac"), "b30d47266da2ed3c"),
        (striped, RAW, "007576e418cd0f29"),
        (striped, PackConfig(codec="cabac"), "d6de591783dc2362"),
    ],
)
def test_pinned_bits(
    tmp_path: Path, made: Callable[[], QuantisedModel], pack: PackConfig, digest: str
) -> None:
    """A change here changes the format: raise its version.

    The sections alone: the header names settings, and docs/format.md has one byte by byte.
    """
    path = tmp_path / "a.fwy"
    counts = save_artifact(path, made(), TINY, pack, WORDS, PROVENANCE)
    sections = path.read_bytes()[sum(count for _, count in counts[:2]) :]
    assert digest_bytes(sections)[:16] == digest


# ---------------------------------------------------------------------------------------------
# Size


def test_a_small_file_cannot_claim_a_large_model(tmp_path: Path) -> None:
    """A header that is right in every field, for a model of 8 GB, in a file of 3 kB."""
    large = replace(TINY, dim=8192, mlp_dim=32_768, num_layers=16, vocab_size=65_535)
    specs = layout(large, 40, Form())

    def claim(header: dict[str, Any]) -> None:
        entry = header["sections"][0] | {"bytes": 0, "sha256": digest_bytes(b"")}
        header["model"] = to_dict(large)
        header["sections"] = [
            entry
            | {"name": spec.name, "kind": spec.kind, "raw_bytes": spec.raw_bytes(8)}
            | {"bits": 8 if spec.kind == "codes" else 16}
            for spec in specs
        ]

    path = forged(tmp_path / "a.fwy", claim, b"")
    assert sum(spec.raw_bytes(8) for spec in specs) > 8e9
    tracemalloc.start()
    with pytest.raises(UserError, match="more than 16 times as many; no trained model"):
        load_artifact(path)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


def test_small_models_of_zeros_can_be_packed_large_ones_cannot(tmp_path: Path) -> None:
    def zeros(config: ModelConfig) -> QuantisedModel:
        state = {name: torch.zeros_like(w) for name, w in GPT(config).state_dict().items()}
        return quantise_model(state, {}, replace(ROUND, method="round"))

    save_artifact(tmp_path / "a.fwy", zeros(TINY), TINY, PackConfig(), WORDS, PROVENANCE)
    assert not any(w.any() for w in load_artifact(tmp_path / "a.fwy").state.values())
    large = replace(TINY, dim=512, mlp_dim=2048)
    with pytest.raises(UserError, match="no trained model compresses like that"):
        save_artifact(tmp_path / "b.fwy", zeros(large), large, PackConfig(), WORDS, PROVENANCE)
    assert not (tmp_path / "b.fwy").exists()


def test_a_tokenizer_of_another_size_is_refused(tmp_path: Path) -> None:
    other = SimpleNamespace(**{**vars(WORDS), "vocab_size": 261})
    with pytest.raises(UserError, match="261 pieces but the model 260"):
        save_artifact(tmp_path / "a.fwy", quantised(), TINY, RAW, other, PROVENANCE)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------------
# Layout


def test_layout_of_the_seed_covers_every_value_once() -> None:
    specs = layout(ModelConfig(), 65_536, Form())
    assert [spec.name for spec in specs] == [
        "embedding", "query", "key", "value", "attention output", "MLP up", "MLP down", "scales",
        "vectors",
    ]  # fmt: skip
    raw = {spec.name: spec.raw_bytes(8) for spec in specs}
    codes = [spec for spec in specs if spec.kind == "codes"]
    assert sum(spec.raw_bytes(8) for spec in codes) == 35_913_728
    assert raw["scales"] == 2 * (8192 + 11 * (512 + 256 + 256 + 512 + 2048 + 512))
    assert raw["vectors"] == 2 * 30_808
    coded = [tensor.name for spec in codes for tensor in spec.tensors]
    kept = [tensor.name for tensor in specs[-1].tensors]
    assert (len(coded), len(kept)) == (67, 46)
    assert len({*coded, *kept}) == 113
    assert sorted(coded) == sorted(tensor.name for tensor in specs[-2].tensors)


def test_roles_are_told_apart() -> None:
    assert role_of("blocks.3.attn.proj.weight") == "attention output"
    assert role_of("blocks.3.mlp.proj.weight") == "MLP down"
    assert role_of("tok_emb.weight") == "embedding"
    with pytest.raises(ValueError, match="declared nowhere"):
        role_of("blocks.0.attn.gate.weight")


@pytest.mark.parametrize("min_numel", [0, 31, 32, 63, 64, 2080, 10**6])
def test_threshold_sorts_tensors_as_they_were(min_numel: int) -> None:
    tensors = quantised(quant=replace(ROUND, min_numel=min_numel))
    specs = layout(TINY, threshold(tensors), Form())
    coded = {tensor.name for spec in specs if spec.kind == "codes" for tensor in spec.tensors}
    assert coded == {name for name, t in tensors.items() if not isinstance(t, torch.Tensor)}
