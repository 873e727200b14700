"""A run audits itself: its ledgers, its budgets, and a short form of every probe."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fairway.audit.findings import Finding, holds, ordered
from fairway.audit.scorers.bench import Bench, exercise
from fairway.audit.scorers.predictors import LedgerScorer, scorer_of, small
from fairway.audit.scorers.probes import audit_scorer
from fairway.audit.scorers.trails import check_trail_file
from fairway.audit.scorers.verdicts import Probe, joined, verdict_of
from fairway.base.arrays import IntArray
from fairway.base.names import trail_file
from fairway.config.settings import AuditConfig, Config, declares_code
from fairway.data.tokens import Tokenizer, token_bytes
from fairway.model.gpt import GPT
from fairway.score.accounts import score_faults

# The stages that score the artifact. Side-by-side windows are a case of sliding ones.
_PROBED = ("sliding", "ttt", "mixture")


@dataclass(frozen=True, slots=True)
class RunFacts:
    """The facts that a run recorded, by the name of the stage, such as 'pack' or 'score.ttt'.

    `code_bytes` is the size of the code that counts with its artifact.
    """

    folder: Path
    stages: Mapping[str, Mapping[str, Any]]
    code_bytes: int


def audited(stage: str) -> bool:
    """Return whether an audit reads the facts of a stage."""
    return stage == "pack" or stage.startswith("score.")


def summary(facts: Mapping[str, Any]) -> str:
    """Return an audit in one line."""
    failed = [probe for probe in facts["probes"] if probe["verdict"] == "invalid"]
    bad = [f"{p['stage']}, {p['name']}: {p['why']}" for p in failed]
    bad += [f["why"] for f in facts["findings"] if f["severity"] == "invalid"]
    if bad:
        return f"invalid: {'; '.join(bad)}"
    return f"{facts['verdict']} by {len(facts['probes'])} probes"


def audit_run(
    run: RunFacts, config: Config, model: GPT, ids: IntArray, tokenizer: Tokenizer
) -> dict[str, Any]:
    """Return the audit of a run: {passed, verdict, findings, probes}, ready for JSON.

    `model` is the artifact as read from disk; the audit may change its weights. `ids` is its
    validation text. Whatever can be measured again here is measured, not taken from the record.
    """
    probes: list[tuple[str, Probe]] = []
    for name, facts in run.stages.items():
        stage = name.removeprefix("score.")
        if stage != name:
            file = run.folder / trail_file(stage)
            # Earlier versions wrote no trail.
            digests = facts.get("trail", [])
            found = check_trail_file(file, digests, facts["tokens"], facts["nats"])
            probes.append((stage, found))
    scored = {
        name.removeprefix("score."): facts
        for name, facts in run.stages.items()
        if name.startswith("score.")
    }
    methods = {stage: scored[stage] for stage in _PROBED if stage in scored}
    if config.audit.budget_s:
        for stage, facts in methods.items():
            share_s = config.audit.budget_s / len(methods)
            scorer, text = _scorer(config, model, ids, facts, tokenizer)
            # More than the usual questions are asked only if the budget is above the default.
            asked = config.audit.budget_s > AuditConfig().budget_s
            bench = Bench(scorer, text, config.seed, share_s, thorough=asked)
            found_all = audit_scorer(bench)
            probes += [(stage, found) for found in found_all]
    numbers = _numbers(scored, ids, tokenizer)
    findings = ordered([*numbers, *_budgets(run, config), *_skipped(config)])
    verdict = joined(
        verdict_of([probe for stage, probe in probes if stage == name])
        for name in dict.fromkeys(stage for stage, _ in probes)
    )
    return {
        "passed": verdict != "invalid" and holds(findings),
        "verdict": verdict,
        "findings": [asdict(finding) for finding in findings],
        "probes": [{"stage": stage, **asdict(probe)} for stage, probe in probes],
    }


def _scorer(
    config: Config, model: GPT, ids: IntArray, facts: Mapping[str, Any], tokenizer: Tokenizer
) -> tuple[LedgerScorer, IntArray]:
    """Return the scorer of a stage, and the text to probe it on."""
    text = exercise(ids, config.audit.tokens)
    score, ttt = small(config.score, config.ttt, len(text))
    experts = (tokenizer, config.mixture) if "experts" in facts else None
    method = config.mixture.base if experts else facts.get("method", "sliding")
    return scorer_of(model, method, score, ttt, config.seed, experts), text


def _numbers(
    stages: Mapping[str, Mapping[str, Any]], ids: IntArray, tokenizer: Tokenizer
) -> Iterator[Finding]:
    """Yield a finding for each score whose numbers do not follow from one another or the text.

    The bytes are measured again: those of the text's targets up to the number that a score counts.
    """
    sizes = np.cumsum(token_bytes(ids[1:], ids[:-1], tokenizer.table), dtype=np.int64)
    for name, score in stages.items():
        tokens = score["tokens"]
        true = int(sizes[tokens - 1]) if 0 < tokens <= len(sizes) else 0
        faults = list(score_faults(name, score))
        if score["bytes"] != true:
            faults.append(
                f"{name} counts {score['bytes']:,} bytes, its {tokens:,} tokens have {true:,}"
            )
        for fault in faults:
            yield Finding("invalid", "score-numbers", fault)


def _budgets(run: RunFacts, config: Config) -> list[Finding]:
    """Return a finding for each limit of the run that is exceeded."""
    found = []
    packed = run.stages["pack"]
    total, limit = packed["bytes"] + run.code_bytes, packed["limit_bytes"]
    if total > limit:
        why = "artifact and code together exceed the limit"
        found.append(
            Finding("invalid", "bytes", why, "artifact.fwy", value=f"{total:,} > {limit:,}")
        )
    if declares_code(config.pack):
        why = "the bytes of code are declared, and not those of this run's own bundle"
        found.append(Finding("note", "declared-code", why, value=f"{run.code_bytes:,} bytes"))
    used_s, limit_s = packed["budget"]["used_s"], packed["budget"]["limit_s"]
    if limit_s and used_s > limit_s:
        why = "training and calibration, which reads training text, took longer than their budget"
        found.append(Finding("invalid", "train-time", why, value=f"{used_s:.1f} > {limit_s:.0f} s"))
    ttt = run.stages.get("score.ttt")
    if ttt is not None and ttt["seconds"] > ttt["budget_s"]:
        why = "test-time training took longer than its budget"
        seconds = f"{ttt['seconds']:.1f} > {ttt['budget_s']:.0f} s"
        found.append(Finding("invalid", "eval-time", why, value=seconds))
    if config.ttt.method == "lora" and config.ttt.lora_sort:
        why = "longest documents first reads lengths of text that has not been scored"
        found.append(Finding("warning", "order", why, value="ttt.lora_sort=true"))
    return found


def _skipped(config: Config) -> list[Finding]:
    if config.audit.budget_s:
        return []
    why = "no scorer was probed; ledgers and budgets alone were checked"
    return [Finding("note", "no-probes", why, value="audit.budget_s=0")]
