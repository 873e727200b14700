"""A record's bytes, seconds and denominators against what the challenge allows and knows."""

import math
import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from fairway.audit.findings import Finding, Severity
from fairway.audit.records.claims import Claims
from fairway.audit.records.logs import Log
from fairway.audit.records.said import IN_TRAINING, Number, Stage
from fairway.units import NATS_PER_BIT

LIMIT_BYTES = 16_000_000
BUDGET_S = 600.0
# A run notices the end of its budget after the step that crosses it.
_LAST_STEP_S = 1.0

# The validation text of the challenge, 50,000 documents: its bytes by the tokens that count them,
# and what is known to be wrong (pull requests #1804, #1916, #2138, #2039, #1795).
TEXT_BYTES = 151_080_891
_KNOWN_RATIOS: tuple[tuple[float, str], ...] = (
    (1.0, ""),
    (152_570_124 / TEXT_BYTES, ""),
    (164_594_398 / 151_074_309, "the sentinels of CaseOps pieces were counted as bytes (+8.95 %)"),
    (176_332_748 / TEXT_BYTES, "leading spaces were counted twice (+16.71 %)"),
)
# Tokens scored of that text, by tokenizer and by what is done with its end, and their bytes.
_TEXT_BYTES_OF = {
    40_540_160: 151_078_222,
    40_540_802: TEXT_BYTES,
    45_508_608: 152_570_124,
    47_851_520: 151_074_309,
    47_853_343: 151_080_644,
}
# Nats per token over bits per byte, by what the names of the data sets hold.
_RATIOS = {
    r"caseops": 151_074_309 / 47_851_520 * NATS_PER_BIT,
    r"sp8192|fineweb_8192_bpe": 151_078_222 / 40_540_160 * NATS_PER_BIT,
    r"sp4096|fineweb_4096_bpe": 152_570_124 / 45_508_608 * NATS_PER_BIT,
    r"sp1024|fineweb_1024_bpe": 1.68846,
}
_SUBSETS = {
    8_000_000: "the first 8,000,000 tokens",
    9_662_464: "10,000 of 50,000 documents, the default of a CaseOps script (issue #2127)",
}


@dataclass(frozen=True, slots=True)
class Shipped:
    """Bytes on disk: the script, all Python files, what may be a model; the script packed."""

    script_bytes: int | None
    code_bytes: int
    models: tuple[tuple[str, int], ...]
    # The script once more, packed, where the folder has it.
    packed_bytes: int | None = None


def of(severity: Severity, code: str, why: str, number: Number, value: str = "") -> Finding:
    """Return a finding about a number where it stands."""
    return Finding(
        severity,
        code,
        why,
        number.file,
        number.line or None,
        value or number.text,
    )


# ---------------------------------------------------------------------------------------------
# Bytes


def total_bytes(log: Log) -> Number | None:
    """Return the bytes that a log counts for its submission: as printed, or model and code."""
    totals = log.packed_totals[-3:]
    if totals:
        # Sizes are printed of every attempt: one that fits is enough.
        return min(reversed(totals), key=lambda number: number.value > LIMIT_BYTES)
    model, code = log.numbers.get("model bytes"), log.numbers.get("code bytes")
    if model is None or code is None:
        return None
    return Number(model.value + code.value, model.file, model.line, model.text)


def check_bytes(logs: Sequence[Log], claims: Claims, shipped: Shipped) -> Iterator[Finding]:
    """Yield what is wrong with the bytes of a record."""
    totals = [found for log in logs if (found := total_bytes(log)) is not None]
    claimed = claims.numbers.get("total bytes")
    for log in logs:
        total = total_bytes(log)
        if total is not None and total.value > LIMIT_BYTES:
            yield _over(total, log, shipped)
    if claimed is not None and claimed.value > LIMIT_BYTES:
        largest = max(logs, key=lambda log: log.get("model bytes") or 0.0, default=None)
        yield _over(claimed, largest, shipped)
    if not totals:
        yield Finding("note", "no-bytes", "no log says how many bytes the submission has")
    elif claimed is not None:
        yield from _against_largest(claimed, totals)
    yield from _code_size(logs, claims, shipped)
    yield from _models(logs, shipped)


