"""Size estimates: the Gaussian formula, and a sampled one near the real artifact."""

import pytest
import torch

from fairway.config.overrides import override
from fairway.config.settings import Config
from fairway.model.gpt import build
from fairway.quantise.estimate import (
    counted,
    estimate_bytes,
    estimated_total,
    expected_bytes,
    gaussian_bits,
    how_counted,
)
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
    assert expected_bytes(Config(), 0) == pytest.approx(15_976_000, rel=0.02)


def test_estimate_of_gaussian_weights_agrees_with_the_formula() -> None:
    config = recipe("demo")
    model = build(config.model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    assert estimate_bytes(model, config.quant) == pytest.approx(expected_bytes(config, 0), rel=0.01)


def test_a_trellis_is_told_its_bits_and_a_full_budget_its_size() -> None:
    changes = ["quant.method=trellis", "quant.rate_bits=4.0"]
    four = expected_bytes(override(recipe("demo"), changes), 0)
    three = expected_bytes(override(recipe("demo"), [*changes[:1], "quant.rate_bits=3.0"]), 0)
    model = build(recipe("demo").model)
    coded = sum(w.numel() for n, w in model.named_parameters() if is_coded(n, w, 4096))
    assert four - three == pytest.approx(coded / 8, abs=1)
    assert estimate_bytes(model, override(recipe("demo"), changes).quant) == four
    plain = override(recipe("demo"), changes)
    assert estimated_total(model, plain, 1000) == four + 1000
    full = override(plain, ["quant.fit=true", "pack.limit_bytes=900000"])
    assert expected_bytes(full, 1000) == 899_000
    # Code that leaves no room is not made smaller by saying so.
    assert [estimated_total(model, full, code) for code in (1000, 900_001)] == [900_000, 900_001]


def test_declared_bytes_count_instead_of_the_bundle() -> None:
    for text, counts, how in (("auto", 28_000, "measured"), ("0", 0, "declared")):
        pack = override(recipe("smoke"), [f"pack.code_bytes={text}"]).pack
        assert (counted(pack, 28_000), how_counted(pack)) == (counts, how)
