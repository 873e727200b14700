"""Compares the logs of a record with one another, with its claim and with its README."""

import itertools
import re
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from fairway.audit.findings import Finding, Severity
from fairway.audit.records.accounts import final_stage, of
from fairway.audit.records.claims import Claims, SeedClaim, bpb_like, seed_rows, variables
from fairway.audit.records.coverage import ENOUGH
from fairway.audit.records.logs import Log, source_hash
from fairway.audit.records.runs import ROUNDING, unit
from fairway.audit.records.said import Number

# The search for this many names in this many characters of source takes seconds at most.
_MOST_NAMES, _MOST_READ = 2_000, 1 << 22
# Settings that may differ between runs of one configuration: paths, and what is printed or saved.
_OWN = re.compile(
    r"(^|_)(seed|id|run_id|rank|local_rank|path|paths|dir|dirs|file|files|logfile|name|host|port|"
    r"is_main_process|date|time|device|world_size|grad_accum_steps|log|every|verbose|debug|wandb|save|"
    r"profile|git|commit|pid|job|node|nproc|threads|workers|cache|tag|note|exp|ckpt|checkpoint|resume|"
    r"artifact|eval_only|train_only|skip_training|max_memory|hostname|uuid|timestamp|experiment|stdout|"
    r"pattern|dataset|version|torch|cuda|python|gpu|driver|pids?|kind)(_|\.|$)"
)
_NUMBER = re.compile(r"[-+]?\d[\d_.]{0,30}(?:[eE][-+]?\d{1,3})?|True|False|true|false|None")
# Settings of an evaluation count only if that evaluation is claimed.
_OF_EVALUATION = re.compile(r"^(ttt|eval|slot|ngram|ppm|etlb|tilt|phased|knn|cache|sliding|val)_")
# Pairs that a log prints outside a list count as settings if their names match this.
_KNOB = re.compile(
    r"(^|[_.])(lr|wd|weight_decay|epochs?|iterations|momentum|beta[12]?|layers|num_layers|dim|heads|"
    r"kv_heads|mult|seq_len|bits|rank|alpha|stride|chunk|chunk_tokens|gain|clip|vocab_size|order|"
    r"buckets|dropout|decay|warmdown\w{0,10}|warmup_steps|batch_tokens|batch_size|softcap|rope_base|"
    r"rope_dims|enabled|max_wallclock_seconds|freeze_blocks)$"
)


def check_settings(logs: Sequence[Log]) -> Iterator[Finding]:
    """Yield differences between logs that should have one configuration."""
    for trained in (True, False):
        yield from _settings([log for log in logs if log.trained is trained and log.settings])
    yield from _same_number(logs, "parameters", "invalid", "parameters", "not one model")
    yield from _same_number(logs, "code bytes", "warning", "code", "not one script")
    yield from _same_number(logs, "train shards", "warning", "shards", "not the same training text")


def _settings(logs: Sequence[Log]) -> Iterator[Finding]:
    for log in logs[1:]:
        first = logs[0]
        partial = first.training_only or log.training_only
        for name in sorted(first.settings.keys() | log.settings.keys()):
            listed = name in first.listed and name in log.listed
            if partial and _OF_EVALUATION.match(name):
                continue
            if not _OWN.search(name) and (
                listed or _KNOB.search(name) or name in first.listed | log.listed
            ):
                yield from _setting(first, log, name, listed)


