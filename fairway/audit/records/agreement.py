"""Do logs agree with one another, and claim and README with the logs?"""

import itertools
import re
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from fairway.audit.findings import Finding
from fairway.audit.records.accounts import final_stage, of
from fairway.audit.records.claims import Claims, bpb_like, variables
from fairway.audit.records.logs import Log, Number

# So many names are looked for in so many characters of source: seconds, whatever they are.
_MOST_NAMES, _MOST_READ = 2_000, 1 << 22
# Settings that may differ between runs of one configuration: places, and what is printed or kept.
_OWN = re.compile(
    r"(^|_)(seed|run_id|rank|local_rank|path|paths|dir|dirs|file|files|logfile|name|host|port|"
    r"is_main_process|date|time|device|world_size|grad_accum_steps|log|every|verbose|debug|wandb|save|"
    r"profile)(_|$)"
)
# A mean of rounded scores may miss a rounded claim by this much.
_ROUNDING = 6e-5


def check_settings(logs: Sequence[Log]) -> Iterator[Finding]:
    """Yield what differs between logs that should have one configuration."""
    first = next((log for log in logs if log.settings), None)
    if first is None:
        return
    for log in logs:
        if log is first or not log.settings:
            continue
        for name in sorted(first.settings.keys() | log.settings.keys()):
            if not _OWN.search(name):
                yield from _setting(first, log, name)
    yield from _same_number(logs, "parameters", "invalid", "parameters", "not one model")
    yield from _same_number(logs, "code bytes", "warning", "code", "not one script")
    yield from _same_number(logs, "train shards", "warning", "shards", "not the same training text")


def _setting(first: Log, log: Log, name: str) -> Iterator[Finding]:
    a, b = (str(one.settings[name]) if name in one.settings else None for one in (first, log))
    if a == b or "/" in (a or "") + (b or "") or _same_value(a, b):
        return
    line = log.setting_lines.get(name)
    value = f"{name}: {a} in {first.name}, {b} in {log.name}"
    if a is None or b is None:
        why = "a setting is listed in one log and not in another: not the same script"
        yield Finding("warning", "other-settings", why, log.name, line, value)
    else:
        why = "the seeds have different configurations: they are no repetitions of one run"
        yield Finding("invalid", "mixed-config", why, log.name, line, value)


def _same_value(a: str | None, b: str | None) -> bool:
    """Return whether two settings are one number, written in two ways."""
    try:
        return float(a or "nan") == float(b or "nan")
    except ValueError:
        return False


def _same_number(
    logs: Sequence[Log], meaning: str, severity: str, code: str, why: str
) -> Iterator[Finding]:
    found = [log.numbers[meaning] for log in logs if meaning in log.numbers]
    for number in found[1:]:
        if number.value != found[0].value:
            value = f"{number.value:,.0f}, but {found[0].value:,.0f} in {found[0].file}"
            what = f"{meaning} differ between logs: {why}"
            yield of(severity, f"mixed-{code}", what, number, value)
            return


# ---------------------------------------------------------------------------------------------
# The claim


def check_scores(logs: Sequence[Log], claims: Claims, facts: dict[str, Any]) -> Iterator[Finding]:
    """Yield where scores claimed are not those of the logs; put what was recomputed in `facts`."""
    scored = [log for log in logs if final_stage(log) is not None]
    found = _stages_of_all(scored)
    facts["stages"] = found
    facts["seeds"] = [log.seed for log in scored]
    claimed = claims.numbers.get("bpb")
    if claimed is None:
        yield Finding("note", "no-claim", "no score could be found in submission.json")
    elif scored:
        yield from _mean(scored, claims, claimed, found, facts)
    yield from _each_seed(scored, claims)
    if scored and len(scored) < 3:
        why = f"scores of {len(scored)} log were found; three seeds are usual, two needed to test"
        yield Finding("note", "few-seeds", why)
    seeds = [log.seed for log in scored if log.seed is not None]
    for seed in sorted({seed for seed in seeds if seeds.count(seed) > 1}):
        names = ", ".join(log.name for log in scored if log.seed == seed)
        why = "several logs have the same seed: they count once"
        yield Finding("warning", "seed-twice", why, value=f"seed {seed}: {names}")


