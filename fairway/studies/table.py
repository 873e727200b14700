"""Statistics of a study: every arm compared with the base, with warnings."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fairway.base.errors import UserError, shown
from fairway.base.units import counted
from fairway.studies.arms import BASE, NOISE, SCORES, Study, digest
from fairway.studies.intervals import Estimate, estimate
from fairway.studies.lines import (
    LINES,
    STEADY,
    Line,
    existing,
    once_each,
    paired,
    read_lines,
    slowed,
)

# Verdicts that end an arm before its pairs do.
DECIDED = ("better", "worse", "equal", "hopeless", "failing")
# The most repetitions of the base for the noise floor.
NOISE_PAIRS = 4
# The most arms in a merged table.
_MOST_ARMS = 256
# An arm is stopped after this many failed runs without a successful one.
_FAILURES = 2


@dataclass(eq=False)
class Table:
    """The runs of one study, the score that decides, and the error rate of its intervals.

    `pairs` is the number of pairs planned for an arm without runs. A table `merged` from several
    studies has no plan. With `keep_hopeless`, an arm without hope stays open.
    """

    lines: list[Line]
    metric: str
    error: float
    pairs: int = 0
    merged: bool = False
    keep_hopeless: bool = False
    _estimates: dict[tuple[str, int], Estimate] = field(default_factory=dict)

    def of(self, arm: str) -> list[Line]:
        """Return the runs of an arm."""
        return [line for line in self.lines if line.arm == arm]

    def arms(self) -> list[str]:
        """Return the arms without the base, in order of appearance."""
        return [n for n in dict.fromkeys(line.arm for line in self.lines) if n != BASE]

    def planned(self, arm: str) -> int:
        """Return the number of pairs planned when the arm began; 0 without a plan."""
        if self.merged:
            return 0
        found = self.of(arm)
        return found[0].planned if found else planned(arm, self.pairs)

    def differences(self, arm: str) -> list[float]:
        """Return the differences arm minus base, pair by pair, without slowed runs."""
        return paired(self.steady(), arm, BASE, self.metric)

    def steady(self) -> list[Line]:
        """Return the runs that other work on the machine did not slow."""
        out = {line.identity() for line in slowed(self.lines)}
        return [line for line in self.lines if line.identity() not in out]

    def estimate(self, arm: str) -> Estimate:
        """Return the estimate from the pairs of an arm."""
        key = arm, len(self.lines)
        if key not in self._estimates:
            found = estimate(self.differences(arm), self.planned(arm), self.error)
            self._estimates[key] = found
        return self._estimates[key]

    def verdict(self, arm: str) -> str:
        """Return the verdict on an arm: that of its estimate, or 'failing'."""
        found = self.of(arm)
        failed = sum(bool(line.failed) for line in found)
        if len(found) == failed >= _FAILURES:
            return "failing"
        verdict = self.estimate(arm).verdict
        return "open" if verdict == "hopeless" and self.keep_hopeless else verdict

    def is_over(self, arm: str) -> bool:
        """Return whether an arm needs no more runs."""
        verdict = self.verdict(arm)
        # The noise floor is measured and not decided; runs that repeat bit for bit have none.
        return verdict in (("equal", "failing") if arm == NOISE else DECIDED)

    def noise_sd(self) -> float | None:
        """Return the standard deviation of one run with one seed, from the base run twice."""
        sd = self.estimate(NOISE).sd
        return None if sd is None else sd / math.sqrt(2.0)


def planned(arm: str, pairs: int) -> int:
    """Return the number of pairs planned for an arm if `pairs` are requested."""
    return min(pairs, NOISE_PAIRS) if arm == NOISE else pairs


def table_of(study: Study, out: Path) -> Table:
    """Return the runs in a study's folder; lines with other settings are left out."""
    asked = {arm.name: study.config(arm) for arm in study.all_arms()}
    configs = {name: digest(config) for name, config in asked.items()}
    mine = (configs[BASE], study.until, asked[BASE].train.clock)
    lines = [
        line
        for line in once_each({out / LINES: read_lines(out / LINES)})[0]
        if (line.base, line.until, line.clock) == mine and configs.get(line.arm) == line.config
    ]
    return Table(lines, study.metric, study.error, study.pairs, keep_hopeless=study.keep_hopeless)


