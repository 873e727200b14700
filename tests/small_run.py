"""Runs with half the blocks of the smoke run, for tests that do not ask what a model is like."""

from collections.abc import Callable
from pathlib import Path

import pytest
from everywhere import take_evidence
from shared import once

from fairway.config.settings import Config
from fairway.pipeline.folder import RunFolder
from fairway.pipeline.run import Pipeline

# Time goes into visits of blocks: here three, not six. One block is visited twice, and the other is
# a parallel one.
FEW = (
    "model.num_layers=2", "model.loop_first=0", "model.loop_last=0", "model.parallel_from=1",
)  # fmt: skip


# A run whose stages all do little.
QUICK = (*FEW, "train.steps=3", "train.warmup_steps=1", "data.val_bytes=300")


# The command line with slow steps: a dozen would take less time than a signal may take to reach a
# fork.
SLOW = """
import time
from fairway.cli import main as cli
from fairway.train.loop import Training
advance = Training._advance

def slow(*how):
    time.sleep(0.2)
    return advance(*how)

Training._advance = slow
cli.main()
"""


def small_run(tiny: Callable[..., Config]) -> Path:
    """Return the folder of such a run, trained and packed, which nobody changes."""

    def make(folder: Path) -> None:
        pipeline = Pipeline(tiny(*FEW), RunFolder(folder), lambda text: None)
        with pipeline.writing():
            pipeline.train()
            pipeline.pack()

    return once("small", make)


def sample_little(patch: pytest.MonkeyPatch) -> None:
    """Let what is sampled from a model at the end of a run be short."""
    patch.setattr("fairway.api.OPENING_TOKENS", 4)


def quick_run(tiny: Callable[..., Config], smoke_run: Path) -> Path:
    """Return the folder of a finished run by `QUICK`; proof and audit are the smoke run's."""

    def make(folder: Path) -> None:
        pipeline = Pipeline(tiny(*QUICK), RunFolder(folder), lambda text: None)
        with pytest.MonkeyPatch.context() as patch, pipeline.writing():
            take_evidence(smoke_run, patch)
            sample_little(patch)
            pipeline.walk()

    return once("quick", make)
