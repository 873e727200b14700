"""Every planted violator is caught by the probe meant for it; no valid scorer ever is."""

import math
from typing import Any

import numpy as np
import pytest
from audit.honest import BOS, Adaptive, LongestFirst, Plain, V, documents, frozen, nats, text
from audit.planted import NAMES, bench_of, planted, valid_bench
from audit.valid import KINDS, OPEN

from fairway.audit.scorers.bench import Bench
from fairway.audit.scorers.betting import AHEAD_NATS, Bets
from fairway.audit.scorers.probes import audit_scorer
from fairway.audit.scorers.scorer import scored
from fairway.audit.scorers.verdicts import Probe, verdict_of
from fairway.base.errors import UserError


def slow(*values: object) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


def test_there_are_many_violators_and_many_valid_scorers() -> None:
    assert len(NAMES) >= 60
    assert len(KINDS) >= 40


@pytest.mark.parametrize("seed", [0, *map(slow, range(1, 20))])
@pytest.mark.parametrize("name", NAMES)
def test_a_violator_is_caught_by_its_probe(name: str, seed: int) -> None:
    module = planted(name)
    # Nearly all are found within half a second.
    budget_s = 20.0 if seed else getattr(module, "BUDGET_S", 2.0)
    found = {p.name: p for p in audit_scorer(bench_of(module, seed, budget_s))}
    assert verdict_of(list(found.values())) == "invalid"
    assert found[module.PROBE].rules
    # On another text another probe may be the first to find it, and the rest then asks no more.
    if not seed and not hasattr(module, "BY_TIME"):
        assert found[module.PROBE].verdict == "invalid", found


@pytest.mark.parametrize(
    ("seed", "budget_s"),
    [(0, 0.0), slow(1, 0.0), *(slow(seed, 10.0) for seed in range(20))],
)
@pytest.mark.parametrize("scorer", KINDS, ids=lambda kind: kind.__name__)
def test_a_valid_scorer_is_never_accused(scorer: Any, seed: int, budget_s: float) -> None:
    found = audit_scorer(valid_bench(scorer, seed, budget_s))
    open_ = scorer.__name__ in OPEN
    assert verdict_of(found) in ("valid", *(["not decidable"] if open_ else [])), [
        p for p in found if p.verdict != "valid"
    ]


# ---------------------------------------------------------------------------------------------
# The budget


