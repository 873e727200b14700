"""The work of the stages of a run, by the names that `fairway.pipeline.order` gives them."""

from collections.abc import Callable, Mapping
from typing import Any

from fairway.base.room import memory_told
from fairway.pipeline import evidence, making, scoring
from fairway.pipeline.context import Run
from fairway.pipeline.needs import remedy_of

Work = Callable[[Run], dict[str, Any]]

# What a generated file does.
ARTIFACT_WORK: dict[str, Work] = {
    "train": making.train_model,
    "pack": making.pack_artifact,
    "score.quantised": scoring.quantised,
    "score.sliding": scoring.sliding,
    "score.ttt": scoring.adapted,
    "score.mixture": scoring.mixture,
}
ALL_WORK: dict[str, Work] = {
    **ARTIFACT_WORK,
    "score.raw": scoring.raw,
    "score.ema": scoring.ema,
    "score.documents": evidence.documents,
    "published": evidence.published,
    "text": evidence.count_text,
    "baselines": evidence.compress,
    "samples": evidence.sample,
    "costs": evidence.show_costs,
    "proof": evidence.prove,
    "audit": evidence.audit,
}


def done(works: Mapping[str, Work], name: str, run: Run) -> dict[str, Any]:
    """Do a stage and return its facts. A lack of main memory is one sentence (UserError)."""
    with memory_told(f"the stage '{name}'", remedy_of(name)):
        return works[name](run)