def _stages_of_all(logs: Sequence[Log]) -> dict[str, dict[str, Any]]:
    """Return mean, sd and values of every stage that all logs have, in the order of the first."""
    if not logs:
        return {}
    last = [{stage.name: stage.bpb.value for stage in log.stages} for log in logs]
    common = [name for name in last[0] if all(name in values for values in last)]
    found = {}
    for name in common:
        values = [one[name] for one in last]
        sd = statistics.stdev(values) if len(values) > 1 else None
        found[name] = {"mean": statistics.fmean(values), "sd": sd, "values": values}
    return found


def _mean(
    logs: Sequence[Log],
    claims: Claims,
    claimed: Number,
    stages: dict[str, dict[str, Any]],
    facts: dict[str, Any],
) -> Iterator[Finding]:
    allowed = max(_ROUNDING, _unit(claimed.text))
    close = [n for n, s in stages.items() if abs(s["mean"] - claimed.value) <= allowed]
    if close:
        facts["claimed_stage"] = close[-1]
        yield from _spread(claims, stages[close[-1]])
        return
    single = [
        (log, stage)
        for log in logs
        for stage in log.stages
        if abs(stage.bpb.value - claimed.value) <= allowed
    ]
    if single and len(logs) > 1:
        log, stage = single[0]
        why = "the score claimed is that of one seed, not the mean of all"
        value = f"{claimed.value} is {stage.name} of {log.name}:{stage.bpb.line}"
        yield of("warning", "one-seed-claimed", why, claimed, value)
        return
    means = ", ".join(f"{name} {stage['mean']:.5f}" for name, stage in list(stages.items())[-3:])
    # Whatever stages are meant, no mean of them is below that of the best of every log.
    best = statistics.fmean(min(stage.bpb.value for stage in log.stages) for log in logs)
    complete = len(claims.seeds) <= len(logs) and len(logs) >= 2
    if complete and claimed.value < best - allowed:
        why = "the score claimed is better than the mean of the best of every log"
        value = f"{claimed.value} claimed; best {best:.5f}; {means}"
        yield of("invalid", "claim", why, claimed, value)
    elif not single:
        why = "the score claimed could not be found in the logs that there are"
        yield of("warning", "claim-unproven", why, claimed, f"{claimed.value} claimed; {means}")


def _unit(text: str) -> float:
    """Return half a unit of the last decimal of a number as it was written."""
    digits = re.search(r"\d\.(\d+)\s*$", text)
    return 0.51 * 10.0 ** -len(digits[1]) if digits else 0.0


def _spread(claims: Claims, stage: dict[str, Any]) -> Iterator[Finding]:
    claimed, values = claims.numbers.get("sd"), stage["values"]
    if claimed is None or len(values) < 2:
        return
    own = (statistics.stdev(values), statistics.pstdev(values))
    allowed = max(1.1e-5, _unit(claimed.text), 0.02 * own[0])
    if not any(abs(claimed.value - sd) <= allowed for sd in own):
        why = "the standard deviation claimed is not that of the seeds"
        value = f"{claimed.value} claimed, {own[0]:.6f} (n - 1) or {own[1]:.6f} (n) recomputed"
        yield of("warning", "sd", why, claimed, value)


def _each_seed(logs: Sequence[Log], claims: Claims) -> Iterator[Finding]:
    by_seed: dict[int, list[Log]] = {}
    for log in logs:
        if log.seed is not None:
            by_seed.setdefault(log.seed, []).append(log)
    for seed in sorted(claims.seeds - by_seed.keys()):
        why = "a seed is claimed for which no log could be found"
        yield Finding("warning", "no-log-of-seed", why, value=f"seed {seed}")
    for seed, claimed in claims.by_seed.items():
        found = [stage.bpb for log in by_seed.get(seed, ()) for stage in log.stages]
        allowed = max(_ROUNDING, _unit(claimed.text))
        if not found or any(abs(bpb.value - claimed.value) <= allowed for bpb in found):
            continue
        best = min(found, key=lambda bpb: bpb.value)
        value = f"seed {seed}: {claimed.value}; best {best.value} in {best.file}:{best.line}"
        if claimed.value < best.value:
            why = "the score claimed for a seed is better than any in its log"
            yield of("invalid", "seed-score", why, claimed, value)
        else:
            why = "the score claimed for a seed could not be found in its log"
            yield of("warning", "seed-score", why, claimed, value)


