"""The stages of a run, in order: what each reads, what it writes, and its work.

`fairway run` keeps a stage while nothing that it reads has changed. A generated file does those of
`artifact_stages`, in the same order and by the same work.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fairway.api import TOKENIZER_FILE
from fairway.base.room import memory_told
from fairway.config.settings import Config
from fairway.pipeline import evidence, making, scoring
from fairway.pipeline.context import ARTIFACT, PROOF, WEIGHTS, Run
from fairway.pipeline.needs import remedy_of
from fairway.score.trail import trail_file
from fairway.train.steps import STEPS

# What stages read, by the names of `fairway.pipeline.inputs`.
_MODEL = ("data", "trains", "plan", "replay")
_TEXT = ("data", "sample")
_SCORED = (*_TEXT, "score", "seed", "plan")
Work = Callable[[Run], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a run.

    `reads` names the files and settings that decide what comes out, `files` what it writes. All
    processes of a run do it `together`, or else the first one alone.
    """

    name: str
    reads: tuple[str, ...]
    work: Work
    files: tuple[str, ...] = ()
    together: bool = False

    def done(self, run: Run) -> dict[str, Any]:
        """Do the work; return its facts. A lack of main memory is one sentence (UserError)."""
        with memory_told(f"the stage '{self.name}'", remedy_of(self.name)):
            return self.work(run)


def stages_of(config: Config) -> list[Stage]:
    """Return the stages that a config asks for, in order."""
    scores = [*_weight_scores(), *_artifact_scores(config), *_unlearned(config)]
    return [*_making(config), *scores, *_evidence(config)]


def artifact_stages(config: Config) -> list[Stage]:
    """Return those that make and score an artifact, and no more."""
    return [*_making(config), *_artifact_scores(config)]


def _making(config: Config) -> list[Stage]:
    model = (*_MODEL, *_if(bool(config.train.init), "init"))
    packed = (WEIGHTS, "quant", "pack", "score", "beside", *model)
    return [
        Stage("train", model, making.train_model, (WEIGHTS, STEPS), together=True),
        Stage("pack", packed, making.pack_artifact, (ARTIFACT, TOKENIZER_FILE)),
    ]


def _weight_scores() -> list[Stage]:
    return [_score("raw", scoring.raw, WEIGHTS), _score("ema", scoring.ema, WEIGHTS)]


def _artifact_scores(config: Config) -> list[Stage]:
    found = [
        _score("quantised", scoring.quantised, ARTIFACT),
        _score("sliding", scoring.sliding, ARTIFACT),
    ]
    if config.ttt.method != "off":
        found.append(_score("ttt", scoring.adapted, ARTIFACT, "ttt"))
    if config.mixture.experts:
        reads, files = _helped(config), (trail_file("mixture"),)
        found.append(Stage("score.mixture", reads, scoring.mixture, files))
    return found


def _unlearned(config: Config) -> list[Stage]:
    """Return the score beside which adapters show what they have learned."""
    if config.ttt.method != "lora":
        return []
    return [_score("documents", evidence.documents, ARTIFACT, "ttt")]


def _score(name: str, work: Work, *reads: str) -> Stage:
    files = (trail_file(name),)
    return Stage(f"score.{name}", (*reads, *_SCORED), work, files, together=True)


def _helped(config: Config) -> tuple[str, ...]:
    return (ARTIFACT, *_SCORED, "mixture", *_if(config.mixture.base != "sliding", "ttt"))


def _if(wanted: bool, name: str) -> tuple[str, ...]:
    return (name,) if wanted else ()


def _evidence(config: Config) -> list[Stage]:
    prove, mixture = config.prove, config.mixture
    learns = _if(prove.method != "sliding", "ttt") + _if(prove.experts, "mixture")
    proven = (ARTIFACT, *_TEXT, "prove", *learns, "seed", "plan")
    doubted = (*_TEXT, "audit", "ledgers", "code", "seed", "plan")
    wanted = [
        (mixture.published, Stage("published", _helped(config), evidence.published)),
        (True, Stage("text", _TEXT, evidence.count_text)),
        (True, Stage("baselines", _TEXT, evidence.compress)),
        (True, Stage("samples", (ARTIFACT, *_TEXT, "seed", "plan"), evidence.sample)),
        (prove.bytes > 0, Stage("proof", proven, evidence.prove, (PROOF,))),
        (True, Stage("audit", doubted, evidence.audit)),
    ]
    return [stage for asked, stage in wanted if asked]
