"""Observes a training: numbers for TensorBoard and Weights & Biases, and samples of text at
intervals.

The clock runs meanwhile, so the seconds count against the training budget; the run records them.
The training's numbers do not depend on it: samples use a separate random generator. If a sink
fails, a line says so once, the sink is left out and the training continues.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fairway.base.memory import peak_bytes
from fairway.base.progress import notice
from fairway.config.settings import Config
from fairway.data.pieces import Packer
from fairway.data.tokens import Tokenizer
from fairway.model.gpt import GPT
from fairway.model.modes import mode
from fairway.model.writing import Manner, Row, write
from fairway.pipeline.sink import Sink, TensorBoard, WeightsAndBiases, score_numbers, step_numbers
from fairway.train.steps import Say, StepRecord

FOLDER = "live"
# The least seconds between two steps that are sent, since single steps may be too short to see.
EVERY_S = 0.1
SAMPLE_TOKENS = 64
# After this share of a run no sample is written, since its time could exceed the budget.
_LAST_SAMPLE = 0.97
# The number of characters of a sample in the terminal.
_SHOWN = 200


@dataclass(frozen=True, slots=True)
class Watching:
    """How a training is observed: kinds of sinks, and a sample after a prompt at intervals of some
    seconds of training; 0 writes none."""

    kinds: Sequence[str] = ()
    sample_every_s: float = 0.0
    prompt: str = ""


class Live:
    """Sends the numbers of a training to sinks. Call `open` before the clock starts, and `close` in
    any case."""

    def __init__(self, asked: Watching, config: Config, folder: Path, say: Say) -> None:
        self.asked, self.config, self.folder, self.say = asked, config, folder, say
        self.sinks: dict[str, Sink] = {}
        self.opened = False
        self.seconds, self.samples, self.last_step = 0.0, 0, 0
        self._sent_s = self._sample_s = 0.0
        self._waiting: StepRecord | None = None
        self._device = "cpu"
        self._packer: Packer | None = None

    def open(self, tokenizer: Tokenizer, resumed: bool) -> None:
        """Begin, or continue from a checkpoint.

        Raises UserError if a sink cannot begin, and for a prompt that is no text.
        """
        self._sent_s, self._sample_s = -EVERY_S, self.asked.sample_every_s or math.inf
        self._packer = Packer(tokenizer)
        Row(self._packer, self.asked.prompt, SAMPLE_TOKENS, self.config.seed)
        self.opened = True
        if not resumed:
            self._forget()
        for kind in self.asked.kinds:
            self.sinks[kind] = self._sink(kind)

    def _sink(self, kind: str) -> Sink:
        self.folder.mkdir(parents=True, exist_ok=True)
        if kind == "tensorboard":
            return TensorBoard(self.folder)
        return WeightsAndBiases(self.folder.parent.name, self.config, self.folder)

    def _forget(self) -> None:
        """Remove TensorBoard's files of an earlier training in the same folder."""
        for file in self.folder.glob("events.out.tfevents.*"):
            file.unlink()

    def beside(self, training: Any, record: StepRecord) -> float:
        """Process a finished step; return the seconds that this took."""
        start_s = time.perf_counter()
        self.last_step, self._waiting, self._device = record.step, record, training.device.type
        if record.seconds - self._sent_s >= EVERY_S:
            self._sent_s = record.seconds
            self._send()
        if self._sample_s <= record.seconds and record.progress_after < _LAST_SAMPLE:
            write_one = partial(self._sample, training.model, training.step)
            done = self._guard("the sample of text", write_one)
            # A slow sample skips the samples that were due meanwhile.
            every_s = self.asked.sample_every_s if done else math.inf
            self._sample_s = max(record.seconds, self._sample_s) + every_s
        taken_s = time.perf_counter() - start_s
        self.seconds += taken_s
        return taken_s

    def _send(self) -> None:
        if (record := self._waiting) is None:
            return
        self._waiting = None
        values = {**step_numbers(asdict(record)), "train/memory_gb": peak_bytes(self._device) / 1e9}
        self._each(lambda sink: sink.numbers(values, record.step))

    def _sample(self, model: GPT, step: int) -> None:
        """Continue the prompt with the present weights, and show the text."""
        assert self._packer is not None
        config = self.config
        row = Row(self._packer, self.asked.prompt, SAMPLE_TOKENS, config.seed)
        with mode(model):
            for _ in write(
                *(model, [row], Manner(), config.train.seq_len, config.train.seq_len // 2),
                steady=False,
            ):
                pass
        self.samples += 1
        text = self.asked.prompt + row.said()
        shown = " ".join(text.split())
        self.say(f"sample at step {step}: {shown[:_SHOWN]}{'...' if len(shown) > _SHOWN else ''}")
        self._each(lambda sink: sink.text("sample", text, step))

    def scores(self, scores: dict[str, float]) -> None:
        """Send the scores of stages to the sinks, in bits per byte."""
        self._each(lambda sink: sink.numbers(score_numbers(scores), self.last_step + 1))

    def facts(self) -> dict[str, Any]:
        """Return the facts for a record: what was observed, and the seconds of training that it
        took."""
        return {"to": list(self.asked.kinds), "samples": self.samples, "seconds": self.seconds}

    def close(self) -> None:
        """Send the last step and end all sinks."""
        self._send()
        self._each(lambda sink: sink.close())
        self.sinks.clear()

    def _each(self, tell: Callable[[Sink], None]) -> None:
        for kind in list(self.sinks):
            if not self._guard(kind, partial(tell, self.sinks[kind])):
                del self.sinks[kind]

    def _guard(self, name: str, work: Callable[[], None]) -> bool:
        """Return whether work succeeded; report any failure and continue."""
        try:
            work()
        except Exception as error:
            told = (str(error) or type(error).__name__).splitlines()[0]
            notice(f"{name} failed ({told}): the run goes on without it")
            return False
        return True