def merge(paths: Sequence[Path], metric: str | None, error: float) -> tuple[Table, list[str]]:
    """Return the merged table of several studies with one base, each run once, and remarks.

    Runs that do not match the last run of the first table in base, clock and last verb are left
    out. Raises UserError for a table without matching runs, for equal names of different arms, and
    for two different results of one run.
    """
    files = {path: existing(path) for path in paths}
    asked = files[paths[0]][-1]
    mine = {path: _of_question(path, lines, asked) for path, lines in files.items()}
    _require_one_each(mine)
    if (count := len({line.arm for kept in mine.values() for line in kept})) > _MOST_ARMS:
        raise UserError(f"{count:,} arms are too many for one table; it takes {_MOST_ARMS}")
    lines, twice = once_each(mine)
    left_out = sum(map(len, files.values())) - sum(map(len, mine.values()))
    metric = _metric(lines, metric, paths[0])
    said = [
        f"{count} {'run is' if count == 1 else 'runs are'} {what}"
        for count, what in (
            (twice, "in more than one table, or twice in one; each counts once"),
            (left_out, "left out because of other settings"),
        )
        if count
    ]
    return Table(lines, metric, error, merged=len(files) > 1), said


def _of_question(path: Path, lines: Sequence[Line], asked: Line) -> list[Line]:
    """Return a table's runs that match another run; of each arm, those with its last settings."""
    question = (asked.base, asked.clock, asked.until)
    found = [line for line in lines if (line.base, line.clock, line.until) == question]
    if not found:
        other, mine = lines[-1], {"clock": asked.clock, "until": asked.until, "base": asked.base}
        differs = next(name for name, value in mine.items() if getattr(other, name) != value)
        raise UserError(
            f"{path} cannot be merged: its last run has another '{differs}' "
            f"({getattr(other, differs)}, not {mine[differs]}); merge tables of the same study"
        )
    last = {line.arm: line.config for line in found}
    return [line for line in found if line.config == last[line.arm]]


def _require_one_each(files: Mapping[Path, Sequence[Line]]) -> None:
    """Raise UserError unless each arm has the same settings and text in all tables."""
    arms: dict[str, tuple[Path, Line]] = {}
    text: tuple[Path, str] | None = None
    for path, line in ((path, line) for path, lines in files.items() for line in lines):
        first, known = arms.setdefault(line.arm, (path, line))
        if known.config != line.config:
            raise UserError(
                f"arm '{line.arm}' is {' '.join(line.settings)} in {path} and "
                f"{' '.join(known.settings)} in {first}; give one of them another name"
            )
        if line.arm == BASE and not line.failed:
            text = text or (path, line.data)
            if text[1] != line.data:
                raise UserError(f"the bases of {text[0]} and {path} were run on different texts")


def _metric(lines: Sequence[Line], metric: str | None, path: Path) -> str:
    """Return the score that decides: the requested one, or the last that runs have."""
    known = [name for name in SCORES[lines[0].until] if any(name in line.bpb for line in lines)]
    if not known:
        raise UserError(f"{path} has no successful run, so there is nothing to compare")
    if metric is not None and metric not in known:
        raise UserError(f"--metric is {shown(metric)}, but these runs have {', '.join(known)}")
    return metric or known[-1]


# ---------------------------------------------------------------------------------------------
# The summary, for JSON


def summary(table: Table, more: Iterable[str] = ()) -> dict[str, Any]:
    """Return all results of a table, ready for JSON."""
    first = table.lines[0] if table.lines else None
    base = _figures(table, BASE)
    return {
        "schema": 1,
        "recipe": first.recipe if first else None,
        "common": first.common if first else [],
        "until": first.until if first else None,
        "clock": first.clock if first else None,
        "metric": table.metric,
        "error": table.error,
        "devices": sorted({line.device for line in table.lines if line.device}),
        "commits": sorted({line.commit for line in table.lines}),
        "base": base,
        "noise_sd": table.noise_sd(),
        "arms": [
            {**asdict(table.estimate(arm)), **_figures(table, arm), "verdict": table.verdict(arm)}
            for arm in table.arms()
        ],
        "failed": [
            {"arm": line.arm, "seed": line.seed, "reason": line.failed}
            for line in table.lines
            if line.failed
        ],
        "cautions": [*more, *cautions(table)],
    }


