"""Runs that end at once: their scores are what a test says, in folders that look like real ones."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fairway.base.files import digest_json, write_json
from fairway.pipeline.jobs import Job, Running

Score = Callable[[str, int], float]


def noisy(effects: dict[str, float], sd: float = 0.001) -> Score:
    """Return scores: those of a seed move together, and every run scatters beside them."""

    def score(arm: str, seed: int) -> float:
        rng = np.random.default_rng([seed, *arm.encode()])
        shared = np.random.default_rng(seed).normal() * 0.01
        return 1.2 + effects.get(arm, 0.0) + shared + sd * float(rng.normal())

    return score


def memory(bpb: float, device: str = "fake") -> dict[str, Any]:
    """Return what a run folder remembers of a training and the scores of its weights."""
    train = {"looping": False, "steps": 4, "tokens": 4096, "seconds": 2.0, "tokens_per_s": 2048.0}
    nats = bpb * 1500 * math.log(2.0)
    score = {
        "bpb": bpb, "nats": nats, "nats_per_token": nats / 10, "seconds": 0.1, "tokens": 10,
        "bytes": 1500, "file_digest": "", "trail": [],
    }  # fmt: skip
    kept = {"key": "", "reads": {"data": "d" * 64}, "files": {}, "seconds": 3.0}
    facts = {"train": {**train, "final_loss": 3.0}, "score.raw": score, "score.ema": score}
    stages = {
        name: {**kept, "facts": fact, "memory": {"need_bytes": None, "peak_bytes": 10**6}}
        for name, fact in facts.items()
    }
    return {"schema": 2, "stages": stages, "device": device}


@dataclass(eq=False)
class Done:
    """A run that ended, with the reason of its failure or none."""

    failed: str

    def reason(self) -> str:
        return self.failed


@dataclass(eq=False)
class FakePlace:
    """Takes the place of a host: `fails` names runs such as 'wide-2' with their reasons."""

    score: Score
    fails: dict[str, str] = field(default_factory=dict)
    slots: int = 1
    cards: tuple[str, ...] = ()
    used: list[int] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)
    stop_after: int = 10**9

    def begin(self, job: Job, slot: int) -> Running:
        if len(self.jobs) >= self.stop_after:
            raise KeyboardInterrupt
        self.jobs.append(job)
        self.used.append(slot)
        job.folder.mkdir(parents=True, exist_ok=True)
        arm, _, seed = job.name.rpartition("-")
        if job.name not in self.fails:
            held = memory(self.score(arm, int(seed)))
            write_json(job.folder / "run.json", {**held, "digest": digest_json(held)})
        return Done(self.fails.get(job.name, ""))

    def end(self, running: Iterable[Running]) -> None:
        list(running)

    def names(self) -> list[str]:
        """Return the runs in the order in which they began."""
        return [job.name for job in self.jobs]


def quiet(text: str) -> None:
    pass
