"""Artifacts of every kind whose headers were changed, for the tests of their fields."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from specimens import PROVENANCE, TINY, WORDS, amended, fancy, quantised, reheaded, striped

from fairway.base.errors import UserError
from fairway.config.settings import ModelConfig, PackConfig
from fairway.pack.artifact import load_artifact, save_artifact
from fairway.quantise.gptq import QuantisedModel

RAW, CABAC = PackConfig(codec="raw"), PackConfig(codec="cabac")
BROTLI = PackConfig(with_tokenizer=True)
# By what scales are, stored raw and through the entropy coder.
KINDS: dict[str, tuple[Callable[[], QuantisedModel], PackConfig]] = {
    "scales": (quantised, replace(RAW, with_tokenizer=True)),
    "scales, coded": (quantised, replace(CABAC, with_tokenizer=True)),
    "steps": (fancy, replace(RAW, with_tokenizer=True)),
    "columns": (striped, replace(RAW, with_tokenizer=True)),
    "columns, coded": (striped, replace(CABAC, with_tokenizer=True)),
    "corrections": (amended, replace(RAW, with_tokenizer=True)),
    "corrections, coded": (amended, replace(CABAC, with_tokenizer=True)),
}
Change = Callable[[dict[str, Any]], Any]


def section(name: str, key: str, to: Any) -> Change:
    """Return a change of one field of a section, by its name."""

    def apply(header: dict[str, Any]) -> None:
        [entry] = [entry for entry in header["sections"] if entry["name"] == name]
        entry[key] = to

    return apply


def without(name: str, key: str) -> Change:
    def apply(header: dict[str, Any]) -> None:
        [entry] = [entry for entry in header["sections"] if entry["name"] == name]
        del entry[key]

    return apply


def refuse(path: Path, told: str) -> None:
    with pytest.raises(UserError, match=told) as caught:
        load_artifact(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def save(path: Path, pack: PackConfig = RAW, config: ModelConfig = TINY) -> Path:
    save_artifact(path, quantised(config), config, pack, WORDS, PROVENANCE)
    return path


def forged(
    path: Path,
    change: Callable[[dict[str, Any]], Any],
    tail: bytes | None = None,
    pack: PackConfig = RAW,
) -> Path:
    """Write an artifact whose header was changed and whose digest is right again."""
    return reheaded(save(path, pack), change, tail)
