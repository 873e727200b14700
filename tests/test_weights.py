import json
import math

import numpy as np
import pytest
import scipy.stats
import torch

from fairway.base.errors import UserError
from fairway.quantise.weights import (
    VOID_FRACTION_GAUSSIAN,
    VOID_RULE,
    code_entropy_bits,
    role_of,
    row_kurtosis,
    void_count,
    void_fraction,
    weight_statistics,
)

RNG = np.random.default_rng(7)


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("blocks.3.attn.c_q.weight", "attn.c_q"),
        ("blocks.11.mlp.proj", "mlp.proj"),
        ("tok_emb.weight", "tok_emb"),
        ("layers.2.experts.4.up.weight", "up"),
        ("weight", "weight"),
        ("7", "7"),
    ],
)
def test_role_is_the_name_without_numbers(name, role):
    assert role_of(name) == role


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e-30, 1e30])
def test_row_kurtosis_equals_scipy_at_any_scale(scale):
    values = RNG.standard_t(5, size=(9, 300))
    expected = scipy.stats.kurtosis(values, axis=1, fisher=False)
    assert row_kurtosis((values * scale).astype(np.float32)) == pytest.approx(expected, rel=1e-4)


def test_constant_rows_have_no_kurtosis():
    values = RNG.normal(size=(4, 50))
    values[1], values[3] = 0.0, 0.1
    assert row_kurtosis(values).shape == (2,)


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        (RNG.normal(size=400_000), VOID_FRACTION_GAUSSIAN),
        (RNG.laplace(size=400_000), 1 - np.exp(-1)),
        (RNG.uniform(-1, 1, size=400_000), 0.5),
    ],
)
def test_void_fraction_of_known_distributions(sample, expected):
    assert void_count(sample) / sample.size == pytest.approx(expected, abs=0.004)


def test_the_gaussian_void_fraction_is_the_documented_one():
    assert pytest.approx(0.5751, abs=5e-5) == VOID_FRACTION_GAUSSIAN


@pytest.mark.parametrize("value", [0.0, 0.1, -3.0])
def test_a_constant_tensor_is_all_void(value):
    assert void_count(np.full((40, 40), value, dtype=np.float32)) == 1600


def test_the_void_fraction_of_1858_counts_by_its_own_rule():
    """Names and sizes decide, not shapes: skip weights count, gains and short tensors do not."""
    draw = np.random.default_rng(3)
    tensors = {
        "blocks.0.attn.c_q.weight": draw.normal(size=(40, 30)).astype(np.float32),
        "tok_emb.weight": torch.from_numpy(draw.laplace(size=(64, 32))).bfloat16(),
        "skip_weights": draw.uniform(size=(3, 400)).astype(np.float16),
        "short.weight": np.zeros(1000, np.float32),
        "just.weight": np.zeros(1001, np.float64),
        "blocks.0.attn_scale": np.ones(5000, np.float32),
        "weight_codes": np.ones((40, 40), np.int8),
    }
    void = count = 0
    for name in ("blocks.0.attn.c_q.weight", "tok_emb.weight", "skip_weights", "just.weight"):
        tensor = tensors[name]
        sizes = [abs(float(w)) for w in torch.as_tensor(tensor).flatten().double()]
        mean = math.fsum(sizes) / len(sizes)
        void += sum(size <= mean for size in sizes)
        count += len(sizes)
    assert count == 1200 + 2048 + 1200 + 1001
    assert void_fraction(tensors.items()) == void / count
    assert void_fraction([("gain", np.ones(5000))]) is None
    assert "1,000 elements" in VOID_RULE and "skip weights" in VOID_RULE


def test_rounding_moves_the_void_fraction_and_the_grid_says_how():
    """The mean size of a Gaussian, 0.80 sigma, lies between two levels of 0.41: the lower count."""
    values = np.random.default_rng(5).normal(size=(300, 400))
    step = 12.85 / 31
    rounded = np.rint(values / step) * step
    expected = math.erf(1.5 * step / math.sqrt(2))
    assert void_fraction([("weight", values)]) == pytest.approx(VOID_FRACTION_GAUSSIAN, abs=0.004)
    assert void_fraction([("weight", rounded)]) == pytest.approx(expected, abs=0.004)


def test_code_entropy_equals_scipy_and_is_zero_for_one_symbol():
    codes = RNG.integers(-31, 32, size=(50, 80)).astype(np.int8)
    _, counts = np.unique(codes, return_counts=True)
    assert code_entropy_bits(codes) == pytest.approx(scipy.stats.entropy(counts, base=2))
    assert code_entropy_bits(np.zeros((5, 5), np.int8)) == 0.0