class Timed(Adaptive):
    """Takes so long for every question, by a clock of its own: nobody waits for it."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.now_s = seconds, 0.0

    def score(self, ids: Any) -> Any:
        self.now_s += self.seconds
        return super().score(ids)


def by_name(scorer: Any, budget_s: float, **how: Any) -> dict[str, Probe]:
    return {p.name: p for p in audit_scorer(Bench(scorer, text(0, 97), 0, budget_s, **how))}


def timed(seconds: float, budget_s: float) -> tuple[dict[str, Probe], float]:
    scorer = Timed(seconds)
    found = by_name(scorer, budget_s, clock=lambda: scorer.now_s)
    return found, scorer.now_s


def test_a_budget_is_spent_on_more_places() -> None:
    short, long = (timed(0.002, budget_s)[0] for budget_s in (0.5, 4.0))
    for name in ("P3 future flip", "P1 substitution", "P2 incompressible stream"):
        assert long[name].samples > short[name].samples
        assert long[name].power > ""
    assert "of 96 looked at" in long["P3 future flip"].power


@pytest.mark.parametrize("seconds", [0.005, 0.02, 0.05])
def test_a_budget_is_kept_by_slow_scorers(seconds: float) -> None:
    found, taken_s = timed(seconds, 4.0)
    assert 3.0 < taken_s < 6.0
    assert verdict_of(list(found.values())) in ("valid", "not decidable")


def test_only_who_asks_for_it_spends_more_than_the_usual_time() -> None:
    usual = by_name(Adaptive(), 60.0, thorough=False)
    assert usual["P3 future flip"].samples < 200
    assert verdict_of(list(usual.values())) == "valid"


def test_a_long_text_is_audited_on_its_beginning() -> None:
    bench = Bench(Adaptive(), text(0, 20_000), 0, 0.0)
    found = audit_scorer(bench)
    assert len(bench.text) == 1024 and len(bench.whole) == 20_000
    assert verdict_of(found) == "valid"


# ---------------------------------------------------------------------------------------------
# What is said beside a verdict


class Excess(Plain):
    """Sums to 1 + `excess` everywhere."""

    def __init__(self, excess: float) -> None:
        self.excess = excess

    def score(self, ids: Any) -> Any:
        return ((t, cost - float(np.log1p(self.excess))) for t, cost in super().score(ids))


@pytest.mark.parametrize("excess", [9e-4, -9e-4, 1e-4])
def test_sums_that_are_off_alike_are_told_with_their_figure(excess: float) -> None:
    found = by_name(Excess(excess), 0.0)
    assert found["P1 substitution"].verdict == "valid"
    assert f"the mean excess is {excess:+.2g}" in found["P1 substitution"].why
    assert "mean excess" not in by_name(Excess(0.0), 0.0)["P1 substitution"].why


@pytest.mark.parametrize("excess", [1.1e-3, 5e-3])
def test_sums_that_are_off_by_more_are_wrong(excess: float) -> None:
    assert by_name(Excess(excess), 0.0)["P1 substitution"].verdict == "invalid"


class Noise(Adaptive):
    """Adds noise of a size to every cost."""

    def __init__(self, size: float) -> None:
        self.size, self.draw = size, np.random.default_rng(0)

    def score(self, ids: Any) -> Any:
        return ((t, cost + self.draw.uniform(0, self.size)) for t, cost in super().score(ids))


@pytest.mark.parametrize(
    ("size", "verdict", "why"),
    [(9e-3, "valid", "noise of 0.00"), (0.05, "not decidable", "noise of up to 0.0"),
     (0.3, "invalid", "changes from run to run")],
)  # fmt: skip
def test_noise_is_allowed_up_to_a_bound(size: float, verdict: str, why: str) -> None:
    found = by_name(Noise(size), 0.0)
    assert found["replay"].verdict == verdict_of(list(found.values())) == verdict
    assert why in found["replay"].why


def test_known_beginnings_are_bounded_apart() -> None:
    found = by_name(LongestFirst(), 0.0)
    why = found["known beginnings"].why
    assert "reaches the order of scoring" in why and "is worth at most" in why
    assert "do not reach" in by_name(Plain(), 0.0)["known beginnings"].why


class BeginningsShortestFirst(Plain):
    """Learns short documents first, and where documents begin: the order tells it that they become
    rarer."""

    longest = False

    def score(self, ids: Any) -> Any:
        model = frozen()
        for document in sorted(documents(ids), key=len, reverse=self.longest):
            for t in document:
                yield t, nats(model.row(ids[t - 1])[ids[t]])
                model.learn(ids[t - 1], ids[t])


def test_lengths_that_only_the_order_tells_are_not_free() -> None:
    # Two seconds on a quiet core. With four, a busy machine asked texts that were too short.
    found = audit_scorer(valid_bench(BeginningsShortestFirst, 3, 30.0))
    assert [p.name for p in found if p.verdict == "invalid"] == ["known beginnings"]
    assert "not paid for" in next(p.why for p in found if p.verdict == "invalid")


class BeginningsLongestFirst(BeginningsShortestFirst):
    """The other way round: beginnings become more frequent."""

    longest = True


def test_the_order_of_long_texts_tells_as_much_from_long_to_short() -> None:
    # Of few words the scorer soon knows how often each is followed by a beginning.
    words, ahead = np.array([2, 3]), []
    for scorer in (BeginningsLongestFirst(), LongestFirst()):
        draw, bets = np.random.default_rng(0), Bets()
        for _ in range(8):
            begins = draw.random(9000) < 1 / 15
            ids = np.where(begins, BOS, draw.choice(words, 9000))
            ids[0] = BOS
            fair = np.where(begins, math.log(15), math.log(len(words) * 15 / 14))
            bets.play(fair, scored(scorer, ids))
        ahead.append(bets.ahead_nats)
    assert ahead[0] > 2 * AHEAD_NATS and ahead[1] < AHEAD_NATS / 2


def test_fresh_text_gives_an_interval() -> None:
    ids, later = text(0, 385), text(0, 385, later=True)
    found = {p.name: p for p in audit_scorer(Bench(Adaptive(), ids, 0, 0.0, later=later))}
    assert found["fresh text"].verdict == "valid"
    assert "99.9% interval" in found["fresh text"].why
    few = audit_scorer(Bench(Adaptive(), ids, 0, 0.0, later=later[:20]))
    assert {p.name: p.verdict for p in few}["fresh text"] == "not decidable"


def test_bytes_that_nobody_says_are_asked_for() -> None:
    found = by_name(Adaptive(), 0.0, text_bytes=100)
    assert found["P7 bytes"].verdict == "not decidable" and '"bytes": true' in found["P7 bytes"].why
    assert "P7 bytes" not in by_name(Adaptive(), 0.0)


def test_a_token_that_begins_documents_must_be_known() -> None:
    with pytest.raises(UserError, match=r"BOS is 24 and the scorer knows tokens 0 to 23"):
        Bench(Plain(), text(0), bos_id=V)
