import warnings
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fairway.config import ModelConfig, QuantConfig
from fairway.errors import UserError
from fairway.model.gpt import GPT
from fairway.quantise.gptq import (
    Matrix,
    dequantise,
    full_precision,
    gptq,
    gptq_all,
    grid_of,
    quantise_model,
    round_plainly,
    tensor_stats,
)
from fairway.quantise.grid import Grid, QuantisedTensor, restore, row_scales

INT6 = Grid(6, 12.85)
SETTINGS = {"damp": 0.01, "block": 8, "act_order": True}


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
    w_RC, H_CC = w_RC.double().clone(), hessian_CC.double().clone()
    dead = H_CC.diagonal() == 0
    H_CC[dead, dead] = 1.0
    w_RC[:, dead] = 0.0
    H_CC += damp * H_CC.diagonal().mean() * torch.eye(len(H_CC))
    scale_R = row_scales(w_RC.float(), grid, "w").double()
    codes_RC = torch.zeros_like(w_RC)
    left = order.tolist()
    while left:
        j = left[0]
        inverse = torch.linalg.inv(H_CC[left][:, left])
        codes_RC[:, j] = (w_RC[:, j] / scale_R).round().clamp(-31, 31)
        error_R = w_RC[:, j] - codes_RC[:, j] * scale_R
        w_RC[:, left] -= torch.outer(error_R, inverse[0] / inverse[0, 0])
        left = left[1:]
    return codes_RC.to(torch.int8)


def output_error(w_RC: Tensor, quantised: QuantisedTensor, hessian_CC: Tensor) -> float:
    off_RC = w_RC - restore(quantised)
    return float(((off_RC @ hessian_CC) * off_RC).sum())


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("block", [1, 3, 8, 20, 128])
def test_equals_the_plain_column_by_column_version(act_order: bool, block: int) -> None:
    w_RC, hessian_CC = problem()
    order = torch.arange(20)
    if act_order:
        order = hessian_CC.diagonal().argsort(descending=True)
    expected = plain_gptq(w_RC, hessian_CC, INT6, 0.01, order)
    found = gptq(w_RC, hessian_CC, INT6, damp=0.01, block=block, act_order=act_order)
    assert torch.equal(found.codes, expected)


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


@pytest.mark.parametrize("act_order", [True, False])
def test_many_together_equal_one_at_a_time(act_order: bool) -> None:
    settings = {"damp": 0.01, "block": 8, "act_order": act_order}
    together = dict(gptq_all(batch(), **settings))
    assert sorted(together) == [f"m{number}" for number in range(6)]
    for m in batch():
        alone = gptq(m.weight, m.hessian, m.grid, **settings)
        assert torch.equal(together[m.name].codes, alone.codes)
        assert torch.equal(together[m.name].scale, alone.scale)
        assert together[m.name].bits == m.grid.bits


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
    settings = {"damp": 0.01, "block": 128, "act_order": True}
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
    ordered = gptq(w_RC, equal_CC, INT6, damp=0.01, block=8, act_order=True)
    plain = gptq(w_RC, equal_CC, INT6, damp=0.01, block=8, act_order=False)
    assert torch.equal(ordered.codes, plain.codes)


def test_inputs_are_left_alone() -> None:
    w_RC, hessian_CC = problem()
    hessian_CC[2] = hessian_CC[:, 2] = 0.0
    kept = w_RC.clone(), hessian_CC.clone()
    gptq(w_RC, hessian_CC, INT6, **SETTINGS)
    assert torch.equal(w_RC, kept[0]) and torch.equal(hessian_CC, kept[1])


def test_indefinite_hessian_gets_more_damping_and_a_warning() -> None:
    w_RC, hessian_CC = problem()
    hessian_CC[0, 1] = hessian_CC[1, 0] = 2 * hessian_CC.diagonal().max()
    with pytest.warns(UserWarning, match=r"Hessian of x needed 10+ times the damping"):
        found = gptq(w_RC, hessian_CC, INT6, **SETTINGS, name="x")
    assert torch.isfinite(restore(found)).all()