def _over(total: Number, log: Log | None, shipped: Shipped) -> Finding:
    """Return a total above the limit: a note where the file as shipped is small enough."""
    code = log.get("code bytes") if log is not None else None
    # All that is no code: the model, and what else the total counts.
    model = total.value - code if code is not None else None
    value = f"{total.value:,.0f} is {total.value - LIMIT_BYTES:,.0f} over"
    scripts = [size for size in (shipped.script_bytes, shipped.packed_bytes) if size is not None]
    script = min(scripts, default=None)
    if model is not None and script is not None and model + script <= LIMIT_BYTES:
        why = (
            f"the log counts more than {LIMIT_BYTES:,} bytes; with the script as shipped it is less"
        )
        return of("note", "over-cap", why, total, f"{value}; {model + script:,.0f} as shipped")
    why = f"artifact and code exceed {LIMIT_BYTES:,} bytes (decimal)"
    as_shipped = f"; {model + script:,.0f} as shipped" if model and script else ""
    return of("invalid", "over-cap", why, total, value + as_shipped)


def _against_largest(claimed: Number, totals: list[Number]) -> Iterator[Finding]:
    largest = max(totals, key=lambda number: number.value)
    if claimed.value >= largest.value:
        return
    value = f"{claimed.value:,.0f} claimed, {largest.value:,.0f} in {largest.file}:{largest.line}"
    if any(claimed.value == number.value for number in totals):
        why = "the bytes claimed are those of one seed; the largest counts"
        yield of("warning", "bytes-not-largest", why, claimed, value)
    elif abs(claimed.value - largest.value) > 0.5 + 1e-3 * largest.value:
        why = "the bytes claimed are fewer than the logs count"
        yield of("warning", "bytes-claimed", why, claimed, value)


def _code_size(logs: Sequence[Log], claims: Claims, shipped: Shipped) -> Iterator[Finding]:
    """Yield where the code that was counted is not the code that is shipped."""
    counted = [log.numbers["code bytes"] for log in logs if "code bytes" in log.numbers]
    counted += [claims.numbers["code bytes"]] if "code bytes" in claims.numbers else []
    if shipped.script_bytes is None:
        return
    models = [log.get("model bytes") or 0.0 for log in logs]
    together = max(models, default=0.0) + shipped.script_bytes
    for number in {number.value: number for number in counted}.values():
        if number.value in (shipped.script_bytes, shipped.code_bytes):
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
    """Yield what took longer than a record may; what competes for no budget gets notes."""
    for log in logs:
        world = log.processes or claims.accelerators or 8
        aside = "not a record's track" if claims.unlimited else ""
        aside = aside or (f"on {world} processes, not 8" if world != 8 else "")
        for finding in _times(log):
            if aside and finding.severity != "note":
                finding = replace(finding, severity="note", why=f"{finding.why} ({aside})")
            yield finding
        if not claims.unlimited and world < 8:
            yield from _on_eight(log, world)
    stated = claims.numbers.get("eval seconds")
    if stated is not None and stated.value > BUDGET_S and not claims.unlimited:
        grave: Severity = "warning" if (claims.accelerators or 8) == 8 else "note"
        why = f"the claim itself states an evaluation of more than {BUDGET_S:.0f} s"
        yield of(grave, "eval-time", why, stated)


def _on_eight(log: Log, world: int) -> Iterator[Finding]:
    """Yield an evaluation that eight processes would not end in time either."""
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


def _late(seconds: float, log: Log) -> Severity:
    """Return how grave an end after the budget is: the step that crosses it may end.

    It is read after that step, which may take twice the mean of all.
    """
    last = log.last_step
    step_s = last.ms_per_step / 1e3 if last is not None and last.ms_per_step else 0.0
    if seconds <= BUDGET_S + min(max(2 * step_s, 0.1), _LAST_STEP_S):
        return "note"
    return "invalid" if seconds > BUDGET_S + _LAST_STEP_S else "warning"


