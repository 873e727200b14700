"""Packing under a limit: the clip multiplier that makes a model fit, and the one that cannot."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fairway.config import Config, to_dict
from fairway.data.folder import DataFolder
from fairway.errors import UserError
from fairway.model.gpt import build
from fairway.packing import pack_model
from fairway.quantise.fit import SLACK

CODE_BYTES = 1234
Packed = tuple[dict[str, Any], list[str]]
Pack = Callable[..., Packed]


@pytest.fixture
def pack(tiny: Callable[..., Config], data_folder: Path, tmp_path: Path) -> Pack:
    """Return a function: pack a model of random weights, return the facts and what was said."""
    config = tiny()
    model = build(config.model)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))

    def call(*settings: str) -> Packed:
        said: list[str] = []
        config = tiny(*settings, f"pack.code_bytes={CODE_BYTES}")
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
        return pack_model(config, model, state, source, path, provenance, said.append), said

    return call


def test_a_model_that_is_too_large_is_made_to_fit(pack: Pack, tmp_path: Path) -> None:
    asked, _ = pack()
    limit = asked["bytes"] + CODE_BYTES - 4000
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


def test_a_model_that_fits_is_packed_as_asked(pack: Pack) -> None:
    asked, _ = pack()
    facts, said = pack("quant.fit=true")
    assert (facts["digest"], facts["matrix_sigmas"], said) == (asked["digest"], 12.85, [])


def test_a_limit_below_any_clip_leaves_the_artifact_alone(pack: Pack, tmp_path: Path) -> None:
    pack()
    before = (tmp_path / "artifact.fwy").read_bytes()
    with pytest.raises(UserError, match="even at quant.matrix_sigmas=100, more than"):
        pack("quant.fit=true", "pack.limit_bytes=9000")
    assert (tmp_path / "artifact.fwy").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["artifact.fwy"]
