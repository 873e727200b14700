"""The intervals cover the truth, by fewer studies than `benchmarks/studies_cover.py` simulates."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

import fairway

FILE = Path(fairway.__file__).parents[1] / "benchmarks/studies_cover.py"


@pytest.fixture(scope="module")
def coverage() -> ModuleType:
    spec = importlib.util.spec_from_file_location("coverage_of_studies", FILE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kind", ["normal", "t3", "exponential", "lognormal"])
@pytest.mark.parametrize("pairs", [4, 8])
def test_all_intervals_of_a_study_cover_at_their_rate(
    coverage: ModuleType, kind: str, pairs: int
) -> None:
    found = coverage.simulate(kind, pairs, 200, 0.2, seed=7)
    # At an error rate of 0.2, so that intervals that are much too narrow are seen.
    assert found["coverage"] >= 0.8
    assert found["claims at 0"] <= 0.2


def test_tables_without_a_plan_cover_too(coverage: ModuleType) -> None:
    assert coverage.simulate("normal", 5, 200, 0.2, 7, merged=True)["coverage"] >= 0.8


def test_intervals_that_look_once_would_not_cover(
    coverage: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above can fail: Student's interval at every look misses more often."""
    from fairway.studies import intervals

    intervals.half_width.cache_clear()
    monkeypatch.setattr(intervals, "look_error", lambda n, planned, error: error)
    monkeypatch.setattr(coverage, "DECIDED", ())
    found = coverage.simulate("normal", 8, 200, 0.2, 7)
    intervals.half_width.cache_clear()
    assert found["coverage"] < 0.7


def test_effects_are_found_where_they_should_be(coverage: ModuleType) -> None:
    found = coverage.simulate("normal", 8, 200, 0.05, 7)
    assert found["found at -5"] > 0.9 and found["mean_pairs"] < 6.5