def _evaluation(log: Log) -> Iterator[Finding]:
    """Yield the evaluation if it took too long: that of the score claimed, or the total printed."""
    scored = [stage for stage in log.stages if stage.seconds is not None and not stage.running]
    final = final_stage(log)
    total = log.numbers.get("eval seconds")
    if total is None and final is not None and final.seconds is not None:
        place = final.bpb
        total = Number(final.seconds, place.file, place.line, place.text)
    if total is None:
        return
    if total.value > BUDGET_S:
        why = f"evaluation took longer than {BUDGET_S:.0f} s"
        yield of("invalid", "eval-time", why, total, f"{total.value:.1f} s")
        return
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
    """Return the evaluation that is claimed, else the last one that is not during training."""
    if log.claimed is not None:
        return log.claimed
    return next((s for s in reversed(log.stages) if s.name != IN_TRAINING), None)


def check_steps(logs: Sequence[Log], claims: Claims) -> Iterator[Finding]:
    """Yield step lines that contradict themselves, and steps claimed that no log has."""
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


# ---------------------------------------------------------------------------------------------
# Denominators


def check_denominators(logs: Sequence[Log], claims: Claims) -> Iterator[Finding]:
    """Yield scores whose bytes are not those of the validation text."""
    told: set[str] = set()
    undecided = 0
    for log in logs:
        final = final_stage(log)
        if final is None or log.training_only:
            continue
        subset: list[Finding | None] = list(_subset(log, final))
        found = subset or list(_bytes_behind(log, final))
        undecided += not found
        for finding in found:
            if finding is not None and finding.code not in told:
                told.add(finding.code)
                yield finding
    if undecided:
        why = "tokens scored, loss and bits per byte could not all be found: bytes not checked"
        yield Finding("note", "no-denominator", why, value=f"{undecided} of {len(logs)} logs")
    yield from _claimed_ratio(logs, claims)


def _subset(log: Log, final: Stage) -> Iterator[Finding]:
    """Yield that a part of the text stands for the whole, where a line says so."""
    tokens, subset = log.numbers.get("val tokens"), log.numbers.get("subset tokens")
    if tokens is not None and int(tokens.value) in _SUBSETS:
        why = f"not the whole text was scored: {_SUBSETS[int(tokens.value)]}"
        yield of("invalid", "subset", why, tokens)
        return
    of_text = final.text_bytes
    if of_text is None or not 0 < of_text < 0.9 * TEXT_BYTES or (tokens or subset) is None:
        return
    # What one process of several counted is no part that stands for the whole.
    processes = log.processes or 8
    if processes > 1 and math.isclose(of_text * processes, TEXT_BYTES, rel_tol=0.03):
        return
    share = of_text / TEXT_BYTES
    why = f"the score claimed is of {share:.0%} of the bytes of the validation text"
    near = subset is not None and abs(subset.line - final.bpb.line) <= 3
    grave: Severity = "invalid" if near and log.claimed is not None else "warning"
    place = subset if subset is not None and near else final.bpb
    yield of(grave, "subset", why, place, f"{of_text:,} bytes; {place.text}")


def _bytes_behind(log: Log, final: Stage) -> Iterator[Finding | None]:
    """Yield what is wrong with the bytes behind a score, None where they are right."""
    tokens = log.numbers.get("val tokens")
    if final.text_bytes is not None:
        wrong = _known(final.text_bytes / TEXT_BYTES)
        if wrong:
            yield of("invalid", "denominator", wrong, final.bpb, f"{final.text_bytes:,} bytes")
            return
    if final.loss is None or not 0 < final.bpb.value < 100:
        return
    ratio = final.loss / final.bpb.value
    if math.isclose(ratio, NATS_PER_BIT, rel_tol=1e-3):
        # Nats per byte beside bits per byte: they say nothing of tokens.
        return
    ratios = _other_ratios(log, final)
    usual = statistics.median(ratios) if len(ratios) > 1 else ratio
    alike = sum(math.isclose(one, usual, rel_tol=3e-3) for one in ratios)
    if 2 * alike <= len(ratios):
        # Loss and score of the other evaluations are not of one measure, so neither may these be.
        return
    if not math.isclose(ratio, usual, rel_tol=3e-3):
        # The loss of a model beside the score of a mixture; or bytes counted otherwise at the end.
        wrong = _known(ratio / usual)
        if wrong:
            value = f"{final.loss} nats over {final.bpb.value} bpb is {ratio:.4f}, not {usual:.4f}"
            yield of("invalid", "denominator", wrong, final.bpb, value)
        return
    if tokens is not None:
        yield _denominator(final, final.loss, tokens, sure=alike > 0)
        return
    known = _ratio_of_data(log)
    if known is not None:
        yield _against_known(ratio, known, final.bpb)