def _setting(first: Log, log: Log, name: str, listed: bool) -> Iterator[Finding]:
    a, b = (one.settings.get(name) for one in (first, log))
    if a == b or "/" in (a or "") + (b or "") or _same_value(a, b):
        return
    if a and b and _without_seed(a, first) == _without_seed(b, log):
        return
    line = log.setting_lines.get(name)
    value = f"{name}: {a} in {first.shown}, {b} in {log.shown}"
    if a is None or b is None:
        # If the lists of two logs are quite different, a missing setting means nothing.
        whole = (
            min(len(first.listed), len(log.listed)) > max(len(first.listed), len(log.listed)) // 2
        )
        if whole and len(log.listed) > 3:
            why = "a setting is listed in one log and not in another: not the same script"
            yield Finding("warning", "other-settings", why, log.name, line, value)
    else:
        why = "the seeds have different configurations: they do not repeat one run"
        of_evaluation = _OF_EVALUATION.match(name)
        used = not of_evaluation or (log.claimed and of_evaluation[1] in log.claimed.name.lower())
        # Text may be the name of a run; numbers and switches are real settings.
        plain = all(_NUMBER.fullmatch(value) for value in (a, b))
        grave: Severity = "invalid" if listed and used and plain else "warning"
        yield Finding(grave, "mixed-config", why, log.name, line, value)


def _without_seed(value: str, log: Log) -> str:
    """Return a setting without the log's own seed, which names of runs contain."""
    seed = str(log.seed)
    return "#" if value == seed else re.sub(rf"(?<![0-9.]){seed}(?![0-9.])", "#", value, count=9)


def _same_value(a: str | None, b: str | None) -> bool:
    """Return whether two settings are the same number in different notation."""
    try:
        return float(a or "nan") == float(b or "nan")
    except ValueError:
        return False