def example() -> tuple[dict, dict]:
    state = {
        "blocks.0.mlp.fc.weight": RNG.normal(size=(64, 32)).astype(np.float32),
        "blocks.1.mlp.fc.weight": RNG.normal(size=(32, 32)).astype(np.float32),
        "tok_emb.weight": RNG.laplace(size=(128, 32)).astype(np.float32),
        "skip_weights": np.ones((8, 512), np.float32),
        "blocks.0.attn_scale": np.ones(5000, np.float32),
        "step": np.ones((64, 64), np.int64),
    }
    names = [name for name in state if name.endswith("weight")]
    return state, {name: np.rint(4 * state[name]).astype(np.int8) for name in names}


def test_roles_pool_their_tensors_and_skip_what_is_no_matrix():
    state, codes = example()
    found = weight_statistics(state, codes)
    assert list(found["roles"]) == ["mlp.fc", "tok_emb"]
    fc, pooled = found["roles"]["mlp.fc"], found["pooled"]
    assert (fc["tensors"], fc["weights"], fc["rows"]) == (2, 3072, 96)
    assert (pooled["tensors"], pooled["weights"]) == (3, 3072 + 4096)
    first, second = codes["blocks.0.mlp.fc.weight"], codes["blocks.1.mlp.fc.weight"]
    by_size = (2 * code_entropy_bits(first) + code_entropy_bits(second)) / 3
    assert fc["code_entropy_bits"] == pytest.approx(by_size)
    assert fc["zero_mass"] == pytest.approx(((first == 0).sum() + (second == 0).sum()) / 3072)
    rows = [row_kurtosis(state[f"blocks.{i}.mlp.fc.weight"]) for i in (0, 1)]
    assert fc["row_kurtosis"] == pytest.approx(np.median(np.concatenate(rows)))
    json.dumps(found, allow_nan=False)


def test_torch_tensors_of_any_precision_give_the_same():
    state, codes = example()
    exact = {name: torch.from_numpy(values).bfloat16() for name, values in state.items()}
    plain = {name: tensor.float().numpy() for name, tensor in exact.items()}
    coded = {name: torch.from_numpy(values) for name, values in codes.items()}
    del exact["step"], plain["step"]
    assert weight_statistics(exact, coded) == weight_statistics(plain, codes)


def test_without_codes_only_the_code_statistics_are_missing():
    pooled = weight_statistics(example()[0])["pooled"]
    assert pooled["code_entropy_bits"] is None and pooled["zero_mass"] is None
    assert pooled["coded_weights"] == 0 and pooled["row_kurtosis"] > 1


def test_zero_rows_and_constant_tensors_are_counted_not_averaged():
    values = RNG.normal(size=(64, 64))
    values[:10] = 0.0
    state = {"a.weight": values, "b.weight": np.full((40, 40), 0.1)}
    found = weight_statistics(state)
    assert found["roles"]["a"]["constant_rows"] == 10
    assert found["roles"]["b"]["row_kurtosis"] is None
    assert found["roles"]["b"]["unrounded_void_fraction"] == 1.0
    assert found["pooled"]["constant_rows"] == 50


def test_no_matrix_at_all_is_an_empty_table():
    found = weight_statistics({"gain": np.ones(8, np.float32)})
    assert found["roles"] == {} and found["pooled"]["weights"] == 0
    json.dumps(found, allow_nan=False)


def test_large_tensors_are_read_in_pieces_with_the_same_result():
    values = RNG.normal(size=(2100, 600)).astype(np.float32)
    found = weight_statistics({"a.weight": values})["pooled"]
    assert found["rows"] == 2100
    assert found["row_kurtosis"] == pytest.approx(float(np.median(row_kurtosis(values))))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named(bad):
    values = RNG.normal(size=(64, 64))
    values[3, 4] = bad
    with pytest.raises(UserError, match=r"'blocks\.0\.up\.weight' holds NaN or infinity"):
        weight_statistics({"blocks.0.up.weight": values})


def test_codes_of_another_shape_are_refused():
    state, codes = example()
    codes["tok_emb.weight"] = codes["tok_emb.weight"][:-1]
    with pytest.raises(UserError, match=r"codes of 'tok_emb\.weight' have shape"):
        weight_statistics(state, codes)
