"""Checks the bytes behind a score: the whole validation text, each byte counted once."""

import math
import re
import statistics
from collections.abc import Iterator, Sequence

from fairway.audit.findings import Finding, Severity
from fairway.audit.records.accounts import final_stage, of
from fairway.audit.records.claims import Claims
from fairway.audit.records.logs import Log
from fairway.audit.records.said import Number, Stage
from fairway.base.units import NATS_PER_BIT

# The validation text of the challenge, 50,000 documents: its bytes by the count of their tokens,
# and the known errors (pull requests #1804, #1916, #2138, #2039, #1795).
TEXT_BYTES = 151_080_891
_KNOWN_RATIOS: tuple[tuple[float, str], ...] = (
    (1.0, ""),
    (152_570_124 / TEXT_BYTES, ""),
    (164_594_398 / 151_074_309, "the sentinels of CaseOps pieces were counted as bytes (+8.95 %)"),
    (176_332_748 / TEXT_BYTES, "leading spaces were counted twice (+16.71 %)"),
)
# Scored tokens of that text, by tokenizer and treatment of the end, and their bytes.
_TEXT_BYTES_OF = {
    40_540_160: 151_078_222,
    40_540_802: TEXT_BYTES,
    45_508_608: 152_570_124,
    47_851_520: 151_074_309,
    47_853_343: 151_080_644,
}
# If the ratio is above this, it cannot be the challenge's text, however it is cut or joined.
_TOO_MANY = 1.1
# Nats per token over bits per byte, by a pattern of the data set's name.
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


def check_denominators(logs: Sequence[Log], claims: Claims) -> Iterator[Finding]:
    """Yield findings about scores whose bytes are not those of the validation text."""
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
        why = "scored tokens, loss and bits per byte were not all found: bytes are not checked"
        yield Finding("note", "no-denominator", why, value=f"{undecided} of {len(logs)} logs")
    yield from _claimed_ratio(logs, claims)


def _subset(log: Log, final: Stage) -> Iterator[Finding]:
    """Yield a finding if a line says that only a part of the text was scored."""
    tokens, subset = log.numbers.get("val tokens"), log.numbers.get("subset tokens")
    if tokens is not None and int(tokens.value) in _SUBSETS:
        why = f"only a part of the text was scored: {_SUBSETS[int(tokens.value)]}"
        yield of("invalid", "subset", why, tokens)
        return
    of_text = final.text_bytes
    if of_text is None or not 0 < of_text < 0.9 * TEXT_BYTES or (tokens or subset) is None:
        return
    # One of several processes counts only its own part.
    processes = log.processes or 8
    if processes > 1 and math.isclose(of_text * processes, TEXT_BYTES, rel_tol=0.03):
        return
    share = of_text / TEXT_BYTES
    why = f"the claimed score is of {share:.0%} of the bytes of the validation text"
    near = subset is not None and abs(subset.line - final.bpb.line) <= 3
    grave: Severity = "invalid" if near and log.claimed is not None else "warning"
    place = subset if subset is not None and near else final.bpb
    yield of(grave, "subset", why, place, f"{of_text:,} bytes; {place.text}")


def _bytes_behind(log: Log, final: Stage) -> Iterator[Finding | None]:
    """Yield a finding about the bytes behind a score, or None if they are right."""
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
        # These are nats per byte and bits per byte, so tokens play no part.
        return
    ratios = _other_ratios(log, final)
    usual = statistics.median(ratios) if len(ratios) > 1 else ratio
    alike = sum(math.isclose(one, usual, rel_tol=3e-3) for one in ratios)
    if 2 * alike <= len(ratios):
        # The evaluations mix different measures, so this one may be mixed, too.
        return
    if not math.isclose(ratio, usual, rel_tol=3e-3):
        # The loss of a model and the score of a mixture, or other bytes in the last evaluation.
        wrong = _known(ratio / usual)
        if wrong:
            value = f"{final.loss} nats over {final.bpb.value} bpb is {ratio:.4f}, not {usual:.4f}"
            yield of("invalid", "denominator", wrong, final.bpb, value)
        return
    if tokens is not None:
        yield _denominator(final, final.loss, tokens, sure=alike > 0 and not _of_others(log))
        return
    known = _ratio_of_data(log)
    if known is not None:
        yield _against_known(ratio, known, final.bpb)


def _other_ratios(log: Log, final: Stage) -> list[float]:
    """Return nats per token over bits per byte for the log's other evaluations."""
    others = (s for s in log.stages if s.bpb.line != final.bpb.line and 0 < s.bpb.value < 100)
    return [s.loss / s.bpb.value for s in others if s.loss is not None]


def _known(ratio: float) -> str:
    """Return the known error that makes the bytes this many times too large, or ''."""
    return next(
        (why for r, why in _KNOWN_RATIOS if why and math.isclose(ratio, r, rel_tol=1.5e-3)), ""
    )


def _of_others(log: Log) -> bool:
    """Return whether the validation files of a log are from another data set."""
    for name in ("val_files", "data_path", "datasets_dir"):
        folder = log.settings.get(name, "").rpartition("*")[0] or log.settings.get(name, "")
        last = [part for part in folder.split("/") if part and not part.startswith("fineweb_val")]
        if last and "/" in folder:
            return "fineweb" not in last[-1].lower()
    return False


def _ratio_of_data(log: Log) -> float | None:
    """Return the right ratio of nats per token to bits per byte for the log's data set."""
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
    why = wrong or "nats per token over bits per byte does not fit the named data set"
    return of("invalid" if wrong else "warning", "denominator", why, place, value)


def _claimed_ratio(logs: Sequence[Log], claims: Claims) -> Iterator[Finding]:
    """Yield a finding if loss and score of the claim fit together only with wrong bytes."""
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
    """Return the bytes of a log's last score: the known number for its tokens, or the implied."""
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
    if ratio > _TOO_MANY:
        why = (
            f"the score has more bytes than the validation text ({TEXT_BYTES:,}): they are counted "
            "wrongly, or it is another text"
        )
        return of("invalid" if sure else "warning", "denominator", why, final.bpb, value)
    if ratio < 0.9:
        why = f"only {ratio:.1%} of the bytes of the validation text ({TEXT_BYTES:,}) were scored"
        return of("warning", "part-of-text", why, final.bpb, value)
    why = f"the bytes behind this score are {ratio:.4f} times those of the validation text"
    return of("warning", "denominator", why, final.bpb, value)
