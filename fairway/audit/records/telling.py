"""The report of an audit for a reader with ten minutes: the verdict, then each finding once."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from fairway.audit.findings import SEVERITIES, Finding, Severity
from fairway.audit.records.audit import RecordAudit
from fairway.audit.records.questions import Question, importance, question

Judgement = Literal["invalid", "not judged", "to ask about", "clean"]
# In the order of a page, by severity.
JUDGEMENTS: tuple[Judgement, ...] = ("invalid", "not judged", "to ask about", "clean")
# The most findings in a report for people; the rest are counted.
MOST_SHOWN = 10
_FAILED = ("not-audited", "work-ended")


@dataclass(frozen=True, slots=True)
class Group:
    """All findings of one severity and code, in order of place."""

    severity: Severity
    code: str
    findings: tuple[Finding, ...]

    @property
    def question(self) -> Question:
        """Return the meaning of this finding, and the question about it."""
        return question(self.code)

    @property
    def often(self) -> str:
        """Return how often it was found: '', '5 logs', or '12 places in 2 files'."""
        count, names = len(self.findings), {finding.file for finding in self.findings}
        if count == 1:
            return ""
        if len(names) == count:
            logs = all(name.lower().endswith((".log", ".txt", ".out")) for name in names)
            return f"{count} {'logs' if logs else 'files'}"
        return f"{count} places" + (f" in {len(names)} files" if len(names) > 1 else "")


def grouped(findings: Sequence[Finding]) -> list[Group]:
    """Return findings grouped by code, sorted by severity, then by importance."""
    groups: dict[tuple[Severity, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.severity, finding.code), []).append(finding)
    made = [Group(severity, code, tuple(each)) for (severity, code), each in groups.items()]
    return sorted(made, key=lambda one: (SEVERITIES.index(one.severity), importance(one.code)))


def failed(audit: RecordAudit) -> bool:
    """Return whether an audit did not finish; in that case a lack of findings means nothing."""
    return any(finding.code in _FAILED for finding in audit.findings)


def judged(audit: RecordAudit) -> Judgement:
    """Return the result of an audit, in a word or two."""
    if not audit.valid:
        return "invalid"
    # Without a log there is nothing to judge.
    if failed(audit) or any(finding.code == "no-log" for finding in audit.findings):
        return "not judged"
    return "to ask about" if _to_ask(audit) else "clean"


def _to_ask(audit: RecordAudit) -> int:
    return sum(one.severity == "warning" for one in grouped(audit.findings))


def sentence(audit: RecordAudit) -> str:
    """Return the verdict in one sentence."""
    asked = _to_ask(audit)
    to_ask = f"{asked} {'thing' if asked == 1 else 'things'} to ask about" if asked else ""
    match judged(audit):
        case "invalid":
            first, *others = [one for one in grouped(audit.findings) if one.severity == "invalid"]
            place = first.findings[0].place
            where = f" ({place})" if place else ""
            more = f", and {len(others)} more" if others else ""
            return f"invalid: {first.question.title}{where}{more}{'; ' if asked else ''}{to_ask}"
        case "not judged":
            reasons = [f.why for f in audit.findings if f.code in _FAILED]
            return f"could not be judged: {[*reasons, 'no log could be read'][0]}"
        case "to ask about":
            return f"nothing invalid; {to_ask}"
        case _:
            return "nothing invalid, and nothing to ask about"


def summary(audit: RecordAudit) -> dict[str, Any]:
    """Return the figures of a record: claimed and recomputed score, seeds, steps, bytes, seconds.

    Missing figures are None. `coverage` is the smallest share of any kind of line in any log.
    """
    facts = audit.facts
    logs = facts.get("logs", [])
    stage = facts.get("stages", {}).get(facts.get("claimed_stage"), {})
    claims = facts.get("claims", {})
    return {
        "claimed_bpb": claims.get("bpb"),
        "recomputed_bpb": stage.get("mean"),
        "seeds": len({log["seed"] for log in logs if log.get("seed") is not None}),
        "logs": len(logs),
        "steps": _most(logs, "steps"),
        "bytes": _most(logs, "total_bytes") or claims.get("total bytes"),
        "train_s": _most(logs, "train_s"),
        "eval_s": _most(logs, "eval_s"),
        "coverage": min(
            (share for log in logs for share in log.get("coverage", {}).values()), default=None
        ),
    }


def _most(logs: Sequence[dict[str, Any]], name: str) -> float | None:
    return max((log[name] for log in logs if log.get(name) is not None), default=None)


def as_facts(audit: RecordAudit) -> dict[str, Any]:
    """Return the whole audit, ready for JSON: findings in order, questions by code, facts."""
    return {
        "folder": audit.folder.name,
        "path": str(audit.folder),
        "valid": audit.valid,
        "judgement": judged(audit),
        "verdict": sentence(audit),
        "summary": summary(audit),
        "findings": [asdict(finding) for finding in audit.findings],
        "questions": {f.code: asdict(question(f.code)) for f in audit.findings},
        "facts": audit.facts,
    }