def test_one_position_of_calibration_is_enough_without_a_warning() -> None:
    w_RC, _ = problem()
    x_C = torch.randn(20, generator=torch.Generator().manual_seed(5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gptq(w_RC, torch.outer(x_C, x_C), INT6, **SETTINGS)


@pytest.mark.parametrize("hessian", [torch.full((20, 20), float("nan")), torch.eye(19)])
def test_unusable_hessians_are_refused(hessian: Tensor) -> None:
    with pytest.raises(UserError, match="statistics of the matrix are not a finite 20 x 20"):
        gptq(problem()[0], hessian, INT6, **SETTINGS)


def test_hopeless_hessian_is_refused() -> None:
    with pytest.raises(UserError, match="are not positive"):
        gptq(problem()[0], -torch.eye(20), INT6, **SETTINGS)


# ---------------------------------------------------------------------------------------------


def toy_state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "tok_emb.weight": (16, 8),
        "blocks.0.mlp.fc.weight": (10, 8),
        "blocks.0.attn.c_k.weight": (2, 8),
    }
    state = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {**state, "gain": torch.tensor([5.25, 1.0])}


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
    for name in ("blocks.0.attn.c_k.weight", "gain"):
        kept = quantised[name]
        assert isinstance(kept, Tensor) and kept.dtype == torch.float16
    restored = dequantise(quantised)
    assert all(tensor.dtype == torch.float32 for tensor in restored.values())
    assert restored["gain"].tolist() == [5.25, 1.0]
    assert torch.equal(restored["tok_emb.weight"], restore(embedding))


def test_method_round_needs_no_calibration() -> None:
    config = replace(CONFIG, method="round")
    quantised = quantise_model(toy_state(), {}, config)
    matrix = quantised["blocks.0.mlp.fc.weight"]
    expected = round_plainly(toy_state()["blocks.0.mlp.fc.weight"], INT6, "w")
    assert isinstance(matrix, QuantisedTensor) and torch.equal(matrix.codes, expected.codes)
    with pytest.raises(UserError, match=r"tok_emb\.weight has no calibration statistics"):
        quantise_model(toy_state(), {}, CONFIG)


def test_method_and_act_order_change_the_codes() -> None:
    def codes(config: QuantConfig) -> Tensor:
        tensor = quantise_model(toy_state(), toy_hessians(), config)["tok_emb.weight"]
        assert isinstance(tensor, QuantisedTensor)
        return tensor.codes

    base = codes(CONFIG)
    for changes in ({"method": "round"}, {"act_order": False}, {"damp": 1.0}):
        assert not torch.equal(base, codes(replace(CONFIG, **changes)))
    assert torch.equal(base, codes(replace(CONFIG, block=3)))


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
        (torch.tensor([1e5]), "gain holds a value that float16 cannot"),
        (torch.tensor([float("nan")]), "gain holds a value that float16 cannot"),
        (torch.tensor([1]), "gain is torch.int64; an artifact holds floating-point"),
    ],
)
def test_tensors_that_cannot_be_stored_are_named(value: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        quantise_model({**toy_state(), "gain": value}, toy_hessians(), CONFIG)


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


def test_gains_and_mixes_are_no_matrices() -> None:
    stacked = torch.zeros(8, 512)
    everything = QuantConfig(min_numel=0)
    assert grid_of("skip_weights", stacked, everything) is None
    assert grid_of("blocks.0.resid_mix", stacked, everything) is None
    assert grid_of("blocks.0.attn.c_k.weight", stacked, everything) == INT6


def test_statistics_of_a_matrix() -> None:
    w_RC, hessian_CC = problem(200, 64, seed=2)
    w_RC[:, :8] = 0.0
    quantised = gptq(w_RC, hessian_CC, Grid(6, 12.85), **SETTINGS)
    stats = tensor_stats("w", w_RC, quantised, hessian_CC)
    codes = quantised.codes.flatten().tolist()
    shares = [codes.count(code) / len(codes) for code in set(codes)]
    entropy = -sum(share * torch.tensor(share).log2().item() for share in shares)
    assert stats.entropy_bits == pytest.approx(entropy, abs=1e-5)
    assert stats.zero_share == codes.count(0) / len(codes)
    assert (stats.name, stats.values, stats.bits) == ("w", 12_800, 6)
    energy = float(((w_RC @ hessian_CC) * w_RC).sum())
    assert stats.error == pytest.approx(
        output_error(w_RC, quantised, hessian_CC) / energy, rel=1e-3
    )
    assert 0 < stats.error < stats.error_rounded
    assert stats.kurtosis > 3


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
