"""The clock of a run: seconds, steps, or the progress of another run."""

import time

from fairway.base.timing import settle
from fairway.config.settings import Config
from fairway.machine.ranks import ALONE, Ranks

# The time of a token in calibration (float32) relative to training: on two cores, and on a GPU,
# where training has kernels and bfloat16 (64 batches in 5.9 s on an H200, where a step of one batch
# took 69 to 108 ms).
_READING = {"cpu": 0.5, "cuda": 1.0, "mps": 1.0}


class Clock:
    """Training progress in [0, 1], from elapsed seconds, from steps, or from a recorded run.

    wall: elapsed training seconds over the budget without its reserve; only the time between
    `start` and `stop` counts, so validation and checkpoints do not.
    steps: step over steps. replay: the recorded progress of each step of another run.
    """

    def __init__(
        self,
        config: Config,
        recorded: list[float] | None = None,
        ranks: Ranks = ALONE,
        device: str = "cpu",
    ) -> None:
        train = config.train
        self.mode = train.clock
        self.budget_s, self.allowance_s = train.budget_s, train.budget_s - train.reserve_s
        # The seconds of the last step. The device may be one step behind the host's decisions.
        self.step_s = 0.0
        self.left_steps = 2 + calibration_steps(config, ranks, device)
        self.total_steps = len(recorded) - 1 if recorded is not None else train.steps
        self.recorded = recorded
        self.elapsed_s = 0.0
        self._since_s: float | None = None

    def start(self) -> None:
        """Start to count time."""
        settle()
        self._since_s = time.perf_counter()

    def stop(self) -> None:
        """Stop counting after the device has finished its work."""
        settle()
        if self._since_s is not None:
            self.elapsed_s += time.perf_counter() - self._since_s
        self._since_s = None

    def seconds(self) -> float:
        """Return the training seconds counted so far."""
        running_s = 0.0 if self._since_s is None else time.perf_counter() - self._since_s
        return self.elapsed_s + running_s

    def progress(self, step: int) -> float:
        """Return the finished share of the run just before `step` starts.

        By wall time the run also ends if the running step, one more step and the calibration would
        exceed the budget. This matters if the reserve is too short.
        """
        if self.mode == "wall":
            seconds = self.seconds()
            over = seconds + self.left_steps * self.step_s > self.budget_s
            return 1.0 if over else min(1.0, seconds / self.allowance_s)
        if self.recorded is not None:
            return self.recorded[step]
        return min(1.0, step / self.total_steps)

    def done(self, step: int, progress: float) -> bool:
        """Return whether the run ends before `step`, whose progress is given."""
        return progress >= 1.0 if self.mode == "wall" else step >= self.total_steps


def calibration_steps(config: Config, ranks: Ranks, device: str) -> float:
    """Return how many training steps take as long as the calibration after them.

    The first process calibrates alone, as each process of the original did; the number of tokens
    does not depend on the number of processes. The tokens of a step are divided among the
    processes, so its seconds are those of one part. For a trellis, calibration also computes
    gradients, so a token takes as long as in training.
    """
    quant = config.quant
    tokens = 0.0
    if quant.method != "round":
        tokens += quant.calibration_tokens * _READING[device]
    if quant.method == "trellis":
        tokens += min(quant.gradient_tokens, quant.calibration_tokens)
    return tokens / (config.train.batch_tokens / ranks.world)
