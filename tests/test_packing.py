"""Packing under a limit: the clip multiplier that makes a model fit, and the one that cannot."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import FEW

from fairway.base.errors import UserError
from fairway.config.settings import Config
from fairway.config.written import to_dict
from fairway.data.folder import DataFolder
from fairway.model.gpt import build
from fairway.pack.artifact import load_artifact
from fairway.pack.model import pack_model
from fairway.quantise.fit import SLACK

CODE_BYTES = 1234
Packed = tuple[dict[str, Any], list[str]]
Pack = Callable[..., Packed]


@pytest.fixture
def pack(tiny: Callable[..., Config], data_folder: Path, tmp_path: Path) -> Pack:
    """Return a function: pack a model of random weights, return the facts and what was said."""
    config = tiny(*FEW)
    model = build(config.model)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))

    def call(*settings: str) -> Packed:
        said: list[str] = []
        config = tiny(*FEW, *settings)
        provenance = {
            "recipe": "test",
            "recipe_hash": "0123456789abcdef",
            "seed": 1,
            "looping": False,
            "score": to_dict(config.score),
            "fairway": "0.1.0",
        }
        source, path = DataFolder.open(data_folder), tmp_path / "artifact.fwy"
        state = {name: weight.detach() for name, weight in model.named_parameters()}
        given = (config, CODE_BYTES, model, state, source, path, provenance)
        return pack_model(*given, said.append), said

    return call


def test_a_model_that_is_too_large_is_made_to_fit(pack: Pack, tmp_path: Path) -> None:
    asked, _ = pack()
    limit = asked["bytes"] + CODE_BYTES - 2000
    facts, said = pack("quant.fit=true", f"pack.limit_bytes={limit}")
    size = (tmp_path / "artifact.fwy").stat().st_size
    assert facts["bytes"] == size
    assert limit * (1 - SLACK) <= size + CODE_BYTES <= limit
    assert facts["matrix_sigmas"] > asked["matrix_sigmas"] == 12.85
    sentence = (
        f"clip multiplier 12.85 -> {facts['matrix_sigmas']:g} so that artifact and code fit: "
        f"{size + CODE_BYTES:,} of {limit:,} bytes"
    )
    assert said == [sentence]
    assert [path.name for path in tmp_path.iterdir()] == ["artifact.fwy"]
    direct, _ = pack(f"quant.matrix_sigmas={facts['matrix_sigmas']}")
    assert direct["digest"] == facts["digest"]
    # Made beside the only coding here, after the last one there.
    assert direct["matrices"] == facts["matrices"] and direct["weights"] == facts["weights"]


def test_a_model_that_fits_is_packed_as_asked(pack: Pack) -> None:
    asked, _ = pack()
    facts, said = pack("quant.fit=true")
    assert (facts["digest"], facts["matrix_sigmas"], said) == (asked["digest"], 12.85, [])


TRELLIS = ("quant.method=trellis", "pack.codec=cabac", "quant.gradient_tokens=512")


def test_steps_by_column_are_packed(pack: Pack, tmp_path: Path) -> None:
    facts, _ = pack(*TRELLIS)
    assert "columns" in [part["name"] for part in facts["sections"]]
    assert all(0 < matrix["error"] < 0.5 for matrix in facts["matrices"])
    load_artifact(tmp_path / "artifact.fwy")


def test_a_limit_below_any_clip_leaves_the_artifact_alone(pack: Pack, tmp_path: Path) -> None:
    pack()
    before = (tmp_path / "artifact.fwy").read_bytes()
    with pytest.raises(UserError, match="even at quant.matrix_sigmas=100, more than"):
        pack("quant.fit=true", "pack.limit_bytes=9000")
    assert (tmp_path / "artifact.fwy").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["artifact.fwy"]


TRELLIS = ("quant.method=trellis", "pack.codec=cabac", "quant.gradient_tokens=256")


@pytest.mark.long
def test_a_trellis_takes_about_the_bits_asked_for(pack: Pack) -> None:
    sizes = {}
    for bits in (3.0, 5.0):
        facts, said = pack(*TRELLIS, f"quant.rate_bits={bits}")
        sizes[bits] = facts["bytes"]
        assert said == [] and facts["matrix_sigmas"] is None and facts["level"] > 0
        assert all(0 < m["error"] < m["error_rounded"] for m in facts["matrices"])
    weights = sum(m["values"] for m in facts["matrices"])
    assert sizes[5.0] - sizes[3.0] == pytest.approx(2 * weights / 8, rel=0.2)


@pytest.mark.long
def test_a_budget_is_filled_and_not_exceeded(pack: Pack, tmp_path: Path) -> None:
    asked, _ = pack(*TRELLIS)
    limit = asked["bytes"] + CODE_BYTES + 5000
    facts, said = pack(*TRELLIS, "quant.fit=true", f"pack.limit_bytes={limit}")
    size = (tmp_path / "artifact.fwy").stat().st_size
    assert facts["bytes"] == size
    assert 0.99 * limit < size + CODE_BYTES <= limit
    assert facts["level"] < asked["level"]
    assert len(asked["sizes"]) == 1 and len(facts["sizes"]) <= 2
    assert len(said) == 1 and said[0].startswith("level of the steps ")
    assert said[0].endswith(f"{size + CODE_BYTES:,} of {limit:,} bytes")
    assert [path.name for path in tmp_path.iterdir()] == ["artifact.fwy"]


def test_a_budget_below_the_coarsest_steps_names_the_smallest_size(
    pack: Pack, tmp_path: Path
) -> None:
    pack()
    before = (tmp_path / "artifact.fwy").read_bytes()
    with pytest.raises(UserError, match="even at the coarsest steps, more than the budget of"):
        pack(*TRELLIS, "quant.fit=true", "pack.limit_bytes=2000")
    assert (tmp_path / "artifact.fwy").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["artifact.fwy"]


def test_corrections_are_counted_and_bring_the_worst_matrices_closer(
    pack: Pack, tmp_path: Path
) -> None:
    # Without Hessians the errors that a run reports are those of the weights, as the norm's.
    settings = ("quant.lqer_rank=4", "quant.method=round")
    plain, _ = pack(settings[-1])
    facts, _ = pack(*settings)
    parts, errors = (
        [{part["name"]: part["bytes"] for part in found["sections"]} for found in (plain, facts)],
        [{m["name"]: m["error"] for m in found["matrices"]} for found in (plain, facts)],
    )
    more = {"left factors", "right factors", "factor scales"}
    assert set(parts[1]) - set(parts[0]) == more and sum(parts[1].values()) == facts["bytes"]
    better = [name for name, error in errors[1].items() if error < errors[0][name]]
    assert len(better) == 3 and all(
        errors[1][name] == error for name, error in errors[0].items() if name not in better
    )
    load_artifact(tmp_path / "artifact.fwy")
    # A limit that the factors would break is kept.
    limit = plain["bytes"] + CODE_BYTES
    fitted, _ = pack(*settings, "quant.fit=true", f"pack.limit_bytes={limit}")
    assert plain["bytes"] < facts["bytes"] and fitted["bytes"] + CODE_BYTES <= limit
    assert more < {part["name"] for part in fitted["sections"]}
