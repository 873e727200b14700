"""The initial weights of a training from another run or from an artifact (`train.init`).

A run gives its averaged weights before quantisation; an artifact gives its restored weights. The
text must be in tokens of the same tokenizer, and the model must have the same shapes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fairway.api import model_shapes, tokenizer_of
from fairway.base.errors import UserError
from fairway.base.files import digest_file
from fairway.base.names import ARTIFACT, TOKENIZER_FILE, WEIGHTS
from fairway.base.terminal import command
from fairway.config.settings import Config, ModelConfig, settings
from fairway.config.written import from_dict
from fairway.data.folder import DataFolder
from fairway.data.tokens import Tokenizer
from fairway.pack.artifact import load_artifact
from fairway.pipeline.folder import RunFolder
from fairway.train.saved import weights_of

# Settings that may differ: the gain of fresh weights, and the dtype of the embedding and its
# moments.
_FREE = ("qk_gain", "embed_bf16")


@dataclass(frozen=True, slots=True, eq=False)
class Initial:
    """Weights by name, and the facts about their source for a result."""

    state: dict[str, Tensor]
    facts: dict[str, Any]


def initial_file(path: str) -> Path:
    """Return the file that holds the weights of a run folder, or an artifact itself."""
    given = Path(path)
    found = [given / name for name in (WEIGHTS, ARTIFACT) if given.is_dir()] or [given]
    for file in found:
        if file.is_file():
            return file
    raise UserError(
        f"train.init is {path}, which is neither an artifact nor the folder of a trained run; "
        "name one"
    )


def initial_digest(config: Config) -> str:
    """Return the digest of the initial weights of a training; '' for fresh weights."""
    return digest_file(initial_file(config.train.init)) if config.train.init else ""


def initial_tokenizer(config: Config) -> Tokenizer:
    """Return the tokenizer of the initial weights of a training."""
    file = initial_file(config.train.init)
    if file.name != WEIGHTS or (file.parent / TOKENIZER_FILE).is_file():
        beside = None if file.name != WEIGHTS else file.parent / TOKENIZER_FILE
        return Tokenizer.load(beside) if beside else tokenizer_of(file)
    source = Path(_run_config(file.parent).data.source)
    return DataFolder.open(file.parent / "data" if str(source) == "embedded" else source).tokenizer


def initial(config: Config, source: DataFolder | None, say: Callable[[str], None]) -> Initial:
    """Return the initial weights of a training, if the model and the text of the run fit them.

    Raises UserError, with both values, for another shape or another tokenizer; a text that is still
    to be made (no `source`) gets theirs. Other settings of the model that differ are reported in a
    line.
    """
    file = initial_file(config.train.init)
    own = initial_tokenizer(config)
    if source and own.digest != source.tokenizer.digest:
        again = command("data", "build", "TEXT", "--tokenizer", TOKENIZER_FILE)
        raise UserError(
            f"train.init {config.train.init} has the tokenizer {own.digest[:12]}, but "
            f"{source.path} has {source.tokenizer.digest[:12]}; build the data with the tokenizer "
            f"of train.init: {again}"
        )
    state, model, facts = _of_run(file) if file.name == WEIGHTS else _of_artifact(file)
    _require_fit(config, state, model, say)
    say(f"training begins with the weights of {config.train.init}, {facts['digest'][:16]}")
    return Initial(state, facts)


def _of_run(file: Path) -> tuple[dict[str, Tensor], ModelConfig, dict[str, Any]]:
    folder = RunFolder.existing(file.parent)
    folder.require_unchanged("train", WEIGHTS)
    state, _ = weights_of(file, "ema")
    config = _run_config(file.parent)
    said = {"recipe": config.recipe, "seed": config.seed}
    return state, config.model, {"kind": "run", **said, "digest": digest_file(file)}


def _run_config(folder: Path) -> Config:
    memory = RunFolder.existing(folder).memory
    if "config" not in memory:
        raise UserError(f"train.init {folder} has no finished training; finish it first")
    config: Config = from_dict(memory["config"])
    return config


def _of_artifact(file: Path) -> tuple[dict[str, Tensor], ModelConfig, dict[str, Any]]:
    artifact = load_artifact(file)
    provenance = artifact.header["provenance"]
    said = {name: provenance[name] for name in ("recipe", "recipe_hash", "seed")}
    return (
        artifact.state,
        artifact.config,
        {"kind": "artifact", **said, "digest": digest_file(file)},
    )


def _require_fit(
    config: Config, state: dict[str, Tensor], model: ModelConfig, say: Callable[[str], None]
) -> None:
    """Raise UserError for weights of other names or shapes; report settings that differ."""
    there = {name: value for name, _, value in settings(model)}
    differ = [
        f"model.{name} is {there[name]} there and {value} here"
        for name, _, value in settings(config.model)
        if value != there[name] and name not in _FREE
    ]
    told = f"train.init {config.train.init}: {', '.join(differ)}"
    if model_shapes(config.model) != {name: w.shape for name, w in state.items()}:
        raise UserError(f"{told}; the weights do not fit; use the values of the source")
    if differ:
        say(f"{told}; the weights were trained with the other values")
