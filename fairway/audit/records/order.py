"""Judges the events of a script: was the text trained on before it was scored?

A score is right if nothing that it depends on has seen its tokens. So training is allowed only on
tokens that the same sum already counts.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from fairway.audit.findings import Finding, Severity
from fairway.audit.records.events import Events, Score, Training
from fairway.audit.records.folding import plain_setting
from fairway.audit.records.shown import scores_in

_WHY = {
    "last-epoch": (
        "one pass trains on the same tokens that a later pass scores: only a score from before the "
        "first pass counts"
    ),
    "val-training": (
        "the model trains on validation tokens before the first of them is scored: it learns the "
        "text before the score"
    ),
    "slot": (
        "values are fitted to the targets of a window, and the same window is then scored with them"
    ),
    "trained-before-scored": "the model trains on a piece of the text before the piece is scored",
    "second-pass": "a text is scored again after training on it during its first scoring",
    "slot-context": (
        "values are fitted to the scored part of a window; no ruling says whether that is allowed"
    ),
    "val-warm-up": (
        "a warm-up takes steps on validation tokens before they are scored; no score seems to "
        "depend on them, but training tokens would serve as well"
    ),
}
_SWITCHES = re.compile(r"ttt|slot|adapt|enable|_on$|^use_|^do_|mode|epochs|warm|tune|refine", re.I)
_ALWAYS_WARNING = ("slot-context", "second-pass", "val-warm-up")


@dataclass(frozen=True, slots=True)
class Verdict:
    """A training in the wrong order: its kind, and the score that shows it."""

    kind: str
    training: Training
    score: Score | None


def check_order(
    events: Events,
    settings: Mapping[str, str],
    said: Mapping[str, str],
    claimed: Sequence[str] = (),
) -> Iterator[Finding]:
    """Yield findings for trainings on validation tokens before their score, one for each line.

    `said` names the source of a setting that is not from the logs. `claimed` are the lines of logs
    with the claimed score. If the script prints them, the order before other scores is no proof.
    """
    worst: dict[tuple[str, int], Verdict] = {}
    grave = list(_WHY)
    numbers = scores_in(list(events.prints), claimed)
    meant = {id(events.scores[number]) for number in numbers}

    def rank(verdict: Verdict) -> tuple[bool, bool, int]:
        # If another score depends on a training, the sum of its own losses matters least.
        score, loops = verdict.score, {t.loop for t in verdict.training.turns}
        own = score is not None and {t.loop for t in score.turns} == loops
        return _elsewhere(verdict, meant), own, grave.index(verdict.kind)

    for verdict in verdicts(events):
        place = (verdict.training.place.file, verdict.training.place.line)
        if rank(verdict) < rank(worst.setdefault(place, verdict)):
            worst[place] = verdict
    for one in events.calibrations[:1]:
        why = "a quantiser is calibrated on validation tokens before they are scored"
        yield Finding("warning", "val-calibration", why, one.file, one.line, one.text)
    for verdict in worst.values():
        known = _switches(verdict.training, settings, said, events.seen)
        finding = _finding(verdict, known)
        if _elsewhere(verdict, meant):
            milder: Severity = "warning" if finding.severity == "invalid" else "note"
            why = f"{finding.why}; the claimed score is another one"
            finding = replace(finding, severity=milder, why=why)
        yield finding


def _elsewhere(verdict: Verdict, meant: Collection[int]) -> bool:
    """Return whether the claimed scores are known, and the score of a verdict is another."""
    return bool(meant) and verdict.score is not None and id(verdict.score) not in meant


def verdicts(events: Events) -> Iterator[Verdict]:
    """Yield all trainings in the wrong order, once for every score that shows it."""
    used: set[int] = set()
    for scores in _grouped(events):
        for score in scores:
            used |= score.trained
            for number in sorted(score.trained):
                kind = _kind(events, events.trainings[number], score, score is scores[0])
                if kind:
                    yield Verdict(kind, events.trainings[number], score)
    last = max((score.when for score in events.scores), default=0)
    for number, training in enumerate(events.trainings):
        if number not in used and training.when < last and not _interleaved(events, training):
            yield Verdict("val-warm-up", training, None)


def _grouped(events: Events) -> list[list[Score]]:
    """Return the scores of each printed figure, in order; a figure may be printed many times."""
    groups: dict[tuple[object, ...], dict[int, Score]] = {}
    for sink in events.sinks:
        key = (sink.place.file, sink.place.line, sink.calls)
        groups.setdefault(key, {}).update({id(score): score for score in sink.scores})
    if not groups:
        # Without a conversion to bits, sums count as figures, except those of training itself.
        first: dict[tuple[object, ...], int] = {}
        for training in events.trainings:
            first.setdefault((training.calls, training.turns), training.when)
        for score in events.scores:
            if score.when < first.get((score.calls, score.turns), score.when + 1):
                groups.setdefault((score.place.function, score.calls), {})[id(score)] = score
    return [sorted(group.values(), key=lambda s: s.when) for group in groups.values()]


def _kind(events: Events, training: Training, score: Score, first: bool) -> str:
    """Return the kind of a training in the wrong order before a score, or ''."""
    if training.when > score.when:
        return ""
    if _same(training, score):
        common = {t.loop for t in training.turns} & {t.loop for t in score.turns}
        if _shared(training, score):
            return "slot-context" if common else ""
        if _passes(training, score):
            return "last-epoch"
        if common:
            return "slot" if training.fresh else "trained-before-scored"
        return "second-pass" if _interleaved(events, training) else "val-training"
    if not first or _shared(training, score):
        return ""
    if training.fresh and {t.loop for t in training.turns} & {t.loop for t in score.turns}:
        return "slot"
    return "second-pass" if _interleaved(events, training) else "val-training"


def _same(training: Training, score: Score) -> bool:
    """Return whether a training certainly saw tokens of a score."""
    ours = [p for p in training.pieces if p.turns]
    theirs = [p for p in score.pieces if p.turns]
    return any(a.within(b) or b.within(a) for a in ours for b in theirs)


def _shared(training: Training, score: Score) -> bool:
    """Return whether a training on a window ends where its score begins."""
    upto = {c.where for c in training.cuts if c.side == "upto"}
    if upto & {c.where for c in score.cuts if c.side == "from"}:
        return True
    # The training masks a beginning, and the score starts after one.
    masked = any(c.side == "masked" for c in training.cuts)
    return masked and any(c.side == "from" for c in score.cuts)


def _passes(training: Training, score: Score) -> bool:
    """Return whether both are in one loop, with the training in an earlier turn."""
    turns = {t.loop: t.number for t in score.turns}
    return any(t.loop in turns and t.number < turns[t.loop] for t in training.turns)


def _interleaved(events: Events, training: Training) -> bool:
    """Return whether the loop of a training also scores, in turn with the training."""
    loops = {t.loop for piece in training.pieces for t in piece.turns}
    loops &= {t.loop for t in training.turns}
    return any(
        score.when < training.when and loops & {t.loop for t in score.turns}
        for score in events.scores
    )


def _switches(
    training: Training,
    settings: Mapping[str, str],
    said: Mapping[str, str],
    seen: Mapping[str, str],
) -> tuple[str, bool]:
    """Return what is known of the switches around a training, and whether that is certain."""
    asked = list(dict.fromkeys(guard.lower() for guard in training.guards))
    # If some of the conditions are switches for such training, only these count.
    asked = [name for name in asked if _SWITCHES.search(name)] or asked
    shown = [name for name in asked if name in seen]
    known = [n for n in asked if n in settings and plain_setting(settings[n]) not in (0, None)]
    if shown:
        return f"; {seen[shown[-1]]} shows that it ran", True
    if known:
        name = known[-1]
        who = f"{said[name]} says" if name in said else "the logs say"
        return f"; {who} that {name} is {settings[name]}", True
    if asked:
        return f"; by default, and if {' and '.join(asked[-2:])}: the logs do not say", False
    return "", True


def _finding(verdict: Verdict, known: tuple[str, bool]) -> Finding:
    """Return the finding; its severity depends on what is known of the switches around it."""
    training = verdict.training
    words, sure = known
    place = training.place
    value = f"{place.text} in {place.function}()" if place.function else place.text
    if verdict.score is not None:
        value += f"; scored in line {verdict.score.place.line}"
    grave: Severity = "invalid" if sure and verdict.kind not in _ALWAYS_WARNING else "warning"
    why = _WHY[verdict.kind] + words
    return Finding(grave, verdict.kind, why, place.file, place.line, value)