def _other_ratios(log: Log, final: Stage) -> list[float]:
    """Return nats per token over bits per byte of a log's other evaluations."""
    others = (s for s in log.stages if s.bpb.line != final.bpb.line and 0 < s.bpb.value < 100)
    return [s.loss / s.bpb.value for s in others if s.loss is not None]


def _known(ratio: float) -> str:
    """Return what is wrong with bytes that are so many times the right ones, '' if not known."""
    return next(
        (why for r, why in _KNOWN_RATIOS if why and math.isclose(ratio, r, rel_tol=1.5e-3)), ""
    )


def _ratio_of_data(log: Log) -> float | None:
    """Return nats per token over bits per byte that the data set named in a log must have."""
    words = " ".join(
        value for value in log.settings.values() if "/" in value or "sp" in value
    ).lower()
    for name, ratio in _RATIOS.items():
        if re.search(name, words[:100_000]):
            return ratio
    return None


def _against_known(ratio: float, known: float, place: Number) -> Finding | None:
    if math.isclose(ratio, known, rel_tol=3e-3):
        return None
    value = f"{ratio:.4f}; the bytes of this data set give {known:.4f}"
    wrong = _known(ratio / known)
    why = wrong or "nats per token over bits per byte is not that of the data set named"
    return of("invalid" if wrong else "warning", "denominator", why, place, value)


def _claimed_ratio(logs: Sequence[Log], claims: Claims) -> Iterator[Finding]:
    """Yield a loss and a score in the claim that only wrong bytes bring together."""
    loss, bpb = claims.numbers.get("loss"), claims.numbers.get("bpb")
    known = next((r for log in logs if (r := _ratio_of_data(log)) is not None), None)
    if loss is None or bpb is None or known is None or bpb.value <= 0:
        return
    wrong = _known(loss.value / bpb.value / known)
    if wrong:
        ratio = loss.value / bpb.value
        value = f"{loss.value} nats over {bpb.value} bpb is {ratio:.4f}, not {known:.4f}"
        yield of("invalid", "denominator", wrong, bpb, value)


def text_bytes(log: Log) -> int | None:
    """Return the bytes that a log's last score is of: those known for its tokens, or implied."""
    final, tokens = final_stage(log), log.numbers.get("val tokens")
    if final is None or tokens is None:
        return None
    if int(tokens.value) in _TEXT_BYTES_OF:
        return _TEXT_BYTES_OF[int(tokens.value)]
    if final.loss is None or final.bpb.value <= 0:
        return None
    return round(tokens.value * final.loss / (NATS_PER_BIT * final.bpb.value))


def _denominator(final: Stage, loss: float, tokens: Number, sure: bool) -> Finding | None:
    implied = tokens.value * loss / (NATS_PER_BIT * final.bpb.value)
    ratio = implied / TEXT_BYTES
    # A score of four decimals determines the bytes to one in ten thousand.
    near = min(_KNOWN_RATIOS, key=lambda known: abs(ratio - known[0]))
    value = (
        f"{tokens.value:,.0f} tokens, {loss} nats per token, {final.bpb.value} bpb: "
        f"{implied:,.0f} bytes"
    )
    if math.isclose(ratio, near[0], rel_tol=1.5e-3):
        return of("invalid", "denominator", near[1], final.bpb, value) if near[1] else None
    if ratio > 1.02:
        why = f"more bytes are behind this score than the validation text has ({TEXT_BYTES:,})"
        return of("invalid" if sure else "warning", "denominator", why, final.bpb, value)
    if ratio < 0.9:
        why = f"only {ratio:.1%} of the bytes of the validation text ({TEXT_BYTES:,}) were scored"
        return of("warning", "part-of-text", why, final.bpb, value)
    why = f"the bytes behind this score are {ratio:.4f} of those of the validation text"
    return of("warning", "denominator", why, final.bpb, value)