def _same_number(
    logs: Sequence[Log], meaning: str, severity: Severity, code: str, why: str
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


def check_scores(
    logs: Sequence[Log], claims: Claims, facts: dict[str, Any], readme: str = ""
) -> Iterator[Finding]:
    """Yield claimed scores that differ from the logs; put the recomputed values in `facts`."""
    scored = _scored(logs)
    found = _stages_of_all(scored)
    facts["stages"] = found
    facts["seeds"] = [log.seed for log in scored]
    claimed = claims.numbers.get("bpb")
    if claimed is None:
        # Other findings ask about a file that is missing or unread, or about its value.
        asked = not claims.file or claims.unread or claims.by_seed
        why = "no score could be found in submission.json"
        yield Finding("note" if asked else "warning", "no-claim", why)
    elif scored:
        yield from _mean(scored, claims, claimed, found, facts)
    yield from _each_seed(scored, claims, readme)
    if scored and len(scored) < 3:
        why = f"logs with a score: {len(scored)}; three seeds are usual, and a test needs two"
        yield Finding("note", "few-seeds", why)
    seeds = [log.seed for log in scored if log.seed is not None]
    for seed in sorted({seed for seed in seeds if seeds.count(seed) > 1}):
        names = ", ".join(log.shown for log in scored if log.seed == seed)
        why = "several logs have the same seed: they count once"
        yield Finding("warning", "seed-twice", why, value=f"seed {seed}: {names}")


def _scored(logs: Sequence[Log]) -> list[Log]:
    """Return the logs with a score. If a seed has a claimed score, its other logs are left out."""
    scored = [log for log in logs if final_stage(log) is not None]
    claimed = {log.seed for log in scored if log.claimed is not None}
    return [log for log in scored if log.claimed is not None or log.seed not in claimed]


def _stages_of_all(logs: Sequence[Log]) -> dict[str, dict[str, Any]]:
    """Return mean, sd and values of every stage that all logs have, in the order of the first."""
    if not logs:
        return {}
    last = [log.scores for log in logs]
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
    allowed = max(ROUNDING, unit(claimed.text))
    close = [n for n, s in stages.items() if abs(s["mean"] - claimed.value) <= allowed]
    if close:
        facts["claimed_stage"] = close[-1]
        yield from _spread(claims, stages[close[-1]]["values"])
        return
    own = [log.claimed.bpb for log in logs if log.claimed is not None]
    if (
        len(own) == len(logs)
        and abs(statistics.fmean(n.value for n in own) - claimed.value) <= allowed
    ):
        yield from _spread(claims, [n.value for n in own])
        return
    single = next(
        (s.bpb for log in logs for s in log.stages if abs(s.bpb.value - claimed.value) <= allowed),
        None,
    )
    if single is not None and len(logs) > 1:
        why = "the score claimed is that of one seed, not the mean of all"
        value = f"{claimed.value} is in {single.file}:{single.line}"
        yield of("warning", "one-seed-claimed", why, claimed, value)
        return
    means = ", ".join(f"{name} {stage['mean']:.5f}" for name, stage in list(stages.items())[-3:])
    # No mean of stages can be below the mean of the best stage of every log.
    best = statistics.fmean(min(stage.bpb.value for stage in log.stages) for log in logs)
    complete = claims.seeds <= {log.seed for log in logs} and len(logs) >= 2
    if complete and claimed.value < best - allowed:
        why = "the score claimed is better than the mean of the best of every log"
        value = f"{claimed.value} claimed; best {best:.5f}; {means}"
        yield of("invalid", "claim", why, claimed, value)
    elif single is None:
        why = "the score claimed could not be found in the logs that there are"
        yield of("warning", "claim-unproven", why, claimed, f"{claimed.value} claimed; {means}")


def _spread(claims: Claims, values: list[float]) -> Iterator[Finding]:
    claimed = claims.numbers.get("sd")
    if claimed is None or len(values) < 2:
        return
    own = (statistics.stdev(values), statistics.pstdev(values))
    allowed = max(1.1e-5, unit(claimed.text), 0.02 * own[0])
    if not any(abs(claimed.value - sd) <= allowed for sd in own):
        why = "the standard deviation claimed is not that of the seeds"
        value = f"{claimed.value} claimed, {own[0]:.6f} (n - 1) or {own[1]:.6f} (n) recomputed"
        yield of("warning", "sd", why, claimed, value)


def _each_seed(logs: Sequence[Log], claims: Claims, readme: str) -> Iterator[Finding]:
    by_seed: dict[int, list[Log]] = {}
    for log in logs:
        if log.seed is not None:
            by_seed.setdefault(log.seed, []).append(log)
    for seed in sorted(claims.seeds - by_seed.keys()):
        why = "no log could be found for a claimed seed"
        yield Finding("warning", "no-log-of-seed", why, value=f"seed {seed}")
    rows = seed_rows(readme, set(by_seed))
    for seed, claimed in claims.by_seed.items():
        found = [stage.bpb for log in by_seed.get(seed, ()) for stage in log.stages]
        # Some records cut off decimals instead of rounding.
        allowed = max(ROUNDING, 2 * unit(claimed.text))
        if not found or any(abs(bpb.value - claimed.value) <= allowed for bpb in found):
            continue
        best = min(found, key=lambda bpb: bpb.value)
        value = f"seed {seed}: {claimed.value}; best {best.value} in {best.file}:{best.line}"
        # If score lines of the log could not be read, it proves nothing.
        unread = any((log.coverage.share("scores") or 0.0) < ENOUGH for log in by_seed[seed])
        # If the README has both scores, the log of one evaluation is missing.
        row = [score for score, _ in rows.get(seed, ())]
        told = all(any(abs(s - v.value) <= ROUNDING for s in row) for v in (claimed, best))
        few = all(len(log.evaluations) < 2 for log in by_seed[seed])
        if claimed.value < best.value and not unread and not told and not few:
            why = "the score claimed for a seed is better than any in its log"
            yield of("invalid", "seed-score", why, claimed, value)
        else:
            why = "the score claimed for a seed could not be found in its log"
            yield of("warning", "seed-score", why, claimed, value)


def check_seed_claims(logs: Sequence[Log], claims: Claims) -> Iterator[Finding]:
    """Yield steps, bytes and seconds claimed for a seed that its log contradicts."""
    told: dict[str, list[tuple[Number, str]]] = {}
    for seed, said in sorted(claims.of_seed.items()):
        for log in (log for log in logs if log.seed == seed and log.trained):
            for what, number, value in _of_seed(log, said):
                told.setdefault(what, []).append((number, f"{log.shown}: {value}"))
    for what, places in told.items():
        why = f"{_SEED_CLAIMS[what]} claimed for {len(places)} seeds differ from their logs"
        yield of("warning", f"seed-{what}", why, places[0][0], places[0][1])


_SEED_CLAIMS = {"steps": "steps", "bytes": "bytes", "time": "seconds of training"}


def _of_seed(log: Log, said: SeedClaim) -> Iterator[tuple[str, Number, str]]:
    """Yield (quantity, claim, what the log has) for every claim of a seed that differs."""
    steps, numbers = said.numbers.get("steps"), said.numbers
    size = numbers.get("total bytes") or numbers.get("bytes")
    seconds = said.numbers.get("train seconds")
    if steps is not None and log.steps and abs(steps.value - log.steps) > 1:
        yield "steps", steps, f"{steps.value:,.0f} claimed, {log.steps:,} steps in the log"
    totals = [number.value for number in log.totals]
    totals += [m + c for m in [log.get("model bytes")] for c in [log.get("code bytes")] if m and c]
    if size and totals and all(size.value + size.off < total * 0.999 for total in totals):
        yield "bytes", size, f"{size.value:,.0f} claimed, {max(totals):,.0f} bytes in the log"
    trained = log.train_s
    if seconds is not None and trained is not None and trained.value - seconds.value > 1.5:
        yield ("time", seconds, f"{seconds.value:.1f} s claimed, {trained.value:.1f} s in the log")


def check_source(logs: Sequence[Log], sources: Sequence[str]) -> Iterator[Finding]:
    """Yield logs that begin with another script than the other logs, or than the shipped one."""
    carrying = [log for log in logs if log.source is not None]
    if len({log.source for log in carrying}) > 1:
        other = next(log for log in carrying if log.source != carrying[0].source)
        why = "the scripts at the beginning of two logs differ: the seeds used different code"
        value = f"{carrying[0].shown} and {other.shown}"
        yield Finding("warning", "mixed-source", why, other.name, other.first_line, value)
    shipped = {source_hash(text) for text in sources}
    foreign = [log for log in carrying if log.source not in shipped]
    if foreign and sources:
        why = "the script at the beginning of a log is not the shipped one"
        value = f"{len(foreign)} of {len(carrying)} logs"
        yield Finding("note", "other-source", why, foreign[0].name, foreign[0].first_line, value)


# ---------------------------------------------------------------------------------------------
# README


def check_readme(
    text: str, file: str, logs: Sequence[Log], claims: Claims, sources: Sequence[str]
) -> Iterator[Finding]:
    """Yield contradictions of the README with claim, logs or script."""
    claimed, written = claims.numbers.get("bpb"), bpb_like(text)
    if claimed is not None and written:
        near = [w for w, _ in written if abs(float(w) - claimed.value) <= max(unit(w), ROUNDING)]
        if not near:
            why = "the README does not contain the score of submission.json"
            value = f"{claimed.value}; the README has {', '.join(w for w, _ in written[:5])}"
            yield Finding("warning", "readme-score", why, file, written[0][1], value)
    yield from _rows(text, file, claims)
    yield from _epochs(text, file, logs)
    yield from _admitted(text, file)
    if sources:
        read = "\n".join(sources)[:_MOST_READ]
        # A script that loops over all variables also reads this one.
        whole = re.search(r"in\s+(?:os\.)?environ\b(?!\.get|\[)|environ\.items\(\)", read)
        for name, line in itertools.islice(variables(text).items(), _MOST_NAMES):
            if not whole and name not in read:
                why = "a variable is set for the script, which never reads it"
                yield Finding("warning", "unread-variable", why, file, line, name)


def _rows(text: str, file: str, claims: Claims) -> Iterator[Finding]:
    """Yield seeds whose score in the README's tables differs from submission.json."""
    for seed, scores in seed_rows(text, set(claims.by_seed)).items():
        claimed = claims.by_seed[seed]
        # A README may round to three decimals.
        allowed = max(6e-4, unit(claimed.text))
        if scores and all(abs(score - claimed.value) > allowed for score, _ in scores):
            why = "the score of a seed in submission.json is in none of its rows in the README"
            value = f"seed {seed}: {claimed.value}; the row has {scores[-1][0]}"
            yield Finding("warning", "readme-score", why, file, scores[-1][1], value)


def _epochs(text: str, file: str, logs: Sequence[Log]) -> Iterator[Finding]:
    """Yield counts of test-time training epochs in the README that differ from the logs."""
    used = {str(log.settings["ttt_epochs"]) for log in logs if "ttt_epochs" in log.settings}
    if not used:
        return
    stated: list[tuple[str, int]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if re.search(r"\bttt\b|test-time", line[:4_096], re.IGNORECASE):
            stated += [(n, number) for n in re.findall(r"\b(\d{1,2})[ -]epochs?\b", line[:4_096])]
    if stated and not any(n in used for n, _ in stated):
        why = "the README states another number of test-time training epochs than the logs"
        value = f"{stated[0][0]} in the README, {', '.join(sorted(used))} in the logs"
        yield Finding("warning", "readme-epochs", why, file, stated[0][1], value)


_ADMITTED = {
    "told-training": re.compile(
        r"\btrain(?:ed|ing|s)? (?:directly )?on (?:the )?(?:full |whole |entire |exact )?"
        r"(?:val|validation)\b(?! loss| bpb| split of)",
        re.IGNORECASE,
    ),
    "told-second-pass": re.compile(
        r"\b(?:two|2|second|dual)[- ]pass\b.{0,60}\b(?:re-?scor|n-?gram|eval|cache)|"
        r"\bre-?scor(?:e|es|ed|ing)\b.{0,60}\b(?:full|whole|entire|complete|warm)\b.{0,20}\bcache",
        re.IGNORECASE,
    ),
}
# Such lines deny something, quote a rule, or are about tokens scored before.
_DENIED = re.compile(
    r"\b(?:no|not|never|without|cannot|instead|avoid\w*|zero|removed?|disabled|only allowed|cheat|"
    r"illegal|invalid|already|after|scored|graded|evaluated|single-pass|test-time)\b|n't\b|\[ \]",
    re.IGNORECASE,
)


def _admitted(text: str, file: str) -> Iterator[Finding]:
    """Yield admissions in the README about the order of scoring and learning, each kind once."""
    for code, pattern in _ADMITTED.items():
        for number, line in enumerate(text.splitlines()[:20_000], start=1):
            shown = line[:4_096]
            if pattern.search(shown) and not _DENIED.search(shown):
                why = "the README says so; logs and script may not show it"
                yield Finding("warning", code, why, file, number, shown.strip()[:160])
                break


def check_known_settings(logs: Sequence[Log], sources: Sequence[str]) -> Iterator[Finding]:
    """Yield settings of a log that are not in the script: another script wrote the log."""
    read = "\n".join(sources)[:_MOST_READ].lower()
    looked: dict[str, bool] = {}
    for log in logs:
        names = sorted(n for n in log.settings if not _OWN.search(n) and n in log.listed)
        if len(looked) + len(names) > _MOST_NAMES:
            return
        looked |= {name: name in read for name in names if name not in looked}
        unknown = [name for name in names if not looked[name]]
        # If most are unknown, the files we read are not the script; report nothing.
        if unknown and 4 * len(unknown) <= len(names):
            line = log.setting_lines[unknown[0]]
            why = "the log lists settings that the script shipped does not have"
            yield Finding("warning", "foreign-log", why, log.name, line, ", ".join(unknown[:6]))
