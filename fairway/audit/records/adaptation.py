"""Checks the order of scoring and learning that logs report: epochs, passes, gates, warm-up."""

import re
from collections.abc import Iterator, Sequence

from fairway.audit.findings import Finding, Severity
from fairway.audit.records.accounts import final_stage, of
from fairway.audit.records.logs import Log
from fairway.audit.records.runs import ROUNDING
from fairway.audit.records.said import Epoch, Stage

# The number of training shards: by the preparation of issue #2127, and by that of the whole text.
_SHARDS_OF_LEAK = (1_499, 1_502)


def check_adaptation(logs: Sequence[Log]) -> Iterator[Finding]:
    """Yield findings about the order of scoring and learning that a log reports."""
    told: set[str] = set()
    for log in logs:
        for finding in _of_log(log):
            if finding.code not in told:
                told.add(finding.code)
                yield finding


def _of_log(log: Log) -> Iterator[Finding]:
    if not log.training_only:
        yield from _epochs(log)
        yield from _passes(log)
        yield from _gates(log)
    if log.warm_up is not None:
        why = "a warm-up runs on validation tokens before they are scored (the pattern of #677)"
        yield of("warning", "warm-up", why, log.warm_up)
    shards = log.numbers.get("train shards")
    if shards is not None and int(shards.value) in _SHARDS_OF_LEAK:
        why = (
            "a preparation script that leaves only 10,000 documents for validation makes this "
            "number of shards: the others of the 50,000 may be in training (#2127)"
        )
        yield of("warning", "val-in-train", why, shards)
    slot = next((s for s in _claimed(log) if re.search(r"(?<![a-z])slot", s.name, re.I)), None)
    if slot is not None:
        why = (
            "the claimed score uses SLOT, which fits numbers on a window before it scores the "
            "window: ask which tokens they are fitted on"
        )
        yield of("warning", "slot-score", why, slot.bpb)
    if not log.training_only:
        yield from _gain(log)


def _claimed(log: Log) -> list[Stage]:
    """Return all evaluations with the claimed score, under any name."""
    if log.claimed is None:
        return []
    value = log.claimed.bpb.value
    return [s for s in log.evaluations if abs(s.bpb.value - value) <= ROUNDING]


_ADAPTED = re.compile(r"ttt|slot|n_?gram|ppm|lora|mix|etlb|cache|knn|adapt|hedge|tilt|pass", re.I)
# The largest published gain from adaptation to scored text and overlapping windows is 3 %.
_GAIN = 0.05


def _gain(log: Log) -> Iterator[Finding]:
    """Yield a score that is far better than the packed model's own on the same text."""
    claimed = log.claimed
    if claimed is None:
        return
    own = [s for s in log.evaluations if not _ADAPTED.search(s.name)]
    own = [s for s in own if s.bpb.line < claimed.bpb.line and s not in _claimed(log)]
    best = min(own, key=lambda stage: stage.bpb.value, default=None)
    if best is None or claimed.bpb.value >= (1 - _GAIN) * best.bpb.value:
        return
    names = " ".join(stage.name for stage in _claimed(log))
    value = (
        f"{claimed.bpb.value} claimed, {best.bpb.value} by the model alone "
        f"({best.bpb.file}:{best.bpb.line}, {best.name})"
    )
    if re.search(r"ttt|lora|adapt", names, re.IGNORECASE):
        why = "adaptation to scored text gains a few per cent at most, and this score far more"
        yield of("warning", "adaptation-gain", why, claimed.bpb, value)
    else:
        why = "the claimed score is far better than that of the model alone: ask for the reason"
        yield of("warning", "unusual-gain", why, claimed.bpb, value)


def _epochs(log: Log) -> Iterator[Finding]:
    """Yield findings for epochs over the whole text that end before the claimed score."""
    final = log.claimed or final_stage(log)
    if final is None:
        return
    for epochs in _global_epochs(log.epochs):
        last = epochs[-1]
        after = final.bpb.line > last.place.line
        later = [s for s in log.evaluations if s.bpb.line > last.place.line]
        value = f"{last.place.text}; then {final.bpb.file}:{final.bpb.line} {final.bpb.text}"
        # A log that states 'score first' may count its epochs after the scoring.
        sure = log.claimed is not None and "score first" not in log.numbers
        grave: Severity = "invalid" if sure else "warning"
        if after and _score_themselves(epochs):
            why = (
                f"the last of {last.epoch} epochs over the text is scored: the model has learned "
                "every token in the epochs before (C3)"
            )
            yield of(grave, "last-epoch", why, last.place, value)
        elif after and sure:
            why = (
                f"the model learns the validation text for {last.epoch} epochs before the claimed "
                "score: every token is scored by a model that has seen it (C3)"
            )
            yield of("invalid", "ttt-before-score", why, last.place, value)
        elif later:
            why = f"a model learns the text for {last.epoch} epochs before an evaluation (C3)"
            yield of("warning", "ttt-before-score", why, last.place, value)


def _score_themselves(epochs: Sequence[Epoch]) -> bool:
    """Return whether the lines of the last epoch print a score of the text during learning."""
    last = [epoch for epoch in epochs if epoch.epoch == epochs[-1].epoch]
    return any("bpb" in e.place.text.lower() and "pre" not in e.name for e in last)


def _global_epochs(epochs: Sequence[Epoch]) -> Iterator[list[Epoch]]:
    """Yield epochs by name whose counts rise once through a log; counts per chunk restart."""
    names: dict[str, list[Epoch]] = {}
    for epoch in epochs:
        names.setdefault(re.sub(r"\d+", "#", epoch.name), []).append(epoch)
    for of_name in names.values():
        counts = [epoch.epoch for epoch in of_name]
        if counts == sorted(counts) and counts[0] < counts[-1] and counts[-1] > 1:
            yield of_name


def _passes(log: Log) -> Iterator[Finding]:
    """Yield a finding for a second pass over the text whose scores are claimed."""
    first = [p for p in log.passes if p.number == 1]
    second = [p for p in log.passes if p.number == 2]
    final = log.claimed or final_stage(log)
    if not first or not second or final is None:
        return
    begin = second[0].place
    if final.bpb.line >= begin.line:
        why = (
            "tokens are scored a second time after later ones were seen, and the second score is "
            "claimed (C1, C4)"
        )
        grave: Severity = "invalid" if log.claimed is not None else "warning"
        yield of(grave, "second-pass", why, begin)


def _gates(log: Log) -> Iterator[Finding]:
    """Yield findings for hints that depend on the token they predict, by their printed counts."""
    for name in ("within gate", "word gate"):
        number = log.numbers.get(name)
        if number is not None and number.value > 0:
            why = (
                "an expert was used that asks whether the token to predict begins a word: its "
                "probabilities depend on that token (C2)"
            )
            yield of("invalid", "target-gate", why, number, f"{name}: {number.value:,.0f}")
            return
