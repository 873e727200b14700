"""Compares a record's bytes, seconds and steps with the limits of the challenge."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from fairway.audit.findings import Finding, Severity
from fairway.audit.records.claims import Claims
from fairway.audit.records.logs import Log
from fairway.audit.records.said import IN_TRAINING, Number, Stage
from fairway.config.settings import LIMIT_BYTES

BUDGET_S = 600.0
# A run notices the end of its budget only after the step that crosses it.
_LAST_STEP_S = 1.0
# Names of bytes that count artifact and code.
_WHOLE = re.compile(r"[a-z_]{0,40}(?:total|submission)")
# Totals of bytes in one claim that differ by more are not the same thing.
_NEAR = 0.9
# Above this multiple of the budget, a run of unknown size probably used fewer processes.
_MUCH = 1.3


@dataclass(frozen=True, slots=True)
class Shipped:
    """Bytes on disk: the script, all Python files, possible models, and the packed script."""

    script_bytes: int | None
    code_bytes: int
    models: tuple[tuple[str, int], ...]
    # The script in packed form, if the folder has it.
    packed_bytes: int | None = None


def of(severity: Severity, code: str, why: str, number: Number, value: str = "") -> Finding:
    """Return a finding about a number, at its place."""
    return Finding(severity, code, why, number.file, number.line or None, value or number.text)


# ---------------------------------------------------------------------------------------------
# Bytes


def total_bytes(log: Log) -> Number | None:
    """Return the bytes that a log counts for its submission: as printed, or model and code."""
    totals = log.packed_totals[-3:]
    if totals:
        # Some logs print the size of every attempt; one that fits is enough.
        return min(reversed(totals), key=lambda number: number.value > LIMIT_BYTES)
    model, code = log.numbers.get("model bytes"), log.numbers.get("code bytes")
    if model is None or code is None:
        return None
    return Number(model.value + code.value, model.file, model.line, model.text)


def check_bytes(logs: Sequence[Log], claims: Claims, shipped: Shipped) -> Iterator[Finding]:
    """Yield findings about the bytes of a record."""
    totals = [found for log in logs if (found := total_bytes(log)) is not None]
    claimed = claims.numbers.get("total bytes")
    for log in logs:
        total = total_bytes(log)
        if total is not None and total.value > LIMIT_BYTES and not _packed_again(log, logs):
            yield _over(total, log, shipped)
    yield from _claimed_over(claims, logs, shipped)
    if not totals:
        yield Finding("note", "no-bytes", "no log says how many bytes the submission has")
    elif claimed is not None:
        models = {log.get("model bytes") for log in logs}
        yield from _against_largest(claimed, totals, models)
    yield from _code_size(logs, claims, shipped)
    yield from _models(logs, shipped)


def _packed_again(log: Log, logs: Sequence[Log]) -> bool:
    """Return whether a log only trains, and another log packs its model and has the score."""
    others = (o for o in logs if o.seed == log.seed and not o.training_only)
    return log.training_only and any(total_bytes(other) is not None for other in others)


def _claimed_over(claims: Claims, logs: Sequence[Log], shipped: Shipped) -> Iterator[Finding]:
    """Yield totals of the claim above the limit, and totals that contradict each other."""
    log = max(logs, key=lambda log: log.get("model bytes") or 0.0, default=None)
    # A size of the artifact may lack the code.
    whole = [number for number in claims.totals if _WHOLE.match(number.text)] or claims.totals
    over = [number for number in whole if number.value > LIMIT_BYTES]
    # One total of several is in doubt, unless it has the challenge's own name.
    if over and (len(over) == len(whole) or over[0] is whole[0]):
        yield _over(max(over, key=lambda number: number.value - number.off), log, shipped)
    if len(claims.totals) > 1:
        yield from _apart(claims.totals, whole)
    runs = [said.numbers.get("total bytes") for said in claims.of_seed.values()]
    each = {number.value: number for number in [*claims.run_totals, *runs] if number is not None}
    for number in each.values():
        if number.value > LIMIT_BYTES:
            yield _over(number, log, shipped)


def _apart(totals: Sequence[Number], whole: Sequence[Number]) -> Iterator[Finding]:
    """Yield a question about totals of one claim that cannot be the same thing."""
    least, most = (pick(totals, key=lambda number: number.value) for pick in (min, max))
    surely = most.value - most.off
    fits = [number for number in whole if number.value <= LIMIT_BYTES]
    if least.value < _NEAR * surely or (fits and surely > LIMIT_BYTES + 0.5):
        why = "the claim states different bytes for the whole submission; one of them is wrong"
        yield of("warning", "bytes-differ", why, most, f"{least.text}; {most.text}")


def _over(total: Number, log: Log | None, shipped: Shipped) -> Finding:
    """Return a finding for a total above the limit; a note if the shipped file is small enough."""
    code = log.get("code bytes") if log is not None else None
    # Everything but the code: the model, and whatever else the total counts.
    model = total.value - code if code is not None else None
    stated = f"{total.text}: " if total.off else ""
    value = f"{stated}{total.value:,.0f} is {total.value - LIMIT_BYTES:,.0f} over"
    scripts = [size for size in (shipped.script_bytes, shipped.packed_bytes) if size is not None]
    script = min(scripts, default=None)
    if model is not None and script is not None and model + script <= LIMIT_BYTES:
        why = (
            f"the log counts more than {LIMIT_BYTES:,} bytes; with the script as shipped it is less"
        )
        return of("note", "over-cap", why, total, f"{value}; {model + script:,.0f} as shipped")
    why = f"artifact and code exceed {LIMIT_BYTES:,} bytes (decimal)"
    if total.value - total.off < LIMIT_BYTES + 0.5:
        why = f"a rounded number: artifact and code may exceed {LIMIT_BYTES:,} bytes (decimal)"
        return of("warning", "over-cap", why, total, value)
    as_shipped = f"; {model + script:,.0f} as shipped" if model and script else ""
    return of("invalid", "over-cap", why, total, value + as_shipped)


def _against_largest(
    claimed: Number, totals: list[Number], models: set[float | None]
) -> Iterator[Finding]:
    largest = max(totals, key=lambda number: number.value)
    # Rounded numbers may be cut off.
    if claimed.value + claimed.off >= largest.value:
        return
    value = f"{claimed.value:,.0f} claimed, {largest.value:,.0f} in {largest.file}:{largest.line}"
    if any(claimed.value == number.value for number in totals):
        why = "the bytes claimed are those of one seed; the largest counts"
        yield of("warning", "bytes-not-largest", why, claimed, value)
    elif claimed.value in models:
        why = "the bytes claimed are those of the model alone, without the code"
        yield of("note", "bytes-claimed", why, claimed, value)
    elif abs(claimed.value - largest.value) > 0.5 + 1e-3 * largest.value:
        why = "the bytes claimed are fewer than the logs count"
        yield of("warning", "bytes-claimed", why, claimed, value)


def _code_size(logs: Sequence[Log], claims: Claims, shipped: Shipped) -> Iterator[Finding]:
    """Yield a finding if the counted code is not the shipped code."""
    counted = [log.numbers["code bytes"] for log in logs if "code bytes" in log.numbers]
    counted += [claims.numbers["code bytes"]] if "code bytes" in claims.numbers else []
    if shipped.script_bytes is None:
        return
    sizes = (shipped.script_bytes, shipped.code_bytes)
    models = [log.get("model bytes") or 0.0 for log in logs]
    together = max(models, default=0.0) + shipped.script_bytes
    for number in {number.value: number for number in counted}.values():
        if any(abs(number.value - size) <= number.off for size in sizes):
            continue
        why = "the code size that was counted is not that of the file shipped"
        value = f"{number.value:,.0f} counted, {shipped.script_bytes:,} shipped"
        over = max(models, default=0.0) > 0 and together > LIMIT_BYTES
        if over:
            why += f"; with the file as shipped it is {together:,.0f} bytes, above the limit"
        yield of("warning" if over else "note", "code-size", why, number, value)


def _models(logs: Sequence[Log], shipped: Shipped) -> Iterator[Finding]:
    sizes = {log.get("model bytes") for log in logs} - {None}
    for name, size in shipped.models:
        if size > LIMIT_BYTES:
            why = f"the artifact on disk alone exceeds {LIMIT_BYTES:,} bytes"
            yield Finding("invalid", "over-cap", why, name, value=f"{size:,}")
        elif sizes and size not in sizes:
            why = "the artifact on disk has another size than any log says"
            yield Finding("warning", "artifact-size", why, name, value=f"{size:,}")


# ---------------------------------------------------------------------------------------------
# Seconds


def check_times(logs: Sequence[Log], claims: Claims) -> Iterator[Finding]:
    """Yield findings for too long times; runs outside the record track get notes."""
    for log in logs:
        known = log.processes or claims.accelerators
        world = known or 8
        aside = "not a record's track" if claims.unlimited else ""
        aside = aside or (f"on {world} processes, not 8" if world != 8 else "")
        for finding in _times(log):
            yield _on(finding, aside, known is not None)
        if not claims.unlimited and world < 8:
            yield from _on_eight(log, world)
    stated = claims.numbers.get("eval seconds")
    if stated is not None and stated.value > BUDGET_S and not claims.unlimited:
        grave: Severity = "warning" if (claims.accelerators or 8) == 8 else "note"
        why = f"the claim itself states an evaluation of more than {BUDGET_S:.0f} s"
        yield of(grave, "eval-time", why, stated)


def _on(finding: Finding, aside: str, known: bool) -> Finding:
    """Return a finding about time, less severe if the machine is unknown or a different one."""
    if aside and finding.severity != "note":
        return replace(finding, severity="note", why=f"{finding.why} ({aside})")
    seconds = float(finding.value.split()[0]) if finding.value.endswith(" s") else 0.0
    if finding.severity == "invalid" and not known and seconds > _MUCH * BUDGET_S:
        why = f"{finding.why} (the number of processes is not stated)"
        return replace(finding, severity="warning", why=why)
    return finding


def _on_eight(log: Log, world: int) -> Iterator[Finding]:
    """Yield a finding if the evaluation would take too long on eight processes too."""
    final = final_stage(log)
    taken_s = final.seconds if final is not None else None
    if final is not None and taken_s is not None and taken_s * world / 8 > BUDGET_S:
        why = f"evaluation on {world} processes took so long that eight need more than the budget"
        value = f"{taken_s:,.0f} s; an eighth of all is {taken_s * world / 8:,.0f} s"
        yield of("warning", "eval-time", why, final.bpb, value)


def _times(log: Log) -> Iterator[Finding]:
    trained = log.train_s
    if trained is not None and trained.value > BUDGET_S:
        why = f"training took longer than {BUDGET_S:.0f} s"
        yield of(_late(trained.value, log), "train-time", why, trained, f"{trained.value:.2f} s")
    hessians = log.numbers.get("hessian seconds")
    if trained is not None and hessians is not None and trained.value <= BUDGET_S:
        both_s = trained.value + hessians.value
        if both_s > BUDGET_S:
            why = (
                f"training and the reading of training text for calibration end after "
                f"{BUDGET_S:.0f} s (ruling in #677: calibration is training)"
            )
            value = f"{trained.value:.1f} + {hessians.value:.1f} = {both_s:.1f} s"
            grave: Severity = "warning" if both_s > BUDGET_S + _LAST_STEP_S else "note"
            yield of(grave, "calibration-time", why, hessians, value)
    if not log.training_only:
        yield from _evaluation(log)
    outside = log.settings.get("ngram_hint_precompute_outside")
    if outside is not None and outside.lower() in ("true", "1"):
        line = log.setting_lines["ngram_hint_precompute_outside"]
        why = "hints are computed before the evaluation's clock starts, and are part of it"
        yield Finding("warning", "outside-clock", why, log.name, line, outside)
    seconds = log.numbers.get("outside seconds")
    if seconds is not None and seconds.value > 1 and not log.training_only:
        inside = log.get("eval seconds") or 0.0
        why = "work of the evaluation is done before its clock starts, and is part of it"
        value = f"{seconds.value:.1f} s outside, {inside:.1f} s inside: {seconds.text}"
        yield of("warning", "outside-clock", why, seconds, value)


def _late(seconds: float, log: Log) -> Severity:
    """Return the severity of an end after the budget: the last step may run beyond it.

    Runs read the time after a step, and one step may take twice the mean.
    """
    last = log.last_step
    step_s = last.ms_per_step / 1e3 if last is not None and last.ms_per_step else 0.0
    if seconds <= BUDGET_S + min(max(2 * step_s, 0.1), _LAST_STEP_S):
        return "note"
    return "invalid" if seconds > BUDGET_S + _LAST_STEP_S else "warning"


def _evaluation(log: Log) -> Iterator[Finding]:
    """Yield a finding if the evaluation of the claimed score, or the printed total, is too long."""
    scored = [stage for stage in log.evaluations if stage.seconds is not None]
    final = final_stage(log)
    total = log.numbers.get("eval seconds")
    if total is None and final is not None and final.seconds is not None:
        place = final.bpb
        total = Number(final.seconds, place.file, place.line, place.text)
    if total is not None and total.value > BUDGET_S:
        why = f"evaluation took longer than {BUDGET_S:.0f} s"
        yield of("invalid", "eval-time", why, total, f"{total.value:.1f} s")
        return
    if not scored:
        return
    # The line of a mixture may have no time; then the evaluation around it has one.
    total = total or scored[-1].bpb
    all_s = sum({stage.name: stage.seconds or 0.0 for stage in scored}.values())
    packed_s = sum(
        {s.name: s.seconds or 0.0 for s in scored if not _BEFORE.search(s.name)}.values()
    )
    if all_s > BUDGET_S:
        why = (
            f"all evaluations of the log together took longer than {BUDGET_S:.0f} s; the one that "
            "counts did not: ask which of them the score needs"
        )
        grave: Severity = "warning" if packed_s > BUDGET_S else "note"
        yield of(grave, "eval-sum", why, total, f"{all_s:.1f} s")


# Evaluations of the model before it is packed.
_BEFORE = re.compile(r"diagnostic|pre-?_?quant|post_?ema|post_?swa|raw", re.IGNORECASE)


def final_stage(log: Log) -> Stage | None:
    """Return the evaluation that is claimed, else the last one after training."""
    if log.claimed is not None:
        return log.claimed
    return next((s for s in reversed(log.stages) if s.name != IN_TRAINING), None)


def check_steps(logs: Sequence[Log], claims: Claims) -> Iterator[Finding]:
    """Yield step lines that contradict themselves, and claimed steps that no log has."""
    for log in logs:
        last = log.last_step
        if last is None or last.seconds is None or last.ms_per_step is None or not last.step:
            continue
        product_s = last.step * last.ms_per_step / 1e3
        if abs(product_s - last.seconds) > 0.02 * last.seconds + 0.1:
            why = "steps times milliseconds per step are not the seconds of training"
            value = (
                f"{last.step} x {last.ms_per_step} ms = {product_s:.1f} s, not {last.seconds:.1f}"
            )
            yield Finding("warning", "step-time", why, log.name, last.line, value)
    claimed, steps = claims.numbers.get("steps"), [log.steps for log in logs if log.steps]
    if claimed is not None and steps and not min(steps) <= claimed.value <= max(steps):
        why = "the steps claimed are those of no log"
        value = f"{claimed.value:.0f} claimed, {min(steps)} to {max(steps)} in the logs"
        yield of("warning", "steps", why, claimed, value)
