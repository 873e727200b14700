"""Size estimates: the Gaussian formula, and a sampled one near the real artifact."""

import pytest
import torch

from fairway.config import Config
from fairway.model.gpt import build
from fairway.overrides import override
from fairway.quantise.estimate import estimate_bytes, expected_bytes, gaussian_bits
from fairway.quantise.gptq import is_coded
from fairway.quantise.grid import Grid
from fairway.recipes import recipe


@pytest.mark.parametrize(
    ("bits", "sigmas", "entropy"),
    [(6, 12.85, 3.33), (8, 20.0, 4.72), (6, 11.5, 3.49), (7, 14.0, 4.22)],
)
def test_gaussian_entropy_matches_the_published_figures(
    bits: int, sigmas: float, entropy: float
) -> None:
    assert gaussian_bits(Grid(bits, sigmas)) == pytest.approx(entropy, abs=0.02)


def test_seed_recipe_is_expected_where_the_records_are() -> None:
    # The seed's artifacts hold 15,975,300 to 15,976,638 bytes; Brotli is 1.2 % above the entropy.
    assert expected_bytes(Config()) == pytest.approx(15_976_000, rel=0.02)


def test_estimate_of_gaussian_weights_agrees_with_the_formula() -> None:
    config = recipe("demo")
    model = build(config.model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    assert estimate_bytes(model, config.quant) == pytest.approx(expected_bytes(config), rel=0.01)


def test_a_trellis_is_told_its_bits_and_a_full_budget_its_size() -> None:
    changes = ["quant.method=trellis", "quant.rate_bits=4.0"]
    four = expected_bytes(override(recipe("demo"), changes))
    three = expected_bytes(override(recipe("demo"), [*changes[:1], "quant.rate_bits=3.0"]))
    model = build(recipe("demo").model)
    coded = sum(w.numel() for n, w in model.named_parameters() if is_coded(n, w, 4096))
    assert four - three == pytest.approx(coded / 8, abs=1)
    assert estimate_bytes(model, override(recipe("demo"), changes).quant) == four
    budget = ["quant.fill=true", "pack.limit_bytes=900000", "pack.code_bytes=1000"]
    assert expected_bytes(override(recipe("demo"), [*changes, *budget])) == 899_000