# ---------------------------------------------------------------------------------------------
# README


def check_readme(
    text: str, file: str, logs: Sequence[Log], claims: Claims, sources: Sequence[str]
) -> Iterator[Finding]:
    """Yield where the README contradicts claim, logs or script."""
    claimed, written = claims.numbers.get("bpb"), bpb_like(text)
    if claimed is not None and written:
        near = [w for w, _ in written if abs(float(w) - claimed.value) <= max(_unit(w), _ROUNDING)]
        if not near:
            why = "the score of submission.json stands nowhere in the README"
            value = f"{claimed.value}; the README has {', '.join(w for w, _ in written[:5])}"
            yield Finding("warning", "readme-score", why, file, written[0][1], value)
    yield from _epochs(text, file, logs)
    if sources:
        read = "\n".join(sources)[:_MOST_READ]
        # A script that goes through all variables reads this one too.
        whole = re.search(r"in\s+(?:os\.)?environ\b(?!\.get|\[)|environ\.items\(\)", read)
        for name, line in itertools.islice(variables(text).items(), _MOST_NAMES):
            if not whole and name not in read:
                why = "a variable is set for the script, which never reads it"
                yield Finding("warning", "unread-variable", why, file, line, name)


def _epochs(text: str, file: str, logs: Sequence[Log]) -> Iterator[Finding]:
    """Yield epochs of test-time training that the README states otherwise than the logs."""
    used = {str(log.settings["ttt_epochs"]) for log in logs if "ttt_epochs" in log.settings}
    if not used:
        return
    stated: list[tuple[str, int]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if re.search(r"\bttt\b|test-time", line[:4_096], re.IGNORECASE):
            stated += [(n, number) for n in re.findall(r"\b(\d{1,2})[ -]epochs?\b", line[:4_096])]
    if stated and not any(n in used for n, _ in stated):
        why = "the README states other epochs of test-time training than the logs"
        value = f"{stated[0][0]} in the README, {', '.join(sorted(used))} in the logs"
        yield Finding("warning", "readme-epochs", why, file, stated[0][1], value)


def check_known_settings(logs: Sequence[Log], sources: Sequence[str]) -> Iterator[Finding]:
    """Yield settings of a log that the script does not have: another script wrote the log."""
    read = "\n".join(sources)[:_MOST_READ].lower()
    looked: dict[str, bool] = {}
    for log in logs:
        names = [n for n in log.settings if not _OWN.search(n)]
        if len(looked) + len(names) > _MOST_NAMES:
            return
        looked |= {name: name in read for name in names if name not in looked}
        unknown = [name for name in names if not looked[name]]
        # If most are unknown, what we read is not the script, and nothing follows.
        if unknown and 4 * len(unknown) <= len(names):
            line = log.setting_lines[unknown[0]]
            why = "the log lists settings that the script shipped does not have"
            yield Finding("warning", "foreign-log", why, log.name, line, ", ".join(unknown[:6]))


def check_gates(logs: Sequence[Log]) -> Iterator[Finding]:
    """Yield hints that depend on the token they are for, by their counts in the logs."""
    for log in logs:
        for name in ("within gate", "word gate"):
            number = log.numbers.get(name)
            if number is not None and number.value > 0:
                why = (
                    "an expert that asks whether the token to predict begins a word was at work: "
                    "its probabilities depend on that token (C2)"
                )
                yield of("invalid", "target-gate", why, number, f"{name}: {number.value:,.0f}")
                break
