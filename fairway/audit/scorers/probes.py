"""Black-box probes: what any valid scorer must survive, whatever it is made of.

Each asks the scorer for costs of texts that were changed, drawn or joined, and compares; none knows
how the scorer works. docs/RULES.md says which rule each belongs to. Sources: issue #1017 for the
conditions, #1240 for the flip; the bounds are derived in `fairway.audit.scorers.bench.winnings`.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from fairway.audit.scorers.bench import Bench, fair_shuffle, moved_by, winnings
from fairway.audit.scorers.scorer import Costs, scored
from fairway.audit.scorers.sums import Place, Sum
from fairway.audit.scorers.verdicts import Probe, Verdict
from fairway.score.ledger import FloatArray, IntArray

# A valid scorer is this far ahead of fair odds in one of a million audits.
AHEAD_NATS = math.log(1e6)
# Costs may lie this far below the distributions shown, on average.
SHAVED_NATS = 1e-3
# More noise than this between two runs of one text and a score is no function of it.
MOST_NOISE_NATS = 0.01

_CUTS, _PLACES, _STREAMS, _SHUFFLES, _DOCUMENTS = 12, 6, 3, 3, 3


def audit_scorer(bench: Bench) -> list[Probe]:
    """Return what every probe found, replay first: its noise is the measure of the others."""
    probes: tuple[Callable[[Bench], Probe], ...] = (
        replay, coverage, future_flip, current_flip, substitution, incompressible, shuffled, packed,
    )  # fmt: skip
    found = []
    for probe in probes:
        bench.begin(probe.__name__)
        found.append(probe(bench))
    return found


# ---------------------------------------------------------------------------------------------
# The same again, and all of it


def replay(bench: Bench) -> Probe:
    """Score one text twice: the costs must be the same."""
    did = "scored one text twice and compared the costs (nats)"
    first, second = (scored(bench.scorer, bench.text) for _ in range(2))
    result = _Result("replay", ("C1",), did, 2)
    if not _same_order(first, second):
        return result.invalid("the two runs scored in different orders")
    moved = moved_by(first.nats, second.nats)
    result.see(moved, first.index)
    if result.above(MOST_NOISE_NATS):
        return result.invalid(
            "a text costs another time something else: the score depends on more than artifact "
            "and text, such as what an earlier run left behind"
        )
    bench.noise_nats = result.worst or 0.0
    if bench.noise_nats:
        return result.valid("the same but for rounding; the other probes allow for it")
    return result.valid("the same to the bit")


def coverage(bench: Bench) -> Probe:
    """See which tokens were charged for: every one, once, and nothing less than nothing."""
    costs, count = bench.costs(bench.text), len(bench.text)
    did = "looked which tokens were scored, how often, and whether a cost is below zero"
    result = _Result("coverage", ("C4", "C2"), did, len(costs.index))
    strange = np.flatnonzero((costs.index < 1) | (costs.index >= count))
    if len(strange):
        return result.invalid("a token was scored that the text does not have", costs, strange)
    times = np.bincount(costs.index, minlength=count)
    twice = np.flatnonzero(times > 1)
    if len(twice):
        result.position = int(twice[0])
        return result.invalid(f"{len(twice)} tokens were scored more than once")
    below = np.flatnonzero(~(costs.nats >= -bench.tolerance_nats))
    if len(below):
        return result.invalid(
            "a cost below zero: a probability above 1, or no number", costs, below
        )
    missing = np.flatnonzero(times[1:] == 0) + 1
    if not len(missing):
        return result.valid(f"all {count - 1} tokens were scored once")
    result.position = int(missing[0])
    if len(missing) < count - missing[0]:
        return result.invalid(f"{len(missing)} tokens before the last scored one have no cost")
    # Whole windows leave out less than one of them, however long the text.
    longer = np.concatenate([bench.text, bench.text])
    missed = len(longer) - 1 - len(scored(bench.scorer, longer).index)
    if missed > len(costs.index):
        return result.invalid(
            f"{missed} of {len(longer) - 1} tokens of a longer text have no cost: only a part is "
            "scored"
        )
    return result.undecided(
        f"the last {len(missing)} of {count - 1} tokens have no cost; does the scorer take whole "
        "windows only?"
    )


# ---------------------------------------------------------------------------------------------
# The future changed, the present changed


def future_flip(bench: Bench) -> Probe:
    """Change what is scored later: what was scored before must not move, nor the order."""
    did = "replaced tokens scored after a cut and compared the costs up to it (nats)"
    result = _Result("P3 future flip", ("C1", "C3"), did, 0)
    for ids in (bench.text, bench.of_few_words()):
        costs = bench.costs(ids)
        for cut in _cuts(bench, len(costs.index), _CUTS):
            why = _flipped(bench, result, ids, costs, cut)
            if why:
                return result.invalid(why)
    exact = "to the bit" if not result.worst else "within rounding"
    return result.valid(f"costs before a cut are the same {exact}, whatever follows")


def _flipped(bench: Bench, result: "_Result", ids: IntArray, costs: Costs, cut: int) -> str:
    """Return what is wrong with costs up to a cut when tokens after it are others."""
    later = costs.index[cut:]
    # All of what follows, and only the very next token.
    for places in (later, later[:1]):
        again = scored(bench.scorer, bench.changed(ids, places), count=cut)
        result.samples += 1
        if not np.array_equal(again.index, costs.index[:cut]):
            result.position = int(later[0])
            return "later tokens decide in which order the text is scored"
        result.see(moved_by(again.nats, costs.nats[:cut]), costs.index[:cut])
        if result.above(bench.tolerance_nats):
            return "the cost of a token depends on tokens scored after it"
    return ""


def current_flip(bench: Bench) -> Probe:
    """Change a token itself: the distribution it is scored by must stay, and be the one charged."""
    did = "changed a token and all after it; compared its whole distribution (nats)"
    result = _Result("P3 current flip", ("C1", "C2"), did, 0)
    rows, costs = bench.rows, bench.costs(bench.text)
    if rows is None:
        return result.undecided("the scorer shows no distributions; P1 stands in for this probe")
    shaved: list[float] = []
    for index in _places(bench, bench.text, 0.15):
        row = rows.row(bench.text.copy(), index)
        later = costs.index[np.flatnonzero(costs.index == index)[0] :]
        again = rows.row(bench.changed(bench.text, later), index)
        result.samples += 1
        shaved.append(-float(row[bench.text[index]]) - costs.at(index))
        likely = np.maximum(row, again) > -30.0
        result.see(moved_by(np.where(likely, row, 0), np.where(likely, again, 0)).max(), index)
        if result.above(bench.tolerance_nats):
            return result.invalid("the distribution depends on the token it is to predict")
        if not abs(shaved[-1]) <= rows.row_tolerance_nats + bench.tolerance_nats:
            result.worst, result.position = abs(shaved[-1]), index
            return result.invalid("the cost charged is not that of the distribution shown")
    if len(shaved) > 2 and _mean_above_noise(np.array(shaved)) > SHAVED_NATS:
        result.worst = float(np.mean(shaved))
        return result.invalid("costs lie below those of the distributions shown, on average")
    return result.valid("the distribution stays, and is the one charged")


# ---------------------------------------------------------------------------------------------
# P1: what all candidates would have cost


def substitution(bench: Bench) -> Probe:
    """Put other tokens at a place: the probabilities that they are charged by must sum to one."""
    did = "put candidates at a place and summed exp(-cost) over the vocabulary (|sum - 1|)"
    result = _Result("P1 substitution", ("C2", "C1"), did, 0)
    undecided = ""
    for found in _sums(bench):
        result.samples += found.asked
        if found.wrong:
            result.worst, result.position = found.excess, found.index
            return result.invalid(found.wrong)
        undecided = undecided or found.doubt
        result.see(abs(found.excess), found.index)
    if undecided:
        return result.undecided(undecided)
    return result.valid("probabilities sum to one, and are those charged")


def _sums(bench: Bench) -> Iterator[Sum]:
    """Yield the sums at some places of the text, and of one in which habits form."""
    once_s = bench.seconds_of(lambda: scored(bench.scorer, bench.text))
    # Half the audit's time may go into this probe.
    most = int(0.5 * bench.budget_s / _PLACES / max(once_s, 1e-9))
    for ids in (bench.text, bench.of_habits()):
        for index in _places(bench, ids, 0.2):
            place = Place(bench, ids, index)
            if bench.rows is not None:
                yield place.shown_sum(bench.rows, 0.1)
            elif most >= bench.scorer.vocab_size or bench.scorer.vocab_size <= 64:
                yield place.full_sum()
            else:
                yield place.sampled_sum(max(most, 48))


# ---------------------------------------------------------------------------------------------
# P2 and P5: texts that nobody can predict


def incompressible(bench: Bench) -> Probe:
    """Score tokens drawn at random from known sets: nobody can be ahead of fair odds for long."""
    did = "scored random tokens from all of the vocabulary, from 16 and from 2 (nats ahead)"
    result = _Result("P2 incompressible stream", ("C2", "C3", "C1"), did, 0)
    words, length = bench.words, len(bench.text)
    sets = [words, bench.draw.choice(words, min(16, len(words)), False)]
    sets.append(bench.draw.choice(words, 2, False))
    ahead = [0.0] * len(sets)
    for _ in bench.rounds(0.1, _STREAMS):
        for number, tokens in enumerate(sets):
            ids = np.where(
                bench.text == bench.bos_id, bench.bos_id, bench.draw.choice(tokens, length)
            )
            stakes = np.where(ids == bench.bos_id, np.nan, math.log(len(tokens)))
            costs = scored(bench.scorer, ids)
            _bet(result, costs, stakes, ids, ahead, number)
            if result.above(AHEAD_NATS):
                return result.invalid(
                    f"random tokens from a set of {len(tokens)} cost less than any distribution "
                    "over them can charge: probabilities sum to more than one, or targets were seen"
                )
    return result.valid("random tokens cost what they must")


def shuffled(bench: Bench) -> Probe:
    """Score shuffled texts: what adapts must not find in them what is not there."""
    did = "scored the text's tokens in random order (nats ahead of who knows which they are)"
    result = _Result("P5 shuffled targets", ("C3", "C1"), did, 0)
    ahead = [0.0]
    for _ in bench.rounds(0.1, _SHUFFLES):
        ids = bench.text.copy()
        places = np.flatnonzero(ids[1:] != bench.bos_id) + 1
        ids[places] = bench.draw.permutation(ids[places])
        costs = scored(bench.scorer, ids)
        stakes = fair_shuffle(ids, costs, bench.bos_id)
        _bet(result, costs, stakes, ids, ahead, 0)
        if result.above(AHEAD_NATS):
            return result.invalid(
                "shuffled tokens cost less than they can cost whoever has not seen them: what "
                "adapts reads its own targets"
            )
    return result.valid("nothing is found where there is nothing")


def _bet(
    result: "_Result",
    costs: Costs,
    stakes: FloatArray,
    ids: IntArray,
    ahead: list[float],
    number: int,
) -> None:
    """Carry one bet on: rounds of independent texts multiply."""
    best, at = winnings(stakes, costs, ids)
    result.samples += len(costs.index)
    if ahead[number] + best > (result.worst or 0.0):
        result.worst, result.position = ahead[number] + best, at
    fair = stakes[costs.index]
    ahead[number] += float(np.nansum(np.where(np.isnan(fair), 0.0, fair - costs.nats)))


# ---------------------------------------------------------------------------------------------
# Documents


def packed(bench: Bench) -> Probe:
    """Put a document behind others: who claims to score documents apart must charge the same."""
    did = "scored a document behind two others of equal length (nats)"
    result = _Result("packed documents", ("C1",), did, 0)
    claimed = bool(getattr(bench.scorer, "separate", False))
    half = len(bench.text) // 2
    for _ in bench.rounds(0.05, _DOCUMENTS):
        document = bench.draw.choice(bench.words, half)
        document[0] = bench.bos_id
        document[1:] = np.where(
            bench.text[1:half] == bench.bos_id, document[1:], bench.text[1:half]
        )
        before = [bench.draw.choice(bench.words, half) for _ in range(2)]
        for ids in before:
            ids[0] = bench.bos_id
        one, other = (scored(bench.scorer, np.concatenate([ids, document])) for ids in before)
        result.samples += 1
        nats = [_by_index(costs, 2 * half)[half + 1 :] for costs in (one, other)]
        result.see(moved_by(*nats), np.arange(half + 1, 2 * half))
        if result.above(bench.tolerance_nats):
            break
    if not result.above(bench.tolerance_nats):
        return result.valid("documents do not influence one another")
    if claimed:
        return result.invalid("a document's cost depends on the document before it")
    return result.valid(
        "what comes before a document influences it, which the scorer does not deny and a stream "
        "may do"
    )


# ---------------------------------------------------------------------------------------------
# Pieces


@dataclass(eq=False)
class _Result:
    """A probe on its way to a verdict."""

    name: str
    rules: tuple[str, ...]
    did: str
    samples: int
    worst: float | None = None
    position: int | None = None

    def see(self, moved: FloatArray | float, index: IntArray | int) -> None:
        """Keep the worst case so far."""
        values, places = np.atleast_1d(moved), np.atleast_1d(index)
        if not len(values):
            return
        at = int(np.argmax(values))
        if self.worst is None or values[at] > self.worst:
            self.worst, self.position = float(values[at]), int(places[at])

    def above(self, bound: float) -> bool:
        """Return whether the worst case exceeds a bound."""
        return self.worst is not None and not self.worst <= bound

    def valid(self, why: str) -> Probe:
        """Return the probe as passed."""
        return self._probe("valid", why)

    def undecided(self, why: str) -> Probe:
        """Return the probe without a verdict."""
        return self._probe("not decidable", why)

    def invalid(
        self, why: str, costs: Costs | None = None, places: IntArray | None = None
    ) -> Probe:
        """Return the probe as failed; `places` are entries of `costs` at fault."""
        if costs is not None and places is not None:
            self.position, self.worst = int(costs.index[places[0]]), float(costs.nats[places[0]])
        return self._probe("invalid", why)

    def _probe(self, verdict: Verdict, why: str) -> Probe:
        worst = self.worst if self.worst is None or math.isfinite(self.worst) else None
        return Probe(
            self.name, self.rules, self.did, self.samples, worst, self.position, verdict, why
        )


def _same_order(a: Costs, b: Costs) -> bool:
    return np.array_equal(a.index, b.index)


def _by_index(costs: Costs, count: int) -> FloatArray:
    found = np.full(count, np.nan)
    found[costs.index] = costs.nats
    return found


def _mean_above_noise(values: FloatArray) -> float:
    """Return by how much a mean exceeds five times its standard error; 0 if it does not."""
    return max(0.0, float(values.mean() - 5 * values.std(ddof=1) / math.sqrt(len(values))))


def _cuts(bench: Bench, count: int, most: int) -> Iterator[int]:
    """Yield numbers of scored tokens at which to cut: around documents, the end, anywhere."""
    starts = np.flatnonzero(bench.text[1:] == bench.bos_id)
    anywhere = bench.draw.integers(1, count, most).tolist() if count > 1 else []
    fixed = [count - 1, 3, 1, 8, *starts[:2].tolist(), count // 2]
    cuts = [cut for cut in dict.fromkeys([*anywhere[:2], *fixed, *anywhere]) if 0 < cut < count]
    cuts = cuts[:most]
    for number in bench.rounds(0.12, len(cuts)):
        yield cuts[number]


def _places(bench: Bench, ids: IntArray, share: float) -> Iterator[int]:
    """Yield tokens to look at closely: the cheapest, where cheats gain, then any."""
    costs = bench.costs(ids)
    words = np.flatnonzero(ids[costs.index] != bench.bos_id)
    cheap = costs.index[words[np.argsort(costs.nats[words])]]
    late = costs.index[words[len(words) // 2 :]]
    chosen = [int(cheap[0]), int(bench.draw.choice(late)), int(cheap[len(cheap) // 10])]
    chosen += bench.draw.choice(costs.index[words], 2 * _PLACES).tolist()
    places = list(dict.fromkeys(chosen))[:_PLACES]
    for number in bench.rounds(share, len(places)):
        yield places[number]
