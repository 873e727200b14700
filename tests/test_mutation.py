"""The tests notice: almost every small change of a module makes one of its tests fail."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
@pytest.mark.parametrize("module", ["submission.statistics", "audit.scorers.trails"])
def test_at_least_95_of_100_changes_are_noticed(module: str) -> None:
    pytest.importorskip("mutmut", reason="needs the extra 'mutation'")
    command = [sys.executable, "benchmarks/mutation.py", "--quiet", "--modules", module]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    found = re.search(rf"\| {module} \| (\d+) \|.*\| ([0-9.]+) % \|", done.stdout)
    assert done.returncode == 0 and found, done.stdout + done.stderr
    assert int(found[1]) > 150, "mutants of the whole module"
    assert float(found[2]) >= 95.0


@pytest.mark.slow
def test_every_equivalent_is_still_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mutmut", reason="needs the extra 'mutation'")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from mutation import TESTS, equivalents, planned

    # It refuses what is no change of its module any more.
    assert set(planned(list(TESTS), 0, 0)) == set(TESTS) >= {key[0] for key in equivalents()}


@pytest.mark.slow
def test_what_is_changed_are_checks_bounds_and_statements(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("mutmut", reason="needs the extra 'mutation'")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from mutation_operators import mutants

    source = (
        "BOUND = 0.5\n\n\nclass A:\n    @property\n    def b(self) -> int:\n"
        '        """Words 1."""\n        if len(self.c) != 3 and self.d:\n'
        '            raise ValueError(f"not {3}")\n        return abs(self.c[1:])\n'
    )
    found = {(m.function, m.new) for m in mutants("x", source)}
    assert {("", f"BOUND = {value}") for value in ("1.0", "0.25", "0.0")} <= found
    for check in ("len(self.c) > 3", "len(self.c) < 3", "len(self.c) == 3", "len(self.c) != 4"):
        assert ("A.b", f"if {check} and self.d:") in found
    for line in (
        "if (self.d):",
        "pass",
        "return None",
        "return (self.c[1:])",
        "return abs(self.c[:])",
    ):
        assert ("A.b", line) in found
    assert not any("Words 2" in new or "not {4}" in new or "@property" in new for _, new in found)
