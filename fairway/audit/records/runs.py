"""Finds the runs that a record claims, by scores, seeds and names.

Beside the claimed runs, folders contain ablations, earlier runs, evaluations and failures. Those
are read, but they do not count against the record.
"""

import re
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from fairway.audit.findings import Finding
from fairway.audit.records.claims import Claims, seed_rows, told_scores
from fairway.audit.records.logs import Log
from fairway.audit.records.said import Number, Stage

# A rounded score may differ from the exact one by this much.
ROUNDING = 6e-5
# Names of runs that are not claimed if another run has the same seed.
_ASIDE = re.compile(
    r"ablat|baseline|control|original|smoke|debug|fail|crash|abort|partial|snapshot|old|prev|proxy|"
    r"test_|sweep|screen|rerun|attempt|no_?ttt|without",
    re.IGNORECASE,
)


# Limits that hold for every run by itself.
_BUDGETS = frozenset({"train-time", "eval-time", "over-cap"})
_COMPARES = re.compile(r"mixed-|other-settings|seed-twice|no-log-of-seed|bytes-not-largest")


@dataclass(eq=False)
class Runs:
    """The runs that a record claims, and the others, each with the reason why it is set aside.

    `certain` is False if the claim does not distinguish its runs from others. Then no finding that
    rests on a log alone is 'invalid', except a budget that every run exceeds if no score is
    claimed (`any_run`): whichever runs are meant, none is valid.
    """

    claimed: list[Log] = field(default_factory=list)
    aside: list[tuple[Log, str]] = field(default_factory=list)
    certain: bool = True
    any_run: bool = False

    def tempered(self, findings: Iterable[Finding]) -> Iterator[Finding]:
        """Yield findings about logs; as warnings if the claimed runs are not known."""
        if self.certain:
            yield from findings
            return
        found = list(findings)
        proven = self._of_any_run(found)
        for finding in found:
            # These runs may not belong together, so they need not agree.
            if _COMPARES.match(finding.code):
                continue
            if finding.severity == "invalid" and finding not in proven:
                why = f"{finding.why} (it is not known whether the record claims this run)"
                finding = replace(finding, severity="warning", why=why)
            yield finding

    def _of_any_run(self, found: Sequence[Finding]) -> list[Finding]:
        """Return the budgets that are exceeded whichever runs are claimed.

        Those of claim and files, and all if every run exceeds one and no score is claimed.
        """
        proven = [f for f in found if f.severity == "invalid" and f.code in _BUDGETS]
        exceeding = {id(self._log_of(finding)) for finding in proven}
        every = self.any_run and all(id(log) in exceeding for log in self.claimed)
        return [f for f in proven if every or self._log_of(f) is None]

    def _log_of(self, finding: Finding) -> Log | None:
        """Return the log of a finding's place: in its file, the last run that begins before it."""
        logs = [*self.claimed, *(log for log, _ in self.aside)]
        line = finding.line or 0
        before = [g for g in logs if g.name == finding.file and g.first_line <= line]
        return max(before, key=lambda log: log.first_line, default=None)

    def findings(self) -> Iterator[Finding]:
        """Yield one note about the logs set aside, or a warning if no run could be identified."""
        if not self.certain and len(self.claimed) > 1:
            why = "none of these runs has the claimed score, so it is not known which are claimed"
            if self.any_run:
                why = "no score is claimed, so it is not known which of these runs are claimed"
            names = _some([log.shown for log in self.claimed])
            yield Finding("warning", "runs-unknown", why, value=names)
        if self.aside:
            reasons: dict[str, list[str]] = {}
            for log, why in self.aside:
                reasons.setdefault(why, []).append(log.shown)
            value = "; ".join(f"{why}: {_some(names)}" for why, names in reasons.items())
            why = f"{len(self.aside)} of {len(self.aside) + len(self.claimed)} runs are not claimed"
            yield Finding("note", "runs-aside", f"{why}; they do not count against it", value=value)


