"""The stages of a run in their order, with the inputs and files of each.

`fairway run` keeps a stage while its inputs are unchanged. A bundle does the stages of
`artifact_stages`, in the same order and with the same code (`fairway.pipeline.stages`).
"""

from dataclasses import dataclass

from fairway.base.names import ARTIFACT, COSTS, PROOF, TOKENIZER_FILE, WEIGHTS, trail_file
from fairway.config.settings import Config
from fairway.train.steps import STEPS

# The inputs of stages, by the names of `fairway.pipeline.inputs`.
_MODEL = ("data", "trains", "plan", "replay")
_TEXT = ("data", "sample")
_SCORED = (*_TEXT, "score", "seed", "plan")


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a run.

    `reads` names the files and settings that decide the result, `files` the files that it writes.
    With `together` all processes of a run do it, else only the first one.
    """

    name: str
    reads: tuple[str, ...]
    files: tuple[str, ...] = ()
    together: bool = False


def stages_of(config: Config) -> list[Stage]:
    """Return the stages of a config, in order."""
    scores = [*_weight_scores(), *_artifact_scores(config), *_unlearned(config)]
    return [*_making(config), *scores, *_evidence(config)]


def artifact_stages(config: Config) -> list[Stage]:
    """Return only the stages that make and score an artifact."""
    return [*_making(config), *_artifact_scores(config)]


def _making(config: Config) -> list[Stage]:
    model = (*_MODEL, *_if(bool(config.train.init), "init"))
    packed = (WEIGHTS, "quant", "pack", "score", "beside", *model)
    return [
        Stage("train", model, (WEIGHTS, STEPS), together=True),
        Stage("pack", packed, (ARTIFACT, TOKENIZER_FILE)),
    ]


def _weight_scores() -> list[Stage]:
    return [_score("raw", WEIGHTS), _score("ema", WEIGHTS)]


def _artifact_scores(config: Config) -> list[Stage]:
    found = [
        _score("quantised", ARTIFACT),
        _score("sliding", ARTIFACT),
    ]
    if config.ttt.method != "off":
        found.append(_score("ttt", ARTIFACT, "ttt"))
    if config.mixture.experts:
        reads, files = _helped(config), (trail_file("mixture"),)
        found.append(Stage("score.mixture", reads, files))
    return found


def _unlearned(config: Config) -> list[Stage]:
    """Return the score that shows, by comparison, the gain of adapters."""
    if config.ttt.method != "lora":
        return []
    return [_score("documents", ARTIFACT, "ttt")]


def _score(name: str, *reads: str) -> Stage:
    files = (trail_file(name),)
    return Stage(f"score.{name}", (*reads, *_SCORED), files, together=True)


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
        (mixture.published, Stage("published", _helped(config))),
        (True, Stage("text", _TEXT)),
        (True, Stage("baselines", _TEXT)),
        (True, Stage("samples", (ARTIFACT, *_TEXT, "seed", "plan"))),
        (True, Stage("costs", (ARTIFACT, *_TEXT, "plan"), (COSTS,))),
        (prove.bytes > 0, Stage("proof", proven, (PROOF,))),
        (True, Stage("audit", doubted)),
    ]
    return [stage for asked, stage in wanted if asked]
