"""The training loop: step, clock, budget, checkpoint; nothing else.

The host stays one step ahead of the device: it launches a step, then reads the figures of the
previous step. The timed region includes waiting for a batch, forward, backward, update, weight
average and step lines. It excludes building, warm-up steps (undone afterwards) and checkpoints.
Algorithms.md 3.5 to 3.8.

Shapes: B sequences, T time.
"""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairway.base import units
from fairway.base.endings import stop_requested
from fairway.base.errors import InterruptedRun, UserError
from fairway.base.files import digest_file
from fairway.base.memory import free_bytes
from fairway.base.names import CHECKPOINT
from fairway.base.progress import progress
from fairway.config.checks import windows
from fairway.config.settings import Config, order_seed
from fairway.data.shards import Tokens
from fairway.machine.plan import DTYPES, Plan, own_device
from fairway.machine.ranks import Ranks, seed_everything
from fairway.model.gpt import GPT, build
from fairway.model.paths import place, prepare
from fairway.train.checkpoint import save_checkpoint
from fairway.train.clock import Clock
from fairway.train.feed import Feed
from fairway.train.flight import Flight, event_on
from fairway.train.inputs import INPUTS_EVERY, INPUTS_TOKENS, Collect, look, no_inputs
from fairway.train.micro import micro_batch
from fairway.train.muon import Optimisers
from fairway.train.saved import Begun, key_of_training, reading, saved
from fairway.train.schedule import WeightAverage, average_decay, due, lr_multiplier
from fairway.train.steps import (
    STEPS,
    Beside,
    Say,
    StepLine,
    StepLog,
    StepRecord,
    cut_steps,
    nobody,
    recorded_progress,
)


@dataclass(frozen=True, slots=True)
class TrainingText:
    """The facts about its data that the loop needs."""

    shards: list[Tokens]
    bytes_per_token: float


