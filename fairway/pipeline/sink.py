"""Numbers of a run for TensorBoard and Weights & Biases.

They are sent during training (`fairway.pipeline.live`), or afterwards from the records.
"""

import html
import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from fairway.base.errors import UserError
from fairway.config.settings import Config
from fairway.config.written import to_dict
from fairway.pipeline.folder import RunFolder
from fairway.pipeline.record import config_of
from fairway.train.steps import STEPS, read_steps

SHOWN = ("loss", "lr", "grad_norm", "tokens_per_s", "seconds", "progress")
KINDS = ("tensorboard", "wandb")


class Sink(Protocol):
    """A receiver of numbers and texts of a run."""

    def numbers(self, values: dict[str, float], step: int) -> None:
        """Record the numbers of a step."""

    def text(self, name: str, text: str, step: int) -> None:
        """Record a text that was written at a step."""

    def close(self) -> None:
        """Finish; return when everything is stored."""


class TensorBoard:
    """Numbers for TensorBoard, in files of a folder that are opened with the first number.

    If a training continues at a later step, its numbers replace those from that step on.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._opened = folder, False
        self._module: Any = importlib.import_module("torch.utils.tensorboard")
        self._writer: Any = None

    def _at(self, step: int) -> Any:
        if self._writer is None:
            self._writer = self._module.SummaryWriter(str(self.folder), purge_step=step or None)
        return self._writer

    def numbers(self, values: dict[str, float], step: int) -> None:
        """Record the numbers of a step."""
        for name, value in values.items():
            self._at(step).add_scalar(name, value, step)

    def text(self, name: str, text: str, step: int) -> None:
        """Record a text at a step, indented, because TensorBoard shows Markdown."""
        self._at(step).add_text(name, "    " + text.replace("\n", "\n    "), step)

    def close(self) -> None:
        """Finish; return when everything is stored."""
        if self._writer is not None:
            self._writer.close()


class WeightsAndBiases:
    """Numbers for Weights & Biases, under its own settings (WANDB_MODE=offline keeps them here)."""

    def __init__(self, name: str, config: Config, folder: Path | None = None) -> None:
        self._module: Any = importlib.import_module("wandb")
        options: dict[str, Any] = {} if folder is None else {"dir": str(folder)}
        # Its own copy of the output would take the terminal from the progress bar.
        options["settings"] = self._module.Settings(console="off", silent=True)
        try:
            self._run: Any = self._module.init(
                project="fairway", name=name, config=to_dict(config), **options
            )
        except Exception as error:
            # The reason may be anything: no key, no network, no space.
            raise UserError(
                f"Weights & Biases cannot begin ({_first_line(error)}); log in with `wandb login`, "
                "or set WANDB_MODE=offline to keep its files here"
            ) from None

    def numbers(self, values: dict[str, float], step: int) -> None:
        """Record the numbers of a step."""
        self._run.log(values, step=step)

    def text(self, name: str, text: str, step: int) -> None:
        """Record a text that was written at a step."""
        page = f'<pre style="white-space: pre-wrap">{html.escape(text)}</pre>'
        self._run.log({name: self._module.Html(page, inject=False)}, step=step)

    def close(self) -> None:
        """Finish the run. Weights & Biases may write its file a moment later in its own process."""
        self._run.finish()


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def require(kinds: Sequence[str]) -> None:
    """Raise UserError for a kind of sink that does not exist, or whose package is missing."""
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"'{kind}' is unknown; choose one of {', '.join(KINDS)}")
        if importlib.util.find_spec(kind) is None:
            raise UserError(
                f"the package {kind} is not installed; run: pip install 'fairway[{kind}]'"
            )


def send(run: RunFolder, sink: Sink, scores: dict[str, float]) -> int:
    """Send the steps that a run recorded and its scores to a sink; return the number of steps."""
    steps = read_steps(run.file(STEPS))
    for record in steps:
        sink.numbers(step_numbers(record), int(record["step"]))
    sink.numbers(score_numbers(scores), len(steps))
    sink.close()
    return len(steps)


def step_numbers(record: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of a step record for sinks."""
    return {f"train/{name}": float(record[name]) for name in SHOWN}


def score_numbers(scores: dict[str, float]) -> dict[str, float]:
    """Return the scores of stages for sinks, in bits per byte."""
    return {f"bpb/{stage.removeprefix('score.')}": bpb for stage, bpb in scores.items()}


def sink_named(kind: str, run: RunFolder, out: Path) -> Sink:
    """Return a sink of a kind for a run; UserError for an unknown kind or a missing package."""
    if kind not in KINDS:
        raise UserError(f"cannot export to '{kind}'; choose csv, {' or '.join(KINDS)}")
    require((kind,))
    if kind == "tensorboard":
        return TensorBoard(out / run.path.name)
    return WeightsAndBiases(run.path.name, config_of(run))
