"""GPTQ of a whole model: which tensors, which grids, in which order."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from gptq_problem import INT6, SETTINGS, gptq, problem
from torch import Tensor

from fairway.base.errors import UserError
from fairway.config.settings import ModelConfig, QuantConfig
from fairway.model.gpt import GPT
from fairway.quantise.gptq import (
    Matrix,
    dequantise,
    gptq_all,
    grid_of,
    is_coded,
    quantise_model,
    round_plainly,
    tensor_stats,
)
from fairway.quantise.grid import Grid, QuantisedTensor, restore, scale_of


def toy_state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "tok_emb.weight": (16, 8),
        "blocks.0.mlp.fc.weight": (10, 8),
        "blocks.0.attn.c_k.weight": (2, 8),
    }
    state = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {**state, "skip_weights": torch.tensor([5.25, 1.0])}


CONFIG = QuantConfig(min_numel=16)


def toy_hessians() -> dict[str, Tensor]:
    _, hessian_CC = problem(columns=8)
    return {"tok_emb.weight": hessian_CC, "blocks.0.mlp.fc.weight": hessian_CC}


def test_model_keeps_order_and_sorts_tensors_by_the_rule() -> None:
    quantised = quantise_model(toy_state(), toy_hessians(), CONFIG)
    assert list(quantised) == list(toy_state())
    embedding, matrix = quantised["tok_emb.weight"], quantised["blocks.0.mlp.fc.weight"]
    assert isinstance(embedding, QuantisedTensor) and embedding.bits == 8
    assert isinstance(matrix, QuantisedTensor) and matrix.bits == 6
    for name in ("blocks.0.attn.c_k.weight", "skip_weights"):
        kept = quantised[name]
        assert isinstance(kept, Tensor) and kept.dtype == torch.float16
    restored = dequantise(quantised)
    assert all(tensor.dtype == torch.float32 for tensor in restored.values())
    assert restored["skip_weights"].tolist() == [5.25, 1.0]
    assert torch.equal(restored["tok_emb.weight"], restore(embedding))


def test_method_round_needs_no_calibration() -> None:
    config = replace(CONFIG, method="round")
    quantised = quantise_model(toy_state(), {}, config)
    matrix = quantised["blocks.0.mlp.fc.weight"]
    expected = round_plainly(toy_state()["blocks.0.mlp.fc.weight"], INT6, "w")
    assert isinstance(matrix, QuantisedTensor) and torch.equal(matrix.codes, expected.codes)
    with pytest.raises(UserError, match=r"tok_emb\.weight has no calibration statistics"):
        quantise_model(toy_state(), {}, CONFIG)


def test_method_and_damping_change_the_codes_and_the_block_does_not() -> None:
    def codes(config: QuantConfig) -> Tensor:
        tensor = quantise_model(toy_state(), toy_hessians(), config)["tok_emb.weight"]
        assert isinstance(tensor, QuantisedTensor)
        return tensor.codes

    base = codes(CONFIG)
    assert not torch.equal(base, codes(replace(CONFIG, method="round")))
    weight, hessian = toy_state()["tok_emb.weight"], toy_hessians()["tok_emb.weight"]
    matrix = Matrix("w", weight, hessian, Grid(8, 20.0))
    [(_, found)] = gptq_all([matrix], block=3)
    [(_, other)] = gptq_all([matrix], damp=1.0)
    assert torch.equal(base, found.codes) and not torch.equal(base, other.codes)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.tensor([1e5]), "skip_weights holds a value that float16 cannot"),
        (torch.tensor([float("nan")]), "skip_weights holds a value that float16 cannot"),
        (torch.tensor([1.0, 65_520.0]), "skip_weights holds a value that float16 cannot"),
        (
            torch.tensor([1]),
            "skip_weights is torch.int64; an artifact holds floating-point tensors only",
        ),
    ],
)
def test_tensors_that_cannot_be_stored_are_named(value: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        quantise_model({**toy_state(), "skip_weights": value}, toy_hessians(), CONFIG)


def test_seed_configuration_has_the_known_split() -> None:
    with torch.device("meta"):
        state = GPT(ModelConfig()).state_dict()
    grids = {name: grid_of(name, weight, QuantConfig()) for name, weight in state.items()}
    codes = [state[name].numel() for name, grid in grids.items() if grid]
    kept = [state[name].numel() for name, grid in grids.items() if not grid]
    assert (len(codes), sum(codes)) == (67, 35_913_728)
    assert (len(kept), sum(kept)) == (46, 30_808)
    assert grids["tok_emb.weight"] == Grid(8, 20.0)
    assert grids["blocks.10.mlp.proj.weight"] == INT6


@pytest.mark.parametrize(
    ("name", "shape", "coded"),
    [
        ("blocks.0.attn.c_q.weight", (3, 4), True),
        ("blocks.0.attn.c_q.weight", (11, 1), False),
        ("blocks.12.mlp.fc.weight", (1, 12), True),
        ("tok_emb.weight", (3, 4), True),
        ("skip_weights", (3, 4), False),
        ("blocks.0.resid_mix", (3, 4), False),
    ],
)
def test_matrices_of_more_than_so_many_values_are_coded(
    name: str, shape: tuple[int, ...], coded: bool
) -> None:
    assert is_coded(name, torch.zeros(shape), 11) is coded


@pytest.mark.parametrize("name", ["a.weight", "blocks.0.weights", "c_q.weight", "tok_emb"])
def test_what_the_model_does_not_declare_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"the parameter {name} is declared nowhere"):
        is_coded(name, torch.zeros(3, 4), 11)


def test_grids_are_those_of_the_settings() -> None:
    config = QuantConfig(
        min_numel=0, matrix_bits=5, matrix_sigmas=9.5, embed_bits=7, embed_sigmas=11.5
    )
    weight = torch.zeros(2, 3)
    for name, grid in (
        ("tok_emb.weight", Grid(7, 11.5)),
        ("blocks.0.attn.c_q.weight", Grid(5, 9.5)),
    ):
        assert grid_of(name, weight, config) == grid


@pytest.mark.parametrize("mlp_sigmas", [None, 12.0])
def test_matrices_of_mlps_may_have_sigmas_of_their_own(mlp_sigmas: float | None) -> None:
    config = QuantConfig(matrix_sigmas=13.0, mlp_sigmas=mlp_sigmas, min_numel=0)
    weight = torch.zeros(2, 3)
    for name, sigmas in (
        ("blocks.0.mlp.fc.weight", mlp_sigmas or 13.0),
        ("blocks.0.mlp.proj.weight", mlp_sigmas or 13.0),
        ("blocks.0.attn.c_q.weight", 13.0),
        ("blocks.0.attn.proj.weight", 13.0),
    ):
        assert grid_of(name, weight, config) == Grid(config.matrix_bits, sigmas)


def test_progress_counts_the_matrices_that_feedback_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []

    @contextmanager
    def watched(label: str, total: int) -> Iterator[Callable[[int], None]]:
        told.append((label, total))
        yield told.append

    monkeypatch.setattr("fairway.quantise.gptq.progress", watched)
    quantise_model(toy_state(), toy_hessians(), CONFIG)
    assert told == [("quantise", 2), 1, 1]


def test_gains_and_mixes_are_no_matrices() -> None:
    stacked = torch.zeros(8, 512)
    everything = QuantConfig(min_numel=0)
    assert grid_of("skip_weights", stacked, everything) is None
    assert grid_of("blocks.0.resid_mix", stacked, everything) is None
    assert grid_of("blocks.0.attn.c_k.weight", stacked, everything) == INT6


def on_a_trellis(states: int, bits: int, striped: bool) -> QuantisedTensor:
    """Codes of a trellis with steps of 2^-2 and about, and of columns if asked for."""
    generator = torch.Generator().manual_seed(3)
    most = 2 ** (bits - 1) - 1
    codes = (torch.randn(50, 64, generator=generator) * most / 4).round().clamp(-most, most)
    codes[:, 3] = 0
    steps_R = torch.randint(-40, -24, (50,), generator=generator).short()
    columns_C = (torch.arange(64) % 5 * 8 - 16).to(torch.int8) if striped else None
    codes = codes.to(torch.int8 if bits <= 8 else torch.int16)
    return QuantisedTensor(codes, scale_of(steps_R), bits, steps_R, states, columns=columns_C)


def noisy(tensor: QuantisedTensor) -> Tensor:
    noise = torch.randn(tensor.codes.shape, generator=torch.Generator().manual_seed(4))
    return restore(tensor) + 0.1 * noise


@pytest.mark.parametrize("with_hessian", [True, False])
@pytest.mark.parametrize("kind", ["plain", "trellis", "striped", "wide"])
def test_statistics_of_a_matrix_are_those_of_their_formulas(kind: str, with_hessian: bool) -> None:
    """Every figure again, in float64 and from its definition."""
    w_RC, hessian_CC = problem(50, 64, seed=2)
    if kind == "plain":
        w_RC[:, :8] = 0.0
        tensor = gptq(w_RC, hessian_CC, Grid(6, 12.85), **SETTINGS)
    else:
        tensor = on_a_trellis(8, 10 if kind == "wide" else 6, kind != "trellis")
        w_RC = noisy(tensor)
    if kind == "wide":
        # Plain rounding of these has codes beyond a byte.
        assert float((w_RC / tensor.scale[:, None]).abs().max()) / 2 > 140
    hessian = hessian_CC if with_hessian else None
    stats = tensor_stats("w", w_RC, tensor, hessian)
    assert (stats.name, stats.values, stats.bits) == ("w", 3200, tensor.bits)

    codes = tensor.codes.flatten().tolist()
    shares = [codes.count(code) / 3200 for code in set(codes)]
    assert stats.entropy_bits == pytest.approx(-sum(p * math.log2(p) for p in shares), abs=1e-9)
    assert stats.zero_share == codes.count(0) / 3200 > 0

    w = w_RC.double()
    centred = w - w.sum() / 3200
    variance = (centred**2).sum() / 3200
    kurtosis = float((centred**4).sum() / 3200 / variance**2)
    assert stats.kurtosis == pytest.approx(kurtosis, rel=1e-5)

    def energy(off: Tensor) -> float:
        return float(
            torch.trace(off @ (hessian_CC if with_hessian else torch.eye(64)).double() @ off.T)
        )

    # One grid of a trellis has twice the step.
    step_R1 = tensor.scale.double()[:, None] * (1 if kind == "plain" else 2)
    most = 2 ** (tensor.bits - 1) - 1
    rounded = step_R1 * (w / step_R1).round().clamp(-most, most)
    assert stats.error == pytest.approx(energy(w - restore(tensor).double()) / energy(w), rel=1e-4)
    assert stats.error_rounded == pytest.approx(energy(w - rounded) / energy(w), rel=1e-4)


def test_statistics_take_weights_that_learn_and_leave_them_alone() -> None:
    w_RC, hessian_CC = problem(9, 16)
    tensor = gptq(w_RC, hessian_CC, INT6, **SETTINGS)
    kept = w_RC.clone(), hessian_CC.clone(), tensor.codes.clone(), tensor.scale.clone()
    learning = torch.nn.Parameter(w_RC.double())
    stats = tensor_stats("w", learning, tensor, hessian_CC.double())
    assert stats == tensor_stats("w", w_RC, tensor, hessian_CC)
    assert all(map(torch.equal, kept, (w_RC, hessian_CC, tensor.codes, tensor.scale)))


def test_gaussian_rows_have_the_known_entropy_and_kurtosis() -> None:
    w_RC = torch.randn(64, 512, generator=torch.Generator().manual_seed(0))
    six = tensor_stats("w", w_RC, round_plainly(w_RC, INT6, "w"), None)
    eight = tensor_stats("w", w_RC, round_plainly(w_RC, Grid(8, 20.0), "w"), None)
    assert six.entropy_bits == pytest.approx(3.33, abs=0.02)
    assert eight.entropy_bits == pytest.approx(4.72, abs=0.02)
    assert six.kurtosis == pytest.approx(3.0, abs=0.1)
    assert six.error == six.error_rounded == pytest.approx(0.4145**2 / 12, rel=0.02)


def test_statistics_of_nothing_are_numbers() -> None:
    w_RC = torch.zeros(3, 4)
    stats = tensor_stats("w", w_RC, round_plainly(w_RC, INT6, "w"), None)
    assert (stats.entropy_bits, stats.zero_share, stats.error) == (0.0, 1.0, 0.0)
    assert stats.kurtosis == 0.0


def test_energies_below_1e_30_count_as_that() -> None:
    w_RC = torch.full((1, 2), 6e-16)
    nothing = QuantisedTensor(torch.zeros(1, 2, dtype=torch.int8), torch.ones(1), 6)
    assert tensor_stats("w", w_RC, nothing, None).error == pytest.approx(0.72)


def test_codes_of_one_sign_have_their_entropy() -> None:
    codes = torch.tensor([[-31, -30, -1, -1]], dtype=torch.int8)
    tensor = QuantisedTensor(codes, torch.ones(1), 6)
    for sign in (1, -1):
        signed = replace(tensor, codes=sign * codes)
        stats = tensor_stats("w", restore(signed), signed, None)
        assert (stats.entropy_bits, stats.zero_share) == (1.5, 0.0)
