"""Every planted violator is caught by the probe meant for it; no valid scorer ever is."""

import importlib
from pathlib import Path
from typing import Any

import pytest
from audit.honest import VALID, text

from fairway.audit.scorers.bench import Bench
from fairway.audit.scorers.probes import audit_scorer
from fairway.audit.scorers.verdicts import Probe, verdict_of

VIOLATORS = sorted(
    file.stem for file in (Path(__file__).parent / "violators").glob("*.py") if file.stem[0] != "_"
)


def audited(scorer: Any, seed: int = 0, tokens: int = 97) -> dict[str, Probe]:
    # Time must not decide what a test looks at.
    ids = text(seed, tokens)
    return {p.name: p for p in audit_scorer(Bench(scorer, ids, seed, budget_s=1e6))}


def test_there_are_many_violators() -> None:
    assert len(VIOLATORS) >= 20


@pytest.mark.parametrize("name", VIOLATORS)
def test_a_violator_is_caught_by_its_probe(name: str) -> None:
    module = importlib.import_module(f"audit.violators.{name}")
    found = audited(module.Violator())
    assert found[module.PROBE].verdict == "invalid", found
    assert verdict_of(list(found.values())) == "invalid"
    assert found[module.PROBE].rules


@pytest.mark.parametrize("scorer", VALID, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("seed", range(20))
def test_a_valid_scorer_is_never_accused(scorer: Any, seed: int) -> None:
    found = audited(scorer(), seed, getattr(scorer, "tokens", 49))
    assert verdict_of(list(found.values())) == "valid", [
        p for p in found.values() if p.verdict != "valid"
    ]