class Training:
    """The whole state of a run between two steps. Call `close` at the end: it stops a thread that
    gathers batches."""

    def __init__(
        self,
        config: Config,
        plan: Plan,
        ranks: Ranks,
        text: TrainingText,
        folder: Path,
        say: Say,
        begun: Begun = None,
        collect: Collect = no_inputs,
        beside: Beside = nobody,
    ) -> None:
        seed_everything(config.seed)
        self.collect, self.beside = collect, beside
        self.config, self.plan, self.ranks, self.text = config, plan, ranks, text
        self.folder, self.say, self.begun = folder, say, begun
        self.device = own_device(plan, ranks)
        # Before anything is allocated, since the plan counts everything that the run allocates.
        self.per_rank, rows = micro_batch(config, plan, ranks, free_bytes(self.device))
        self.model = build(config.model, config.seed)
        if begun is not None:
            self.model.load_state_dict(begun[0])
        place(self.model, self.device)
        self.model.separate = config.train.documents
        dtype, bits = DTYPES[plan.dtype], config.train.operand_bits
        prepare(self.model, dtype, plan.attention, plan.kernels, bits)
        self.optimisers = Optimisers(self.model, config.optim, ranks)
        self.average = WeightAverage(self.model.named_parameters())
        train = config.train
        recorded = recorded_progress(Path(train.replay)) if train.clock == "replay" else None
        self.clock = Clock(config, recorded, ranks, plan.device)
        self.step = 0
        self.flight: Flight | None = None
        self.ended_s = 0.0
        order = (order_seed(config), config.data.shuffle_documents)
        self.feed = Feed(text.shards, train.seq_len, rows, ranks, self.device, order)
        self._enter(0.0)

    @property
    def rows(self) -> int:
        """Return the number of sequences in one forward pass."""
        return self.feed.rows

    @property
    def micro_steps(self) -> int:
        """Return how many forward passes make one optimiser step on this rank."""
        return self.per_rank // self.rows

    def close(self) -> None:
        """End the thread that gathers batches."""
        self.feed.close()

    def _enter(self, now: float) -> None:
        """Set the parts of the model that change during training: recurrence and windows."""
        config, train = self.config, self.config.train
        self.model.set_looping(bool(config.model.loop_extra) and now >= train.loop_from)
        self.model.set_window(due(now, windows(train), 0))

    # -----------------------------------------------------------------------------------------
    # A step

    def _accumulate(self, send: bool) -> Tensor:
        """Run the micro-steps forward and backward; return this rank's share of the mean loss.

        With `send` the ranks start to sum their gradients, once, during the last backward pass.
        Without it nothing is sent before the step of the optimisers, so a rank may fail here
        safely.
        """
        share = torch.zeros((), device=self.device)
        for left in reversed(range(self.micro_steps)):
            given = self.feed.next_batch()
            self.seen_BT = given[0][: max(1, INPUTS_TOKENS // self.config.train.seq_len)]
            loss = self.model(*given) / (self.micro_steps * self.ranks.world)
            if send and not left:
                self.optimisers.expect_gradients()
            loss.backward()
            share += loss.detach()
        return share

    def _advance(self, multiplier: float, step: int) -> tuple[Tensor, Tensor]:
        """Launch one optimiser step; return (mean loss in nats per token, gradient norm).

        Both stay on the device and may still be in computation.
        """
        loss = self._accumulate(send=True)
        self._look(step)
        wait = self.ranks.start_sum(loss)
        grad_norm = self.optimisers.step(multiplier, step)
        wait()
        return loss, grad_norm

    def _look(self, step: int) -> None:
        """At intervals, measure the inputs of each matrix for Newton-Muon on a few tokens."""
        if not self.config.optim.newton or step % INPUTS_EVERY:
            return
        look(self.optimisers, self.collect, self.model, self.seen_BT, self.ranks.world)

    def warm_up(self) -> None:
        """Run a few real steps in every mode, then undo them. They compile the code and fill
        caches; the model keeps nothing of them. The data starts again and the momentum is cleared.
        If the memory does not suffice, the micro-batch is halved."""
        before = {name: w.detach().clone() for name, w in self.model.named_parameters()}
        for now in self._changes() if self.config.train.warmup_steps else ():
            self._enter(now)
            for step in range(self.config.train.warmup_steps):
                while self.ranks.any(not self._fits_memory()):
                    self._halve_rows()
                self._look(step)
                self.optimisers.step(1.0, step)
        with torch.no_grad():
            for name, weight in self.model.named_parameters():
                weight.copy_(before[name])
        self.optimisers.reset()
        self._enter(0.0)
        self.feed.use(self.feed.rows)

    def _changes(self) -> list[float]:
        """Return the progress values at which a run begins and at which it needs code of another
        form."""
        ends = {end for _, end in windows(self.config.train)}
        ends |= {self.config.train.loop_from} if self.config.model.loop_extra else set()
        return sorted({0.0} | {end for end in ends if end < 1.0})

    def _fits_memory(self) -> bool:
        """Run the micro-steps; return whether they fit into the memory of the device."""
        try:
            self._accumulate(send=False)
        except torch.OutOfMemoryError:
            return False
        return True

    def _halve_rows(self) -> None:
        """Halve the sequences per micro-batch, on every rank; the step stays the same."""
        self.optimisers.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if self.rows == 1:
            raise UserError(
                f"one sequence of {self.config.train.seq_len} tokens per micro-step needs more "
                "memory than the device has; lower train.seq_len or the size of the model"
            )
        fewer = max(n for n in range(1, self.rows // 2 + 1) if self.per_rank % n == 0)
        if self.ranks.first:
            self.say(
                f"out of memory with {self.rows} sequences per micro-step: continuing with {fewer} "
                f"and {self.per_rank // fewer} micro-steps instead of {self.micro_steps}"
            )
        self.feed.use(fewer)

    # -----------------------------------------------------------------------------------------
    # The loop

    def run(self, estimate_bytes: Callable[[GPT], int]) -> None:
        """Train until the clock ends the run; write step records and checkpoints meanwhile.

        Raises InterruptedRun after a signal, when the state is saved, and UserError for a loss that
        is not finite.
        """
        line = StepLine(
            self.config,
            self.text.bytes_per_token,
            lambda: estimate_bytes(self.model),
            self.say,
        )
        with (
            stop_requested() as stop,
            progress("training", 1000) as advance,
            (self.folder / STEPS).open("a") as file,
        ):
            self._loop(stop, StepLog(file, line, advance, self.ranks.first))

    def _loop(self, stop: threading.Event, log: StepLog) -> None:
        every_s = self.config.train.checkpoint_every_s or math.inf
        saved_s = time.perf_counter()
        self.ended_s = self.clock.elapsed_s
        now = self.ranks.broadcast(self.clock.progress(self.step))
        self.clock.start()
        while not self.clock.done(self.step, now):
            if log.lasting(now):
                # The line contains the size of the weights, which must be the weights of its step.
                self._land(log)
            due = time.perf_counter() - saved_s > every_s
            now, stopping, saving = self._launch(now, log, stop, due)
            if stopping or saving:
                self._land(log)
                self.clock.stop()
                self.save(log)
                if stopping:
                    raise InterruptedRun(f"stopped after step {self.step}; --resume continues")
                saved_s = time.perf_counter()
                self.clock.start()
        self._land(log)
        self.clock.stop()
        self.save(log)

    def _launch(self, now: float, log: StepLog, stop: threading.Event, due: bool) -> list[float]:
        """Launch a step, then read the figures of the previous step.

        Returns, the same on every rank: the progress after the step, whether a signal asks to
        stop, whether a checkpoint is due.
        """
        self._enter(now)
        multiplier = lr_multiplier(now, self.config.optim)
        loss, grad_norm = self._advance(multiplier, self.step)
        # Queued right after the work of the step. A copy requested later would wait for the next
        # step.
        figures_2 = torch.stack((loss, grad_norm)).to(
            "cpu", non_blocking=self.device.type == "cuda"
        )
        self._land(log)
        after = self.clock.progress(self.step + 1)
        decided = self.ranks.broadcast_all((after, stop.is_set(), due))
        self.average.update(average_decay(decided[0] - now, self.config.optim))
        self.flight = Flight(
            step=self.step,
            now=now,
            after=decided[0],
            lr=multiplier,
            looping=self.model.looping,
            figures_2=figures_2,
            landed=event_on(self.device),
            launched_s=self.clock.seconds(),
        )
        self.step += 1
        return decided

    def _land(self, log: StepLog) -> None:
        """Wait for the step in flight, if there is one, check its figures and write its record."""
        flight, self.flight = self.flight, None
        if flight is None:
            return
        seconds = flight.wait(self.clock)
        loss, grad_norm = flight.figures_2.tolist()
        for name, value in (("loss", loss), ("gradient norm", grad_norm)):
            if not math.isfinite(value):
                raise UserError(
                    f"the {name} became {value} at step {flight.step} ({flight.now:.1%} of the "
                    f"run, learning rates x {flight.lr:.3g}); lower optim.matrix_lr or "
                    "optim.embed_lr, or raise the batch; the last checkpoint is kept"
                )
        batch = self.config.train.batch_tokens
        self.clock.step_s = seconds - self.ended_s
        record = StepRecord(
            step=flight.step,
            progress=flight.now,
            progress_after=flight.after,
            seconds=seconds,
            loss=loss,
            lr=flight.lr,
            tokens=(flight.step + 1) * batch,
            tokens_per_s=batch / max(self.clock.step_s, 1e-9),
            grad_norm=grad_norm,
            looping=flight.looping,
        )
        log.write(record)
        # The clock runs during this time, which does not belong to the next step.
        self.ended_s = seconds + self.beside(self, record)

    # -----------------------------------------------------------------------------------------
    # Checkpoints

    def save(self, log: StepLog) -> None:
        """Write the whole state, after the step records up to here are on disk.

        Every rank must call it, since each holds a share of the momentum.
        """
        tensors = self.optimisers.state()
        if not self.ranks.first:
            return
        log.keep()
        tensors |= {f"model.{n}": w.detach() for n, w in self.model.named_parameters()}
        tensors |= {f"average.{n}": w for n, w in self.average.average.items()}
        facts = {
            "step": self.step,
            "steps_digest": digest_file(self.folder / STEPS),
            "elapsed_s": self.clock.seconds(),
            "looping": self.model.looping,
            "loader": self.feed.state(),
            "rows": self.feed.rows,
            "plan": self.plan.as_dict(),
            "config": key_of_training(self.config, self.begun),
            "world": self.ranks.world,
        }
        save_checkpoint(self.folder / CHECKPOINT, tensors, facts)

    def expect(self, facts: dict[str, Any]) -> None:
        """Prepare the warm-up for the run of a checkpoint: its clock and its sequences per
        micro-step.

        Raises UserError if the number of ranks differs, since each rank has its own place in its
        data.
        """
        if facts["world"] != self.ranks.world:
            raise UserError(
                f"the checkpoint was written by {facts['world']} processes and this run has "
                f"{self.ranks.world}; resume with the same number"
            )
        self.clock.elapsed_s = facts["elapsed_s"]
        self.feed.use(min(facts["rows"], self.feed.rows))

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Continue from a checkpoint of the same run: restore weights, averages, moments and data
        order.

        Step records written after the checkpoint are dropped.
        """
        for name, weight in self.model.named_parameters():
            weight.copy_(tensors[f"model.{name}"])
            self.average.average[name].copy_(tensors[f"average.{name}"])
        self.optimisers.restore({n: v.to(self.device) for n, v in tensors.items()})
        if facts["plan"] != self.plan.as_dict():
            self.say(f"resuming on another machine plan: {self.plan.describe()}; not bit for bit")
        self.step, self.clock.elapsed_s = facts["step"], facts["elapsed_s"]
        self.model.set_looping(facts["looping"])
        self.feed.go_on(facts["loader"], self.step * self.per_rank)
        if self.ranks.first:
            cut_steps(self.folder / STEPS, self.step, facts["steps_digest"])


# ---------------------------------------------------------------------------------------------
# Before the clock starts, and the whole stage


def train(
    config: Config,
    plan: Plan,
    ranks: Ranks,
    text: TrainingText,
    folder: Path,
    estimate_bytes: Callable[[GPT], int],
    say: Say,
    resume: bool = False,
    begun: Begun = None,
    collect: Collect = no_inputs,
    beside: Beside = nobody,
) -> Training:
    """Train a model in a run folder and return its final state; with `resume`, continue a training.

    `begun` are the initial weights and their digest. `beside` observes the training.
    """
    found = saved(key_of_training(config, begun), folder / CHECKPOINT) if resume else None
    training = Training(config, plan, ranks, text, folder, say, begun, collect, beside)
    try:
        if found is None:
            training.warm_up()
            if ranks.first:
                (folder / CHECKPOINT).unlink(missing_ok=True)
                (folder / STEPS).write_text("")
        else:
            _continue(training, *found)
        training.run(estimate_bytes)
    except torch.OutOfMemoryError:
        raise UserError(
            f"the device's memory ran out with {training.rows} sequences per micro-step; lower "
            "train.micro_tokens, or set train.warmup_steps above 0 to find a size that fits"
        ) from None
    finally:
        training.close()
    return training


def _continue(training: Training, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Warm up, unless the run is finished, and restore the saved state."""
    path, clock = training.folder / CHECKPOINT, training.clock
    with reading(path):
        training.expect(facts)
        over = clock.done(facts["step"], clock.progress(facts["step"]))
    if not over:
        training.warm_up()
    with reading(path):
        training.restore(tensors, facts)
    elapsed = units.duration(clock.elapsed_s)
    training.say(f"resumed at step {training.step}, {elapsed} in")
