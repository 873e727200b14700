"""The identity of a checkpoint: the settings of its training and its initial weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from fairway.base.errors import UserError
from fairway.config.settings import Config, order_seed
from fairway.config.written import to_dict
from fairway.train.checkpoint import damaged, load_checkpoint

# Weights that a training begins with, by name, and their digest.
Begun = tuple[dict[str, Tensor], str] | None


def what_trains(config: Config) -> dict[str, Any]:
    """Return the settings that decide the numbers of a training, without those of display and
    place."""
    quiet = ("checkpoint_every_s", "init", "replay")
    train = {name: value for name, value in to_dict(config.train).items() if name not in quiet}
    model, optim = to_dict(config.model), to_dict(config.optim)
    order = {"order_seed": order_seed(config), "shuffled": config.data.shuffle_documents}
    return {"model": model, "optim": optim, "train": train, "seed": config.seed, **order}


def key_of_training(config: Config, begun: Begun) -> dict[str, Any]:
    """Return the identity of a training: its settings and its initial weights."""
    return {**what_trains(config), "begun": begun and begun[1]}


def saved(key: dict[str, Any], path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and facts of a checkpoint; UserError for one of another training."""
    tensors, facts = load_checkpoint(path)
    if facts.get("config") is None:
        raise damaged(path, "it is not one of a training")
    if facts["config"] != key:
        raise UserError(
            f"{path} belongs to another configuration; resume with the same recipe and settings, "
            "or choose another --out"
        )
    return tensors, facts


def weights_of(path: Path, kind: str) -> tuple[dict[str, Tensor], bool]:
    """Return the 'raw' or 'ema' weights of a finished training; whether the recurrence was on."""
    tensors, facts = load_checkpoint(path)
    state = {n.removeprefix(f"{kind}."): w for n, w in tensors.items() if n.startswith(kind)}
    return state, bool(facts["looping"])


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn errors about missing or mismatched parts of a checkpoint into one sentence."""
    try:
        yield
    except (KeyError, TypeError, IndexError, RuntimeError) as error:
        raise damaged(path, repr(error)) from None
