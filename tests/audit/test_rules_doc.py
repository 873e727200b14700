"""docs/RULES.md cannot lie: its examples run, its codes and limits are those of the code."""

import re
from pathlib import Path

import numpy as np
import pytest
from audit.honest import PIECES, V, frozen, text

import fairway
from fairway.audit.records.accounts import BUDGET_S, LIMIT_BYTES
from fairway.audit.records.denominators import TEXT_BYTES
from fairway.audit.scorers.bench import MOST_NOISE_NATS, Bench
from fairway.audit.scorers.betting import AHEAD_NATS
from fairway.audit.scorers.probes import audit_scorer
from fairway.audit.scorers.sums import SUM_TOLERANCE
from fairway.audit.scorers.verdicts import verdict_of

PACKAGE = Path(fairway.__file__).parent
RULES = PACKAGE.parent / "docs" / "RULES.md"
EXAMPLE = re.compile(
    r"^(C\d[^\n]*?), (valid|invalid)(?: \(([^)]*)\))?:.*?\n+```python\n(.*?)```", re.M | re.S
)


def examples() -> list[tuple[str, str, str, str]]:
    return EXAMPLE.findall(RULES.read_text()) if RULES.exists() else []


class Example:
    vocab_size = V

    def __init__(self, source: str) -> None:
        self.names = {"np": np, "V": V, "PIECES": PIECES, "model": frozen}
        exec(source, self.names)
        self.score = self.names["score"]


@pytest.mark.parametrize("example", examples(), ids=lambda e: f"{e[0]} {e[1]}")
def test_an_example_is_what_it_is_said_to_be(example: tuple[str, str, str, str]) -> None:
    _, verdict, probe, source = example
    assert len(source.strip().splitlines()) <= 10
    # What is valid would be asked until the budget is spent.
    thorough = verdict == "invalid"
    found = audit_scorer(Bench(Example(source), text(0), 0, 2.0, thorough=thorough))
    assert verdict_of(found) == verdict, found
    if probe:
        assert probe in [p.name for p in found if p.verdict == "invalid"]


def test_every_condition_has_both_kinds() -> None:
    kinds = {(name[:2], verdict) for name, verdict, _, _ in examples()}
    assert kinds == {(f"C{n}", v) for n in range(1, 5) for v in ("valid", "invalid")}


def test_codes_and_limits_are_those_of_the_code() -> None:
    rules = RULES.read_text()
    source = "".join(file.read_text() for file in (PACKAGE / "audit").rglob("*.py"))
    table = rules.split("## The budgets")[1].split("## How")[0]
    codes = [c for c in re.findall(r"`([a-z]+(?:-[a-z]+)*)`", table) if c != "fairway"]
    assert len(codes) > 20
    for code in codes:
        stem = '"mixed-{' if code.startswith("mixed-") and code != "mixed-config" else f'"{code}"'
        assert stem in source, code
    assert f"{LIMIT_BYTES:,} bytes" in table and f"{TEXT_BYTES:,} bytes" in table
    assert table.count(f"{BUDGET_S:.0f} s") == 2
    assert f"{AHEAD_NATS:.1f} nats are enough for a verdict" in rules
    assert f"up to {MOST_NOISE_NATS} nats are noise" in rules
    assert f"within {SUM_TOLERANCE}" in rules
