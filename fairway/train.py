"""The training loop: step, clock, budget, checkpoint; nothing else.

What is inside the timed region: reading a batch, forward, backward, update, weight average. What is
outside: building, warm-up steps (undone afterwards), checkpoints, step lines. Algorithms.md 3.5
to 3.8.

Shapes: B sequences, T time.
"""

import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairway import units
from fairway.checkpoint import load_checkpoint, save_checkpoint
from fairway.config import Config, to_dict
from fairway.data.loader import ShuffledLoader
from fairway.data.shards import Tokens
from fairway.errors import InterruptedRun, UserError
from fairway.model.gpt import GPT, build, num_parameters
from fairway.optim.muon import Optimisers
from fairway.optim.schedule import WeightAverage, average_decay, lr_multiplier
from fairway.preflight import preflight
from fairway.progress import progress
from fairway.runtime import DTYPES, Clock, Plan, Ranks, seed_everything
from fairway.steps import STEPS, Say, StepLine, StepRecord, cut_steps, recorded_progress

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True, slots=True)
class TrainingText:
    """What the loop needs to know of its data."""

    shards: list[Tokens]
    bytes_per_token: float


# ---------------------------------------------------------------------------------------------
# Signals


@contextmanager
def stop_requested() -> Iterator[threading.Event]:
    """Yield an event that SIGINT or SIGTERM sets, so that a step is never cut in half."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = {
        number: signal.signal(number, lambda *_: event.set())
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ---------------------------------------------------------------------------------------------
# The run


class Training:
    """Everything a run holds between two steps."""

    def __init__(
        self, config: Config, plan: Plan, ranks: Ranks, text: TrainingText, folder: Path, say: Say
    ) -> None:
        seed_everything(config.seed)
        self.config, self.plan, self.ranks, self.text = config, plan, ranks, text
        self.folder, self.say = folder, say
        self.device = torch.device(f"cuda:{ranks.local}" if plan.device == "cuda" else "cpu")
        self.model = build(config.model, config.seed).to(self.device)
        self.model.set_compute(DTYPES[plan.dtype], plan.attention)
        self.optimisers = Optimisers(self.model, config.optim)
        self.average = WeightAverage(self.model.named_parameters())
        train = config.train
        recorded = recorded_progress(Path(train.replay)) if train.clock == "replay" else None
        self.clock = Clock(config, recorded)
        self.step = 0
        self.micro_steps, self.rows = _share_batch(config, ranks)
        self.loader = self._new_loader()

    def _new_loader(self) -> ShuffledLoader:
        ranks, seq_len = self.ranks, self.config.train.seq_len
        return ShuffledLoader(self.text.shards, seq_len, self.rows, ranks.rank, ranks.world)

    def _batch(self) -> tuple[Tensor, Tensor]:
        x_BT, y_BT = self.loader.next_batch()
        return torch.from_numpy(x_BT).to(self.device), torch.from_numpy(y_BT).to(self.device)

    def _advance(self, multiplier: float, step: int) -> tuple[float, float]:
        """Run one optimiser step; return (mean loss in nats per token, gradient norm)."""
        total = torch.zeros((), device=self.device)
        for _ in range(self.micro_steps):
            loss = self.model(*self._batch())
            (loss / self.micro_steps).backward()
            total += loss.detach()
        grads = [w.grad for w in self.optimisers.parameters if w.grad is not None]
        self.ranks.average(grads)
        mean_loss = total / self.micro_steps
        self.ranks.average([mean_loss])
        value = float(mean_loss)
        if not math.isfinite(value):
            raise UserError(
                f"the loss became {value} at step {step} ({self.clock.progress(step):.1%} of the "
                f"run, learning rates x {multiplier:.3g}); lower optim.matrix_lr or "
                "optim.embed_lr, or raise the batch; the last checkpoint is kept"
            )
        return value, self.optimisers.step(multiplier, step)

    def warm_up(self) -> None:
        """Run a few real steps in every mode, then undo them: they buy compiled and warm code,
        no learning. The data starts over, the momentum is cleared."""
        before = {name: w.detach().clone() for name, w in self.model.named_parameters()}
        modes = (False, True) if self.config.model.loop_extra else (False,)
        for looping in modes if self.config.train.warmup_steps else ():
            self.model.set_looping(looping)
            for step in range(self.config.train.warmup_steps):
                self._advance(1.0, step)
        with torch.no_grad():
            for name, weight in self.model.named_parameters():
                weight.copy_(before[name])
        self.optimisers = Optimisers(self.model, self.config.optim)
        self.model.set_looping(False)
        self.loader = self._new_loader()

    def run(self, estimate_bytes: Callable[[GPT], int]) -> None:
        """Train until the clock says stop, writing step records and checkpoints on the way.

        Raises InterruptedRun after a signal, once the state is saved, and UserError for a loss that
        is not finite.
        """
        line = StepLine(
            self.config, self.text.bytes_per_token, lambda: estimate_bytes(self.model), self.say
        )
        steps_path = self.folder / STEPS
        with (
            stop_requested() as stop,
            progress("training", 1000) as advance,
            steps_path.open("a") as log,
        ):
            now = self.ranks.broadcast(self.clock.progress(self.step))
            saved_s = time.perf_counter()
            self.clock.start()
            while not self.clock.done(self.step, now):
                start_s = self.clock.seconds()
                self._switch_loop(now)
                multiplier = lr_multiplier(now, self.config.optim)
                loss, grad_norm = self._advance(multiplier, self.step)
                after = self.ranks.broadcast(self.clock.progress(self.step + 1))
                self.average.update(average_decay(after - now, self.config.optim))
                self.clock.stop()

                record = self._record(now, after, start_s, loss, multiplier, grad_norm)
                self.step, now = self.step + 1, after
                if self.ranks.first:
                    log.write(json.dumps(asdict(record)) + "\n")
                    line.show(record, advance)
                if self.ranks.broadcast(float(stop.is_set())):
                    self.save(log)
                    raise InterruptedRun(f"stopped after step {self.step}; --resume continues")
                every_s = self.config.train.checkpoint_every_s
                if every_s and time.perf_counter() - saved_s > every_s:
                    self.save(log)
                    saved_s = time.perf_counter()
                self.clock.start()
            self.clock.stop()
            self.save(log)

    def _switch_loop(self, now: float) -> None:
        looping = bool(self.config.model.loop_extra) and now >= self.config.train.loop_from
        if looping != self.model.looping:
            self.model.set_looping(looping)

    def _record(
        self, now: float, after: float, start_s: float, loss: float, lr: float, grad_norm: float
    ) -> StepRecord:
        batch = self.config.train.batch_tokens
        seconds = self.clock.seconds()
        return StepRecord(
            step=self.step,
            progress=now,
            progress_after=after,
            seconds=seconds,
            loss=loss,
            lr=lr,
            tokens=(self.step + 1) * batch,
            tokens_per_s=batch / max(seconds - start_s, 1e-9),
            grad_norm=grad_norm,
            looping=self.model.looping,
        )

    # -----------------------------------------------------------------------------------------
    # Checkpoints

    def save(self, log: Any = None) -> None:
        """Write the whole state; the step records up to here are on disk before it."""
        if log is not None:
            log.flush()
            os.fsync(log.fileno())
        if not self.ranks.first:
            return
        tensors: dict[str, Tensor] = {}
        tensors |= {f"model.{n}": w.detach() for n, w in self.model.named_parameters()}
        tensors |= {f"average.{n}": w for n, w in self.average.average.items()}
        tensors |= self.optimisers.state()
        facts = {
            "step": self.step,
            "elapsed_s": self.clock.seconds(),
            "looping": self.model.looping,
            "loader": self.loader.state(),
            "plan": self.plan.as_dict(),
            "config": what_trains(self.config),
            "world": self.ranks.world,
        }
        save_checkpoint(self.folder / CHECKPOINT, tensors, facts)

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Continue from a checkpoint of the same run: weights, averages, moments, data order.

        Step records written after the checkpoint are dropped. Raises UserError when the world size
        differs, since each rank's place in its data is its own.
        """
        if facts["world"] != self.ranks.world:
            raise UserError(
                f"the checkpoint was written by {facts['world']} processes and this run has "
                f"{self.ranks.world}; resume with as many"
            )
        for name, weight in self.model.named_parameters():
            weight.copy_(tensors[f"model.{name}"])
            self.average.average[name].copy_(tensors[f"average.{name}"])
        self.optimisers.restore({n: v.to(self.device) for n, v in tensors.items()})
        if facts["plan"] != self.plan.as_dict():
            self.say(f"resuming on another machine plan: {self.plan.describe()}; not bit for bit")
        self.step, self.clock.elapsed_s = facts["step"], facts["elapsed_s"]
        self.model.set_looping(facts["looping"])
        self._catch_up(facts["loader"])
        if self.ranks.first:
            cut_steps(self.folder / STEPS, self.step)

    def _catch_up(self, state: dict[str, Any]) -> None:
        """Put the loader where the checkpoint left it: rank 0 by its state, others by replay."""
        if self.ranks.first:
            self.loader.restore(state)
        else:
            for _ in range(self.step * self.micro_steps):
                self.loader.next_batch()


