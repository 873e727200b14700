"""A study's runs on a cluster, through submitit: `pip install 'fairway[cluster]'`.

The cluster's own scheduler runs them (Slurm), or processes of this host do (local, debug). All
machines must be able to read and write the study's folder.
"""

import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairway.base import children
from fairway.base.errors import UserError, shown
from fairway.pipeline.jobs import Job, Running, last_word

EXECUTORS = ("slurm", "local", "debug")
# The minutes that a job may take, if no time is known: Slurm requires a limit.
_MINUTES = 60


def run_logged(words: Sequence[str], processes: int, log: str) -> int:
    """Run a command of Fairway on the calling machine; return its exit code."""
    with Path(log).open("ab") as stream:
        process = children.begin(words, processes, stdout=stream, stderr=subprocess.STDOUT)
        try:
            return process.wait()
        finally:
            children.end([process])


class Cluster:
    """Jobs of submitit; `slots` is the number of jobs in the queue at once."""

    def __init__(
        self, kind: str, folder: Path, slots: int, settings: Sequence[str], expected_s: float | None
    ) -> None:
        try:
            import submitit
        except ImportError:
            raise UserError(
                "a cluster needs the package submitit; install it with "
                "pip install 'fairway[cluster]'"
            ) from None
        self.slots, self.cards = slots, ()
        minutes = _MINUTES if expected_s is None else max(5, round(expected_s / 20))
        parameters = {"timeout_min": minutes, **dict(map(_parameter, settings))}
        try:
            self._executor = submitit.AutoExecutor(folder=folder, cluster=kind)
            self._executor.update_parameters(**parameters)
        except (AssertionError, NameError, RuntimeError, TypeError, ValueError) as error:
            said = " ".join(str(error).split())
            raise UserError(f"the cluster '{kind}' does not take these settings: {said}") from None

    def begin(self, job: Job, slot: int) -> Running:
        """Put a job into the queue."""
        start = job.log.stat().st_size if job.log.exists() else 0
        held = self._executor.submit(run_logged, job.command(), job.processes, str(job.log))
        return _Held(job, held, start)

    def end(self, running: Iterable[Running]) -> None:
        """Cancel the jobs; the cluster ends their processes, which save their state."""
        for one in running:
            if isinstance(one, _Held) and one.reason() is None:
                one.held.cancel()


@dataclass(frozen=True, slots=True, eq=False)
class _Held:
    """A submitted job, and the length of its log before it."""

    job: Job
    held: Any
    log_bytes: int

    def reason(self) -> str | None:
        """Return why it failed, '' if it did not, or None while it waits or runs."""
        if not self.held.done():
            return None
        if error := self.held.exception():
            lines = [text.strip() for text in str(error).splitlines() if text.strip()]
            return f"the cluster says: {lines[-1] if lines else type(error).__name__}"
        code = int(self.held.result())
        return last_word(self.job.log, self.log_bytes, code) if code else ""


def _parameter(text: str) -> tuple[str, Any]:
    """Return a setting of the executor; a whole number if the text is one."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip().isidentifier():
        raise UserError(f"--cluster-set {shown(text)} is not a setting; write NAME=VALUE")
    value = value.strip()
    return name.strip(), int(value) if value.isascii() and value.isdigit() else value
