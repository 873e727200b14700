"""Corrections of low rank against the truth in float64, and which matrices get one."""

from dataclasses import replace

import pytest
import torch
from specimens import TINY, alive
from torch import Tensor

from fairway.config.settings import QuantConfig
from fairway.quantise.correction import Correction, product
from fairway.quantise.estimate import estimate_bytes, factor_bytes
from fairway.quantise.gptq import QuantisedModel, energy, quantise_model
from fairway.quantise.grid import QuantisedTensor, restore
from fairway.quantise.low_rank import code, corrected, factors

CONFIG = QuantConfig(min_numel=16, method="round", lqer_rank=2)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(9, 5), (5, 9), (3, 3)])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_factors_are_the_nearest_of_their_rank_to_the_weights(
    shape: tuple[int, int], rank: int
) -> None:
    error_RC = random(*shape)
    left_RK, right_KC = factors(error_RC, rank)
    assert left_RK.shape == (shape[0], rank) and right_KC.shape == (rank, shape[1])
    # Eckart and Young: what is left is the sum of the other squared singular values.
    rest = torch.linalg.svdvals(error_RC)[rank:].square().sum()
    assert energy(error_RC - left_RK @ right_KC, None) == pytest.approx(float(rest), abs=1e-12)
    # The larger end of two bits is the negative one.
    assert (left_RK.amin(0).abs() >= left_RK.amax(0)).all()


def test_codes_are_those_of_pull_request_1797() -> None:
    left_RK = torch.tensor([[-3.0, 0.2], [2.9, -1.1], [0.9, 1.0]]).double()
    right_KC = random(2, 70, seed=3)
    found = code(left_RK, right_KC)
    # One scale of max / 1.5; what is positive and large saturates at 1.
    assert found.scales[0] == 2.0
    assert found.left.tolist() == [[-2, 0], [1, -1], [0, 0]]
    # 140 numbers in groups of 64, each with max / 7.5.
    flat_N, whole_N = right_KC.flatten(), found.right.flatten()
    assert len(found.scales) == 4
    for group in range(3):
        part_N, scale = flat_N[64 * group :][:64], found.scales[1 + group].double()
        assert scale == (part_N.abs().max() / 7.5).half()
        wanted_N = torch.round(part_N / scale).clamp(-8, 7)
        assert torch.equal(whole_N[64 * group :][:64].double(), wanted_N)


def test_a_product_is_the_sum_over_components_in_their_order() -> None:
    # 16,777,216 + 1 + 1 in float32 depends on the order.
    left = torch.tensor([[1, 1, 1]]).to(torch.int8)
    right = torch.tensor([[4], [1], [1]]).to(torch.int8).repeat(1, 64)
    scales = torch.tensor([1.0, 65504.0, 2.0**-24, 2.0**-24]).half()
    found = product(Correction(left, right, scales))
    assert found.dtype == torch.float32 and torch.equal(found, torch.full((1, 64), 262016.0))
    assert not product(Correction(left, 0 * right, scales)).any()


def test_an_error_of_nothing_and_one_beyond_float16_have_finite_codes() -> None:
    nothing = code(torch.zeros(4, 2).double(), torch.zeros(2, 8).double())
    assert not product(nothing).any() and torch.isfinite(nothing.scales).all()
    far = code(torch.full((4, 1), -1e6).double(), torch.ones(1, 8).double())
    assert torch.isfinite(product(far)).all()


def toy() -> dict[str, Tensor]:
    shapes = {
        "tok_emb.weight": (16, 8),
        "blocks.0.mlp.fc.weight": (10, 8),
        "blocks.1.mlp.fc.weight": (10, 8),
        "blocks.0.attn.c_k.weight": (2, 8),
    }
    state = {name: random(*shape, seed=len(name)).float() for name, shape in shapes.items()}
    state["blocks.1.mlp.fc.weight"] *= 4
    return state


def amended_names(quantised: QuantisedModel) -> list[str]:
    return [
        name
        for name, tensor in quantised.items()
        if isinstance(tensor, QuantisedTensor) and tensor.correction is not None
    ]


def test_the_matrices_with_the_largest_errors_are_corrected_and_come_closer() -> None:
    state = toy()
    plain = quantise_model(state, {}, replace(CONFIG, embed_bits=3, matrix_bits=3))
    errors = {
        name: energy(state[name] - restore(tensor), None)
        for name, tensor in plain.items()
        if isinstance(tensor, QuantisedTensor)
    }
    found = corrected(plain, state, 2)
    worst = sorted(errors, key=lambda name: -errors[name])[:3]
    assert list(found) == list(plain) and sorted(amended_names(found)) == sorted(worst)
    for name in worst:
        tensor, before = found[name], plain[name]
        assert isinstance(tensor, QuantisedTensor) and isinstance(before, QuantisedTensor)
        assert torch.equal(tensor.codes, before.codes)
        assert energy(state[name] - restore(tensor), None) < 0.9 * errors[name]


def test_what_is_exact_already_stays_as_it_is() -> None:
    state = toy()
    plain = quantise_model(state, {}, CONFIG)
    exact = {
        name: restore(tensor) if isinstance(tensor, QuantisedTensor) else tensor.float()
        for name, tensor in plain.items()
    }
    assert amended_names(corrected(plain, exact, 2)) == []


def test_the_estimate_counts_the_factors_of_the_largest_matrices() -> None:
    config = QuantConfig(lqer_rank=4)
    each = [4 * (2 * 96 + 4 * 64) / 8 + 2 * (1 + 4), 4 * (2 * 64 + 4 * 32) / 8 + 2 * (1 + 2)]
    each.append(each[1])
    assert factor_bytes([(64, 32), (8, 8), (96, 64), (64, 32)], config) == sum(each)
    assert factor_bytes([(96, 64)], QuantConfig()) == 0.0
    model = alive(replace(TINY, dim=256, rope_dims=4, mlp_dim=512))
    off, on = (estimate_bytes(model, QuantConfig(lqer_rank=rank)) for rank in (0, 4))
    # Down-projections of both blocks, 256 x 512, and an up-projection.
    assert on - off == 2 * (1280 + 66) + (1024 + 34)
