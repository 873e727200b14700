import math
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fairway.base.errors import UserError
from fairway.config.settings import ModelConfig, QuantConfig
from fairway.model.gpt import GPT
from fairway.quantise.gptq import (
    Matrix,
    dequantise,
    full_precision,
    gptq_all,
    grid_of,
    inverse_factor,
    is_coded,
    needs_hessian,
    quantise_model,
    round_plainly,
    tensor_stats,
)
from fairway.quantise.grid import Grid, QuantisedTensor, restore, row_scales, scale_of

INT6 = Grid(6, 12.85)
SETTINGS = {"damp": 0.01, "block": 8}


def gptq(
    w_RC: Tensor, hessian_CC: Tensor, grid: Grid, *, name: str = "the matrix", **settings: Any
) -> QuantisedTensor:
    """Return the codes of one matrix."""
    [(_, found)] = gptq_all([Matrix(name, w_RC, hessian_CC, grid)], **settings)
    return found


def problem(rows: int = 12, columns: int = 20, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A matrix and the Hessian of correlated inputs of very different energy."""
    generator = torch.Generator().manual_seed(seed)
    x_NC = torch.randn(64, columns, generator=generator) @ torch.randn(
        columns, columns, generator=generator
    )
    x_NC *= torch.logspace(-1, 1, columns)[torch.randperm(columns, generator=generator)]
    return torch.randn(rows, columns, generator=generator), x_NC.T @ x_NC


def plain_gptq(w_RC: Tensor, hessian_CC: Tensor, grid: Grid, damp: float, order: Tensor) -> Tensor:
    """One column at a time in float64; the inverse of what is left is shrunk, not factored."""
    scale_R = row_scales(w_RC, grid, "w").double()
    w_RC, H_CC = w_RC.double().clone(), hessian_CC.double().clone()
    dead = H_CC.diagonal() == 0
    H_CC[dead, dead] = 1.0
    w_RC[:, dead] = 0.0
    H_CC += damp * H_CC.diagonal().mean() * torch.eye(len(H_CC))
    codes_RC = torch.zeros_like(w_RC)
    left = order.tolist()
    while left:
        j = left[0]
        inverse = torch.linalg.inv(H_CC[left][:, left])
        most = 2 ** (grid.bits - 1) - 1
        codes_RC[:, j] = (w_RC[:, j] / scale_R).round().clamp(-most, most)
        error_R = w_RC[:, j] - codes_RC[:, j] * scale_R
        w_RC[:, left] -= torch.outer(error_R, inverse[0] / inverse[0, 0])
        left = left[1:]
    return codes_RC.to(torch.int8)


def output_error(w_RC: Tensor, quantised: QuantisedTensor, hessian_CC: Tensor) -> float:
    off_RC = w_RC - restore(quantised)
    return float(((off_RC @ hessian_CC) * off_RC).sum())


@pytest.mark.parametrize("block", [1, 3, 8, 20, 128])
@pytest.mark.parametrize("dead", [(), (0, 7, 19)])
def test_equals_the_plain_column_by_column_version(block: int, dead: tuple[int, ...]) -> None:
    w_RC, hessian_CC = problem()
    # Energies up to 1, the value that a dead column's diagonal takes.
    hessian_CC /= hessian_CC.diagonal().max()
    for column in dead:
        hessian_CC[column] = hessian_CC[:, column] = 0.0
    energy_C = torch.where(hessian_CC.diagonal() == 0, 1.0, hessian_CC.diagonal())
    order = energy_C.argsort(descending=True, stable=True)
    for grid, damp in ((INT6, 0.01), (INT6, 0.5), (Grid(4, 1.5), 0.01)):
        expected = plain_gptq(w_RC, hessian_CC, grid, damp, order)
        found = gptq(w_RC, hessian_CC, grid, damp=damp, block=block)
        assert torch.equal(found.codes, expected)
    assert found.codes.min() == -7 and found.codes.max() == 7


def batch(device: str = "cpu") -> list[Matrix]:
    """Matrices of two widths, two heights and two numbers of bits; some share a Hessian."""
    found = []
    for number, (rows, columns, bits) in enumerate(
        [(12, 20, 6), (5, 20, 6), (12, 33, 6), (12, 20, 6), (12, 20, 4), (12, 33, 6)]
    ):
        w_RC, hessian_CC = problem(rows, columns, seed=number)
        if number in (1, 3):
            hessian_CC = found[0].hessian
        if number == 5:
            hessian_CC[4] = hessian_CC[:, 4] = 0.0
        grid = Grid(bits, 12.85 + number)
        weight, hessian = w_RC.to(device), hessian_CC.to(device)
        found.append(Matrix(f"m{number}", weight, hessian, grid))
    return found


def test_many_together_equal_one_at_a_time() -> None:
    together = dict(gptq_all(batch(), **SETTINGS))
    assert sorted(together) == [f"m{number}" for number in range(6)]
    for m in batch():
        alone = gptq(m.weight, m.hessian, m.grid, **SETTINGS)
        assert torch.equal(together[m.name].codes, alone.codes)
        assert torch.equal(together[m.name].scale, alone.scale)
        assert together[m.name].bits == m.grid.bits


def test_groups_come_by_width_then_height_then_bits_and_factorise_a_hessian_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    kept: list[weakref.ref[Tensor]] = []
    gone: dict[str, bool] = {}

    def counted(hessian_CC: Tensor, damp: float, name: str) -> Tensor:
        asked.append(name)
        if len(hessian_CC) == 33:
            gone[name] = not any(factor() is not None for factor in kept)
        upper_CC = inverse_factor(hessian_CC, damp, name)
        kept.append(weakref.ref(upper_CC))
        return upper_CC

    monkeypatch.setattr("fairway.quantise.gptq.inverse_factor", counted)
    found = [name for name, _ in gptq_all(batch(), **SETTINGS)]
    assert gone == {"m2": True, "m5": False}
    # 20 columns: m1 has 5 rows, m4 4 bits; 33 columns: m2 and m5.
    assert found == ["m1", "m4", "m0", "m3", "m2", "m5"]
    assert asked == ["m1", "m4", "m2", "m5"]


def test_codes_and_scales_of_a_group_are_copies_of_their_own() -> None:
    for tensor in dict(gptq_all(batch(), **SETTINGS)).values():
        for part in (tensor.codes, tensor.scale):
            assert part.is_contiguous()
            assert part.untyped_storage().nbytes() == part.numel() * part.element_size()
        assert tensor.codes.dtype == torch.int8 and tensor.scale.dtype == torch.float16


def test_one_hessian_that_needs_damping_leaves_the_others_alone() -> None:
    matrices = batch()
    hessian_CC = matrices[2].hessian
    hessian_CC[0, 1] = hessian_CC[1, 0] = 2 * hessian_CC.diagonal().max()
    with pytest.warns(UserWarning, match="Hessian of m2 needed") as told:
        found = dict(gptq_all(matrices, **SETTINGS))
    assert len(told) == 1
    clean = dict(gptq_all(batch(), **SETTINGS))
    same = [name for name in found if torch.equal(found[name].codes, clean[name].codes)]
    assert sorted(same) == ["m0", "m1", "m3", "m4", "m5"]


def test_products_are_full_precision_whatever_the_plan_allows() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with full_precision():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_codes_are_those_of_the_cpu_up_to_ties() -> None:
    w_RC, hessian_CC = problem(300, 260, seed=4)
    settings = {"damp": 0.01, "block": 128}
    wanted = gptq(w_RC, hessian_CC, INT6, **settings)
    found = gptq(w_RC.cuda(), hessian_CC.cuda(), INT6, **settings)
    assert found.codes.device.type == "cpu" and torch.equal(found.scale, wanted.scale)
    # Sums in another order: a value this close to a tie falls on the other side, and the values
    # after it in its row then differ by what is fed back.
    assert float((found.codes != wanted.codes).float().mean()) < 2e-3
    together, alone = dict(gptq_all(batch("cuda"), **SETTINGS)), dict(gptq_all(batch(), **SETTINGS))
    for name, tensor in together.items():
        assert float((tensor.codes != alone[name].codes).float().mean()) < 0.02
    on_gpu, on_cpu = (
        tensor_stats("w", w.to(device), wanted, hessian_CC.to(device))
        for device, w in (("cuda", w_RC), ("cpu", w_RC))
    )
    assert on_gpu.error == pytest.approx(on_cpu.error, rel=1e-4)
    assert on_gpu.entropy_bits == on_cpu.entropy_bits


def test_weights_and_hessians_of_other_dtypes_are_computed_with_in_float32() -> None:
    w_RC, hessian_CC = (part.bfloat16() for part in problem())
    found = gptq(w_RC, hessian_CC, INT6, **SETTINGS)
    wanted = gptq(w_RC.float(), hessian_CC.float(), INT6, **SETTINGS)
    assert torch.equal(found.codes, wanted.codes) and torch.equal(found.scale, wanted.scale)


def test_scale_of_the_hessian_does_not_matter() -> None:
    w_RC, hessian_CC = problem(seed=3)
    one = gptq(w_RC, hessian_CC, INT6, **SETTINGS)
    other = gptq(w_RC, hessian_CC * 2.0**-12, INT6, **SETTINGS)
    assert torch.equal(one.codes, other.codes)


def test_loses_less_than_plain_rounding() -> None:
    w_RC, hessian_CC = problem(48, 32, seed=1)
    fed_back = gptq(w_RC, hessian_CC, INT6, **SETTINGS)
    rounded = round_plainly(w_RC, INT6, "w")
    assert torch.equal(fed_back.scale, rounded.scale)
    assert output_error(w_RC, fed_back, hessian_CC) < 0.7 * output_error(w_RC, rounded, hessian_CC)


def test_without_correlation_it_is_plain_rounding() -> None:
    w_RC, _ = problem()
    hessian_CC = torch.diag(torch.linspace(1, 5, 20))
    assert torch.equal(
        gptq(w_RC, hessian_CC, INT6, **SETTINGS).codes, round_plainly(w_RC, INT6, "w").codes
    )


def test_zero_row_stays_zero() -> None:
    w_RC, hessian_CC = problem()
    w_RC[4] = 0.0
    found = gptq(w_RC, hessian_CC, INT6, **SETTINGS)
    assert not found.codes[4].any()
    assert torch.isfinite(restore(found)).all()


def test_dead_columns_become_zero_and_the_scale_is_that_of_the_original_row() -> None:
    w_RC, hessian_CC = problem()
    for dead in (0, 13):
        hessian_CC[dead] = 0.0
        hessian_CC[:, dead] = 0.0
    found = gptq(w_RC, hessian_CC, INT6, **SETTINGS)
    assert not found.codes[:, [0, 13]].any()
    assert found.codes[:, 1].any()
    assert torch.equal(found.scale, row_scales(w_RC, INT6, "w"))


def test_no_calibration_at_all_gives_zeros() -> None:
    w_RC, _ = problem()
    assert not gptq(w_RC, torch.zeros(20, 20), INT6, **SETTINGS).codes.any()


def test_equal_energies_keep_the_columns_order() -> None:
    w_RC, hessian_CC = problem()
    d_C = hessian_CC.diagonal().rsqrt()
    equal_CC = (d_C[:, None] * hessian_CC * d_C).fill_diagonal_(1.0)
    found = gptq(w_RC, equal_CC, INT6, **SETTINGS)
    assert torch.equal(found.codes, plain_gptq(w_RC, equal_CC, INT6, 0.01, torch.arange(20)))


def test_inputs_are_left_alone() -> None:
    w_RC, hessian_CC = problem()
    hessian_CC[2] = hessian_CC[:, 2] = 0.0
    kept = w_RC.clone(), hessian_CC.clone()
    gptq(w_RC, hessian_CC, INT6, **SETTINGS)
    assert torch.equal(w_RC, kept[0]) and torch.equal(hessian_CC, kept[1])


@pytest.mark.parametrize(("beyond", "times"), [(0.95, 100), (50.0, 10_000), (950.0, 100_000)])
def test_indefinite_hessian_gets_more_damping_and_a_warning(beyond: float, times: int) -> None:
    # Eigenvalues 2 + x and -x, a mean of 1: 0.01 times a power of ten must exceed x.
    hessian_CC = torch.tensor([[1.0, 1.0 + beyond], [1.0 + beyond, 1.0]])
    w_RC = problem(6, 2)[0]
    with pytest.warns(UserWarning, match=rf"^the Hessian of x needed {times} times the damping$"):
        found = gptq(w_RC, hessian_CC, INT6, **SETTINGS, name="x")
    plain = plain_gptq(w_RC, hessian_CC, INT6, 0.01 * times, torch.arange(2))
    assert torch.equal(found.codes, plain)


def test_hopeless_hessian_is_refused() -> None:
    told = "the calibration statistics of the matrix are not positive; calibrate on more text"
    # Six tries end at 0.01 * 10^5 = 1000.
    for hessian_CC in (-torch.eye(2), torch.tensor([[1.0, 1101.0], [1101.0, 1.0]])):
        with pytest.raises(UserError, match=told):
            gptq(problem(6, 2)[0], hessian_CC, INT6, **SETTINGS)


def test_the_factor_is_that_of_the_inverse() -> None:
    hessian_CC = problem(columns=33)[1]
    upper_CC = inverse_factor(hessian_CC, 0.02, "w").double()
    damped_CC = hessian_CC.double()
    damped_CC += 0.02 * damped_CC.diagonal().mean() * torch.eye(33)
    assert torch.equal(upper_CC, upper_CC.triu())
    product_CC = damped_CC @ (upper_CC.T @ upper_CC)
    torch.testing.assert_close(product_CC, torch.eye(33).double(), rtol=0, atol=2e-4)


def test_one_position_of_calibration_is_enough_without_a_warning() -> None:
    w_RC, _ = problem()
    x_C = torch.randn(20, generator=torch.Generator().manual_seed(5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gptq(w_RC, torch.outer(x_C, x_C), INT6, **SETTINGS)


@pytest.mark.parametrize(
    "hessian",
    [
        torch.full((20, 20), float("nan")),
        torch.eye(20).index_fill(1, torch.tensor([3]), math.inf),
        torch.eye(19),
        torch.ones(20),
    ],
)
def test_unusable_hessians_are_refused(hessian: Tensor) -> None:
    with pytest.raises(UserError, match="statistics of the matrix are not a finite 20 x 20"):
        gptq(problem()[0], hessian, INT6, **SETTINGS)


# ---------------------------------------------------------------------------------------------


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


def test_untied_embedding_is_rounded_plainly() -> None:
    state = {**toy_state(), "head.weight": toy_state()["tok_emb.weight"]}
    hessians = toy_hessians()
    hessians["head.weight"] = hessians.pop("tok_emb.weight")
    embedding = quantise_model(state, hessians, CONFIG)["tok_emb.weight"]
    expected = round_plainly(state["tok_emb.weight"], Grid(8, 20.0), "w")
    assert isinstance(embedding, QuantisedTensor)
    assert torch.equal(embedding.codes, expected.codes)


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
        ("head.weight", (3, 4), True),
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
        ("head.weight", Grid(7, 11.5)),
        ("embed_proj.weight", Grid(5, 9.5)),
        ("blocks.0.attn.c_q.weight", Grid(5, 9.5)),
    ):
        assert grid_of(name, weight, config) == grid


def test_only_an_untied_embedding_is_not_multiplied() -> None:
    tied, untied = {"tok_emb.weight": 0, "x.weight": 0}, {"tok_emb.weight": 0, "head.weight": 0}
    assert needs_hessian("tok_emb.weight", tied) and needs_hessian("x.weight", tied)
    assert not needs_hessian("tok_emb.weight", untied)
    assert needs_hessian("head.weight", untied) and needs_hessian("x.weight", untied)


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
