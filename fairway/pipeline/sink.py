"""Step records and scores of a run for TensorBoard or Weights & Biases; nothing depends on them.

Written after the fact from what the run recorded, so that training waits for nobody.
"""

import importlib
import importlib.util
from pathlib import Path
from typing import Any, Protocol

from fairway.base.errors import UserError
from fairway.config.settings import Config
from fairway.config.written import to_dict
from fairway.pipeline.folder import RunFolder
from fairway.pipeline.record import config_of
from fairway.train.steps import STEPS, read_steps

SHOWN = ("loss", "lr", "grad_norm", "tokens_per_s", "seconds", "progress")


class Sink(Protocol):
    """Where numbers of a run go."""

    def number(self, name: str, value: float, step: int) -> None:
        """Take one number of a step."""

    def close(self) -> None:
        """Return when all of them are kept."""


class TensorBoard:
    """Numbers for TensorBoard, in files below a folder."""

    def __init__(self, folder: Path) -> None:
        _require("tensorboard")
        module = importlib.import_module("torch.utils.tensorboard")
        self.writer: Any = module.SummaryWriter(str(folder))

    def number(self, name: str, value: float, step: int) -> None:
        """Take one number of a step."""
        self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Return when all of them are kept."""
        self.writer.close()


class WeightsAndBiases:
    """Numbers for Weights & Biases, under its own settings (WANDB_MODE=offline keeps them here)."""

    def __init__(self, name: str, config: Config) -> None:
        _require("wandb")
        self.module: Any = importlib.import_module("wandb")
        self.run: Any = self.module.init(project="fairway", name=name, config=to_dict(config))

    def number(self, name: str, value: float, step: int) -> None:
        """Take one number of a step."""
        self.run.log({name: value}, step=step)

    def close(self) -> None:
        """Return when all of them are kept."""
        self.run.finish()


def _require(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise UserError(f"the package {package} is not installed; pip install {package}")


def send(run: RunFolder, sink: Sink) -> int:
    """Give a sink all that a run recorded; return how many steps there were."""
    steps = read_steps(run.file(STEPS))
    for record in steps:
        for name in SHOWN:
            sink.number(f"train/{name}", float(record[name]), int(record["step"]))
    last = len(steps)
    for stage, kept in run.memory["stages"].items():
        if stage.startswith("score."):
            sink.number(f"bpb/{stage.removeprefix('score.')}", float(kept["facts"]["bpb"]), last)
    sink.close()
    return last


def sink_named(kind: str, run: RunFolder, out: Path) -> Sink:
    """Return a sink of a kind for a run; UserError for an unknown kind or a missing package."""
    if kind == "tensorboard":
        return TensorBoard(out / run.path.name)
    if kind == "wandb":
        return WeightsAndBiases(run.path.name, config_of(run))
    raise UserError(f"cannot export to '{kind}'; choose csv, tensorboard or wandb")
