"""The stages of a run that score its weights and its artifact, each with a separate ledger.

Under `torchrun` every process scores a part and the first one writes the result. Experts follow the
text token by token, so one process scores with them.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

from fairway.base import units
from fairway.base.files import digest_file
from fairway.base.memory import give_back
from fairway.base.names import ARTIFACT, WEIGHTS, trail_file
from fairway.machine.ranks import Ranks
from fairway.pipeline.averaging import loss_warning
from fairway.pipeline.context import Run
from fairway.quantise.weights import void_fraction
from fairway.score.experts.evaluate import evaluate_mixture
from fairway.score.ledger import Score
from fairway.score.sliding import evaluate_frozen
from fairway.score.trail import Trail, write_trails
from fairway.score.ttt import evaluate_ttt
from fairway.score.ways import gains_told

Facts = dict[str, Any]


def raw(run: Run) -> Facts:
    """Score the last weights, in windows side by side."""
    return _frozen(run, "raw", "raw")


def ema(run: Run) -> Facts:
    """Score the averaged weights likewise; warn if they are the worse choice."""
    found = _frozen(run, "ema", "ema")
    if run.ranks.first:
        # The other processes do not know the earlier stages.
        facts = run.facts()
        bpb, steps = facts["score.raw"]["bpb"], facts["train"]["steps"]
        if warning := loss_warning(run.config.optim, steps, bpb, found["bpb"]):
            run.say(warning)
    return found


def quantised(run: Run) -> Facts:
    """Score the artifact likewise."""
    return _frozen(run, "quantised", "artifact")


def sliding(run: Run) -> Facts:
    """Score the artifact under a sliding window."""
    return _frozen(run, "sliding", "artifact", sliding=True)


def _frozen(run: Run, name: str, kind: str, sliding: bool = False) -> Facts:
    def work(trail: Trail) -> tuple[Score, Facts]:
        asked = run.evaluation(name, trail)
        return evaluate_frozen(run.model(kind), asked, sliding=sliding), {}

    return scored(run, name, ARTIFACT if kind == "artifact" else WEIGHTS, run.ranks, work)


def adapted(run: Run) -> Facts:
    """Score the artifact while it learns from scored text, within its budget."""
    found = scored(run, "ttt", ARTIFACT, run.ranks, lambda trail: _adapted(run, trail))
    if run.ranks.first:
        facts = run.facts()
        others = {name: facts[f"score.{name}"] for name in ("quantised", "sliding")}
        run.say(f"test-time training gains {gains_told({**others, 'ttt': found})}")
    return found


def _adapted(run: Run, trail: Trail) -> tuple[Score, Facts]:
    ttt, model = run.config.ttt, run.model("artifact")
    found = evaluate_ttt(model, run.evaluation(ttt.method, trail))
    if found.changes:
        run.say(f"ttt: to stay within {ttt.budget_s:.0f} s, {', '.join(found.changes)}")
    if found.seconds > ttt.budget_s:
        run.say(
            f"over budget: test-time training took {found.seconds:.0f} s of {ttt.budget_s:.0f} s; "
            "raise ttt.budget_s or do less"
        )
    facts: Facts = {"estimate_s": found.estimate_s, "budget_s": ttt.budget_s}
    if ttt.method == "sgd":
        # All weights learn here, as in #1858, which logs this.
        facts["void_fraction"] = void_fraction(model.named_parameters())
    return found.score, {"method": ttt.method, "changes": list(found.changes), **facts}


def mixture(run: Run) -> Facts:
    """Score the artifact with experts beside it."""
    return scored(run, "mixture", ARTIFACT, Ranks(), lambda trail: _mixture(run, trail))


def _mixture(run: Run, trail: Trail) -> tuple[Score, Facts]:
    mixture, asked = run.config.mixture, run.evaluation("mixture", trail, alone=True)
    found = evaluate_mixture(run.model("artifact"), asked, mixture, run.source.tokenizer)
    gain_bpb = found[1]["gain_bpb"]
    run.say(f"experts: {gain_bpb:.4f} bpb less than {mixture.base} alone")
    return found


def scored(
    run: Run,
    name: str,
    file: str,
    ranks: Ranks,
    evaluate: Callable[[Trail], tuple[Score, Facts]],
) -> Facts:
    """Return the account of a score of one of the run's files; write its ledger beside it."""
    give_back()
    start_s, trail = time.perf_counter(), Trail()
    score, facts = evaluate(trail)
    seconds = time.perf_counter() - start_s
    digests = write_trails(trail, ranks, run.file(trail_file(name)))
    run.say(f"{name:>9}: {score.bpb:.4f} bpb ({units.duration(seconds)})")
    account = {**dataclasses.asdict(score), "seconds": seconds, "trail": digests}
    return {**account, "file_digest": digest_file(run.file(file)), **facts}