def _some(names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def choose(logs: Sequence[Log], claims: Claims, readme: str) -> Runs:
    """Return the runs that a record claims; if a score matches, `claimed` of the log is set.

    If submission.json has no score, the first score that the README states as its own counts.
    """
    left, aside = _without_copies(logs)
    named = [log for log in left if _base(log) in claims.others]
    aside += [(log, "the claim names it as a log of something else") for log in named]
    left = [log for log in left if log not in named]
    stated = [claims.numbers["bpb"]] if "bpb" in claims.numbers else []
    told = [] if stated else told_scores(readme, "README.md")
    scores = _scores_by_seed(claims, readme, left, [*stated, *told][:1])
    runs = _by_seed(left, scores, claims)
    runs = runs or (_by_mean(left, claims, stated[0]) if stated else _by_readme(left, claims, told))
    runs.aside = aside + runs.aside
    runs.claimed.sort(key=lambda log: (log.name, log.part))
    for log in runs.claimed:
        log.claimed = log.claimed or _match(log, _values(claims, log))
    return runs


def _base(log: Log) -> str:
    return log.name.rpartition("/")[2]


def _without_copies(logs: Sequence[Log]) -> tuple[list[Log], list[tuple[Log, str]]]:
    """Return logs without copies of others, and the copies."""
    seen: dict[tuple[object, ...], Log] = {}
    left, aside = [], []
    for log in sorted(logs, key=lambda log: log.name.count("/")):
        values = tuple((s.name, s.bpb.value) for s in log.evaluations)
        key = (log.seed, log.steps, log.train_s.value if log.train_s else None, values)
        if values and key in seen:
            aside.append((log, "a copy of another log"))
        else:
            seen[key] = log
            left.append(log)
    left.sort(key=lambda log: (log.name, log.part))
    return left, aside


def _values(claims: Claims, log: Log) -> list[Number]:
    """Return the scores that may be claimed for a log: that of its seed, else the overall one."""
    found = [claims.by_seed[log.seed]] if log.seed in claims.by_seed else []
    return found or ([claims.numbers["bpb"]] if "bpb" in claims.numbers else [])


def unit(text: str) -> float:
    """Return half a unit of the last written decimal of the first number with decimals."""
    digits = re.search(r"\d\.(\d{1,30})(?![\d.eE])", text)
    return 0.51 * 10.0 ** -len(digits[1]) if digits else 0.0


def _match(log: Log, values: Iterable[Number]) -> Stage | None:
    """Return the stage of a log whose score is nearest to one of the values; of equals the last."""
    stages = log.evaluations or log.stages[-1:]
    best: tuple[float, Stage] | None = None
    for value in values:
        for stage in stages:
            off = abs(stage.bpb.value - value.value)
            near = off <= max(ROUNDING, min(unit(value.text), 6e-4))
            # Logs print rounded and exact scores of one evaluation; the last exact one is taken.
            if near and (best is None or off <= best[0] + 1e-9):
                best = (off, stage)
    return _timed(best[1], stages) if best else None


def _timed(stage: Stage, stages: Sequence[Stage]) -> Stage:
    """Return a stage with the seconds and the loss from all lines about it."""
    same = [s for s in stages if abs(s.bpb.value - stage.bpb.value) <= ROUNDING]
    seconds = max((s.seconds for s in same if s.seconds is not None), default=None)
    losses = [s.loss for s in same if s.loss is not None and s.name.startswith(stage.name[:12])]
    loss = losses[-1] if stage.loss is None and losses else stage.loss
    return replace(stage, seconds=seconds, loss=loss)


# ---------------------------------------------------------------------------------------------
# By the scores of seeds


def _scores_by_seed(
    claims: Claims, readme: str, logs: Sequence[Log], claimed: Sequence[Number]
) -> dict[int, list[Number]]:
    """Return the claimed scores of every seed, from submission.json, else from the README."""
    if claims.by_seed:
        return {seed: [score] for seed, score in claims.by_seed.items()}
    rows = seed_rows(readme, {log.seed for log in logs if log.seed is not None})
    columns = min((len(values) for values in rows.values()), default=0)
    if not claimed:
        return {}
    allowed = max(ROUNDING, unit(claimed[0].text))
    for column in reversed(range(columns)):
        values = [row[column][0] for row in rows.values()]
        if any(abs(v - claimed[0].value) <= allowed for v in [statistics.fmean(values), *values]):
            return {
                seed: [Number(row[column][0], "README.md", row[column][1], str(row[column][0]))]
                for seed, row in rows.items()
            }
    return {}


def _by_seed(logs: list[Log], scores: dict[int, list[Number]], claims: Claims) -> Runs | None:
    """Return the runs whose scores are claimed seed by seed, or None if none matches."""
    runs, matched = Runs(), 0
    for seed, values in scores.items():
        of_seed = [log for log in logs if log.seed == seed]
        unknown = [log for log in logs if log.seed is None]
        found = _nearest([*of_seed, *unknown], values)
        matched += found is not None
        if found is None and len(of_seed) == 1:
            found = of_seed[0]
        if found is None:
            continue
        found.claimed = _match(found, values)
        runs.claimed.append(found)
        training = _training_of(found, of_seed, claims)
        for log in training:
            log.training_only = True
        runs.claimed += training
    alone = len(runs.claimed) == len(logs) == len(scores)
    if not matched and not alone:
        return None
    runs.claimed = list(dict.fromkeys(runs.claimed))
    for log in logs:
        if log not in runs.claimed:
            known = log.seed in scores
            why = "it does not have the claimed score of its seed" if known else "no claimed seed"
            runs.aside.append((log, why))
    return runs


def _nearest(logs: Sequence[Log], values: Sequence[Number]) -> Log | None:
    """Return the log whose score is nearest to a claimed one; of equals one that trained."""
    matches = []
    for log in logs:
        stage = _match(log, values)
        if stage is not None:
            off = min(abs(stage.bpb.value - value.value) for value in values)
            matches.append(
                (round(off, 7), bool(_ASIDE.search(log.name)), not log.trained, log.name, log)
            )
    return min(matches, key=lambda match: match[:4])[4] if matches else None


def _training_of(found: Log, of_seed: Sequence[Log], claims: Claims) -> list[Log]:
    """Return the training behind an evaluation, if exactly one log of its seed can be it."""
    if found.trained or found.seed is None:
        return []
    trained = [log for log in of_seed if log.trained and log is not found]
    if len(trained) > 1:
        said = claims.of_seed.get(found.seed)
        scores = list(said.scores.values()) if said else []
        trained = [log for log in trained if _match(log, scores) is not None]
    return trained if len(trained) == 1 else []


# ---------------------------------------------------------------------------------------------
# By the overall score


def _by_readme(logs: list[Log], claims: Claims, told: Sequence[Number]) -> Runs:
    """Return the runs whose mean a README states, or the run whose score it states first."""
    means = (_of_mean(logs, claims, score) for score in told)
    found = next((runs for runs in means if runs is not None), None)
    found = found or (_of_single(logs, told[0]) if told else None)
    return found or Runs(claimed=list(logs), certain=False, any_run=not (told or claims.by_seed))


def _by_mean(logs: list[Log], claims: Claims, claimed: Number) -> Runs:
    """Return the runs whose mean is claimed, or the run whose score is."""
    found = _of_mean(logs, claims, claimed) or _of_single(logs, claimed)
    if found is not None:
        return found
    seeds = [log.seed for log in logs]
    names = {re.sub(r"\d+", "#", log.name) for log in logs}
    distinct = len(set(seeds)) == len(seeds) > 1 and None not in seeds and len(names) == 1
    return Runs(claimed=list(logs), certain=distinct)


def _of_mean(logs: list[Log], claims: Claims, claimed: Number) -> Runs | None:
    allowed = max(ROUNDING, unit(claimed.text))
    for group in _groups(logs, claims):
        stage = _common(group, claimed.value, allowed)
        if stage is not None:
            for log in group:
                log.claimed = _match(log, [s.bpb for s in log.stages if s.name == stage][-1:])
            return _rest(logs, group)
    return None


def _of_single(logs: list[Log], claimed: Number) -> Runs | None:
    single = _nearest(logs, [claimed])
    if single is not None:
        single.claimed = _match(single, [claimed])
        family = [log for log in logs if log is single or _same_run(log, single)]
        return _rest(logs, family)
    return None


def _rest(logs: Sequence[Log], claimed: list[Log]) -> Runs:
    aside = [(log, "the claim does not use its score") for log in logs if log not in claimed]
    return Runs(claimed, aside)


def _groups(logs: list[Log], claims: Claims) -> Iterator[list[Log]]:
    """Yield sets of logs that may be the seeds of a claim: by seed, by similar names, and all."""
    if claims.seeds:
        yield [log for log in logs if log.seed in claims.seeds]
    stems: dict[str, list[Log]] = {}
    for log in logs:
        stems.setdefault(re.sub(r"\d+", "#", log.name), []).append(log)
    yield from stems.values()
    yield logs


def _common(group: Sequence[Log], value: float, allowed: float) -> str | None:
    """Return the stage that all logs of a group have and whose mean is a value, or None."""
    seeds = [log.seed for log in group if log.seed is not None]
    if len(group) < 2 or len(set(seeds)) < len(seeds):
        return None
    last = [log.scores for log in group]
    for name in reversed(list(last[0])):
        if all(name in stages for stages in last):
            mean = statistics.fmean(stages[name] for stages in last)
            if abs(mean - value) <= allowed:
                return name
    return None


def _same_run(log: Log, single: Log) -> bool:
    """Return whether a log has another seed of the same configuration."""
    if log.seed is None or log.seed == single.seed or log.trained != single.trained:
        return False
    if re.sub(r"\d+", "#", log.name) != re.sub(r"\d+", "#", single.name):
        return False
    names = {s.name for s in log.stages} == {s.name for s in single.stages}
    return names and log.get("parameters") == single.get("parameters")