def what_trains(config: Config) -> dict[str, Any]:
    """Return the settings that decide what a training computes, not what it shows or where."""
    quiet = ("log_every_s", "checkpoint_every_s", "replay")
    train = {name: value for name, value in to_dict(config.train).items() if name not in quiet}
    model, optim = to_dict(config.model), to_dict(config.optim)
    return {"model": model, "optim": optim, "train": train, "seed": config.seed}


def _share_batch(config: Config, ranks: Ranks) -> tuple[int, int]:
    """Return (micro-steps, sequences per micro-step) of one rank."""
    train = config.train
    per_rank, rest = divmod(train.batch_tokens // train.seq_len, ranks.world)
    if rest or per_rank == 0:
        raise UserError(
            f"train.batch_tokens {train.batch_tokens} is {train.batch_tokens // train.seq_len} "
            f"sequences, which {ranks.world} processes cannot share evenly"
        )
    rows = min(per_rank, train.micro_tokens // train.seq_len)
    if per_rank % rows:
        raise UserError(
            f"a rank's {per_rank} sequences are not a multiple of the {rows} that "
            f"train.micro_tokens {train.micro_tokens} allows; choose a divisor"
        )
    return per_rank // rows, rows


# ---------------------------------------------------------------------------------------------
# Before the clock, and the whole stage


def train(
    config: Config,
    plan: Plan,
    ranks: Ranks,
    text: TrainingText,
    folder: Path,
    estimate_bytes: Callable[[GPT], int],
    say: Say,
    resume: bool = False,
) -> Training:
    """Train a model in a run folder and return its final state; with `resume`, continue one."""
    preflight(config, text.shards, folder, num_parameters(config.model))
    saved = _saved(config, folder / CHECKPOINT) if resume else None
    training = Training(config, plan, ranks, text, folder, say)
    if saved is None:
        training.warm_up()
        if ranks.first:
            (folder / CHECKPOINT).unlink(missing_ok=True)
            (folder / STEPS).write_text("")
    else:
        _continue(training, *saved)
    training.run(estimate_bytes)
    return training


def _saved(config: Config, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, facts = load_checkpoint(path)
    if facts.get("config") is None:
        raise UserError(f"{path} is not a whole Fairway checkpoint; delete it to start over")
    if facts["config"] != what_trains(config):
        raise UserError(
            f"{path} belongs to another configuration; resume with the same recipe and settings, "
            "or choose another --out"
        )
    return tensors, facts


def _continue(training: Training, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Warm up, unless the run is over already, and put the saved state in place."""
    try:
        training.clock.elapsed_s = facts["elapsed_s"]
        if not training.clock.done(facts["step"], training.clock.progress(facts["step"])):
            training.warm_up()
        training.restore(tensors, facts)
    except (KeyError, TypeError, IndexError, RuntimeError) as error:
        raise UserError(
            f"{training.folder / CHECKPOINT} is not a whole Fairway checkpoint ({error!r}); "
            "delete it to start over"
        ) from None
    elapsed = units.duration(training.clock.elapsed_s)
    training.say(f"resumed at step {training.step}, {elapsed} in")