def _figures(table: Table, arm: str) -> dict[str, Any]:
    """Return the means over an arm's successful runs, without slowed ones."""
    own = table.of(arm)
    found = [line for line in table.steady() if line.arm == arm and not line.failed]
    scores = [line.bpb[table.metric] for line in found if table.metric in line.bpb]
    return {
        "arm": arm,
        "settings": own[0].settings if own else [],
        "runs": len(found),
        "failed": sum(bool(line.failed) for line in own),
        "bpb": _mean(scores),
        "bpb_sd": statistics.stdev(scores) if len(scores) > 1 else None,
        "seconds": _mean([line.train_s for line in found]),
        "steps": _mean([line.steps for line in found]),
        "bytes": _mean([line.artifact_bytes for line in found]),
        "peak_bytes": _mean([line.peak_bytes for line in found]),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def cautions(table: Table) -> list[str]:
    """Return a sentence for each reason to trust a table less."""
    done = [line for line in table.lines if not line.failed]
    found = []
    for what, values in (
        ("devices", {line.device for line in done}),
        ("commits", {line.commit for line in done}),
        ("versions of PyTorch", {line.torch for line in done}),
    ):
        if len(values) > 1:
            found.append(f"the runs are of {len(values)} {what}: {', '.join(sorted(values))}")
    if len({line.sources for line in done}) > len({line.commit for line in done}):
        found.append("sources were changed between runs of one commit")
    if out := slowed(table.lines):
        names = ", ".join(f"{line.arm} with seed {line.seed} ({line.steps:,})" for line in out[:4])
        more = ", ..." if len(out) > 4 else ""
        found.append(
            f"other work slowed the machine in {counted(len(out), 'run')}, which the table leaves "
            f"out (fewer steps than {STEADY} of the arm's median): {names}{more}"
        )
    if steps := _steps_by_card(done):
        found.append(
            f"the GPUs differ: on them the base made {min(steps):,.0f} to {max(steps):,.0f} steps"
        )
    if count := _crossing(done):
        found.append(
            f"the two runs of {counted(count, 'pair')} used different GPUs; by the clock a faster "
            "GPU makes more steps, so these differences are partly those of the GPUs"
        )
    for arm in table.arms():
        lost = _lost(table, arm)
        if lost:
            pairs = "pair is" if lost == 1 else "pairs are"
            found.append(
                f"{lost} {pairs} left out of {arm}: the two runs have different devices or sources"
            )
        if len({line.text_bytes for line in done if line.arm in (arm, BASE)}) > 1:
            found.append(f"{arm} and {BASE} were scored on different numbers of bytes")
    return found


def _steps_by_card(done: Sequence[Line]) -> list[float]:
    """Return the median steps of the base by the clock on each GPU, if they differ by 1 %."""
    cards: dict[str, list[int]] = {}
    for line in done:
        if line.arm == BASE and line.clock == "wall" and line.card and line.steps:
            cards.setdefault(line.card, []).append(line.steps)
    found = [float(statistics.median(steps)) for steps in cards.values()]
    return found if found and max(found) > 1.01 * min(found) else []


def _crossing(done: Sequence[Line]) -> int:
    """Return how many pairs by the clock ran on two GPUs that are known to be different."""
    bases = {(line.seed, *line.where()): line.card for line in done if line.arm == BASE}
    return sum(
        line.clock == "wall" and line.card != card
        for line in done
        if line.card and (card := bases.get((line.seed, *line.where()), ""))
    )


def _lost(table: Table, arm: str) -> int:
    """Return how many seeds have both runs of a pair, but none that are comparable."""
    seeds = [{line.seed for line in table.of(name) if not line.failed} for name in (arm, BASE)]
    both = {(line.seed, *line.where()) for line in table.of(arm) if not line.failed} & {
        (line.seed, *line.where()) for line in table.of(BASE) if not line.failed
    }
    return len((seeds[0] & seeds[1]) - {seed for seed, *_ in both})
