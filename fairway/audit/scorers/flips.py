"""P3: changes future tokens and the current token; earlier costs must stay the same."""

from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np

from fairway.audit.scorers import power, texts
from fairway.audit.scorers.bench import Bench, mean_error, moved_by
from fairway.audit.scorers.places import cuts, in_turn, places
from fairway.audit.scorers.scorer import ROUNDED_NATS, Costs, RowScorer, Scorer, scored, unlike
from fairway.audit.scorers.trial import Trial
from fairway.audit.scorers.verdicts import Probe
from fairway.base.arrays import FloatArray, IntArray

# The number of differences that show whether they have one sign, if much rounding is allowed.
_FEWEST = 8
# The mean cost may be this far below the cost by the shown distributions.
SHAVED_NATS = 1e-3
# The number of passes over all places of the text, each with another kind of change.
_PASSES = 6
# Other texts are cut at this many places.
_OTHER_CUTS = 96
# The share of the probe's time that may go into starting the scorer anew.
_ANEW = 0.3


class FutureFlip(Trial):
    """Change later tokens: earlier costs and their order must stay the same."""

    name = "P3 future flip"
    rules = ("C1", "C3")
    did = "replaced tokens scored after a cut and compared the costs up to it (nats)"
    share, least, usual = 0.25, 6, 60
    anew_s = 0.0

    def steps(self) -> Iterator[None]:
        """Cut the text, and texts made from it, at every place, in turn."""
        bench = self.bench
        text = bench.text
        self.looked: set[int] = set()
        self.of = max(1, len(text) - 1)
        few = bench.few_words
        pieces = texts.of_pieces(text, bench.bos_id, len(text), bench.draw)
        dense = self._cut(text)
        yield from in_turn(self._first(text), self._first(few), self._anew(), islice(dense, 24))
        others = (pieces, few, *(bench.longer(n) for n in bench.lengths()))
        # Half of the steps are for the text itself.
        yield from in_turn(dense, in_turn(*(self._cut(ids) for ids in others)))

    def _first(self, ids: IntArray) -> Iterator[None]:
        """Cut at up to twelve places, with three changes each."""
        costs = self.bench.costs(ids)
        for cut in cuts(self.bench, ids, len(costs.index))[:12]:
            for change in (self._all, self._next, self._natural):
                self._flip(ids, costs, cut, change)
            if ids is self.bench.text:
                self.looked.add(cut)
            if self.wrong:
                return
            yield

    def _cut(self, ids: IntArray) -> Iterator[None]:
        """Cut the audited text at every place in several passes, other texts at some places."""
        costs = self.bench.costs(ids)
        found = cuts(self.bench, ids, len(costs.index))
        main = ids is self.bench.text
        changes = (self._all, self._following, self._moved, self._natural, self._far, self._next)
        for number in range(_PASSES if main else 1):
            for at, cut in enumerate(found if main else found[:_OTHER_CUTS]):
                self._flip(ids, costs, cut, changes[(number + at * (not main)) % len(changes)])
                if main:
                    self.looked.add(cut)
                if self.wrong:
                    return
                if self.anew_s < _ANEW * self.used_s and at % 8 == 7:
                    self._flip_anew(ids, costs, cut)
                yield

    def _anew(self) -> Iterator[None]:
        """Ask a freshly started scorer about another future first."""
        text = self.bench.text
        costs = self.bench.costs(text)
        count = len(costs.index)
        for cut in (count // 2, 3 * count // 4, max(1, count // 5)):
            if 0 < cut < count:
                self._flip_anew(text, costs, cut)
            if self.wrong:
                return
            yield

    def _flip_anew(self, ids: IntArray, costs: Costs, cut: int) -> None:
        def work() -> None:
            with self.bench.anew() as fresh:
                if fresh is not None:
                    change = (self._all, self._natural)[self.samples % 2]
                    self._flip(ids, costs, cut, change, fresh)

        self.anew_s += self.bench.seconds_of(work)

    def _flip(
        self, ids: IntArray, costs: Costs, cut: int,
        change: Callable[[IntArray, IntArray, IntArray], IntArray], scorer: Scorer | None = None,
    ) -> None:  # fmt: skip
        """Change the tokens after a cut, and compare the costs before it."""
        bench, before, later = self.bench, costs.index[:cut], costs.index[cut:]
        other = change(ids, before, later)
        asked = bench.scorer if scorer is None else scorer
        again = scored(asked, other, count=cut)
        self.samples += 1
        if not np.array_equal(again.index, before):
            self.position = int(later[0])
            self.convict("later tokens decide in which order the text is scored")
            return
        moved = moved_by(again.nats, costs.nats[:cut])
        worst = int(np.argmax(moved))
        if not moved[worst] <= bench.tolerance_nats:
            at = int(before[worst])

            def cost_in(which: IntArray) -> float:
                if scorer is None:
                    return scored(bench.scorer, which, count=cut).at(at)
                with bench.anew() as fresh:
                    assert fresh is not None
                    return scored(fresh, which, count=cut).at(at)

            if not bench.differ(lambda: cost_in(ids), lambda: cost_in(other)):
                # A difference that does not repeat is noise, or was caused by an earlier question.
                bench.met(float(moved[worst]))
                return
            self.see(moved, before)
            self.convict("the cost of a token depends on tokens scored after it")
            return
        self.see(moved, before)

    # Ways to change the future: (text, places before the cut, places after it) to another text.

    def _all(self, ids: IntArray, before: IntArray, later: IntArray) -> IntArray:
        return self.bench.changed(ids, later)

    def _next(self, ids: IntArray, before: IntArray, later: IntArray) -> IntArray:
        return self.bench.changed(ids, later[:1])

    def _far(self, ids: IntArray, before: IntArray, later: IntArray) -> IntArray:
        return self.bench.changed(ids, self.bench.draw.choice(later, 1))

    def _natural(self, ids: IntArray, before: IntArray, later: IntArray) -> IntArray:
        """Continue as the text does elsewhere after the same token."""
        return self._put(ids, later, int(ids[before[-1]]), len(later))

    def _following(self, ids: IntArray, before: IntArray, later: IntArray) -> IntArray:
        """Replace the next token by one that follows the same token elsewhere."""
        return self._put(ids, later, int(ids[before[-1]]), 1)

    def _put(self, ids: IntArray, later: IntArray, last: int, most: int) -> IntArray:
        bench, found = self.bench, ids.copy()
        words = later[ids[later] != bench.bos_id][:most]
        if not len(words):
            return found
        for _ in range(4):
            found[words] = texts.natural_words(
                bench.text, bench.bos_id, len(words), last, bench.draw
            )
            if not np.array_equal(found, ids):
                return found
        return bench.changed(ids, words)

    def _moved(self, ids: IntArray, before: IntArray, later: IntArray) -> IntArray:
        """Put the later tokens into another order."""
        found = ids.copy()
        words = later[ids[later] != self.bench.bos_id]
        found[words] = ids[self.bench.draw.permutation(words)]
        return found

    def passed(self) -> str:
        """Return how exactly the costs stayed the same."""
        exact = "to the bit" if not self.worst else "within rounding"
        return f"costs before a cut are the same {exact}, whatever follows"

    def power(self) -> str:
        """Return the power of the cuts of the text itself."""
        return power.by_places(
            len(self.looked), self.of, self.bench.tolerance_nats, "a leak from the next token"
        )


class CurrentFlip(Trial):
    """Change the scored token: its distribution must stay, and must be the one charged."""

    name = "P3 current flip"
    rules = ("C1", "C2")
    did = "changed a token and all after it; compared its whole distribution (nats)"
    share, least, usual = 0.15, 3, 12
    looked = 0
    judged_at = 12
    # Whether the scorer itself states by how much its rows are rounded.
    rounds = False

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self.shaved: list[float] = []
        self.row_noise = 0.0
        if bench.rows is not None:
            self.rounds = getattr(bench.rows, "rounds", False)
            wide = bench.rows.row_tolerance_nats > ROUNDED_NATS
            self.judged_at = _FEWEST if wide else self.judged_at

    def steps(self) -> Iterator[None]:
        """Visit places of the text, then places of another natural text."""
        bench = self.bench
        rows = bench.rows
        if rows is None:
            self.doubt = "the scorer shows no distributions; P1 stands in for this probe"
            return
        other = texts.of_pieces(bench.text, bench.bos_id, len(bench.text), bench.draw)
        for ids in (bench.text, other):
            costs = bench.costs(ids)
            for index in places(bench, ids, costs):
                self._look(rows, ids, costs, index)
                self._mean()
                self.looked += ids is bench.text
                yield
            self._starts(rows, ids, costs)
            if self.wrong:
                return

    def _starts(self, rows: RowScorer, ids: IntArray, costs: Costs) -> None:
        """Compare the charged and the shown cost of BOS, which is itself never changed."""
        for index in np.flatnonzero(ids[1:] == self.bench.bos_id)[:64] + 1:
            at = np.flatnonzero(costs.index == index)
            if len(at) and not self.wrong:
                self._charged(rows, rows.row(ids.copy(), int(index)), ids, costs, int(index))

    def _look(self, rows: RowScorer, ids: IntArray, costs: Costs, index: int) -> None:
        bench = self.bench
        row = rows.row(ids.copy(), index)
        if not self.samples or bench.noise_nats:
            again = rows.row(ids.copy(), index)
            self.row_noise = max(self.row_noise, _row_moved(row, again))
        later = costs.index[np.flatnonzero(costs.index == index)[0] :]
        flipped = bench.changed(ids, later)
        moved = _row_moved(row, rows.row(flipped, index))
        self.samples += 1
        self.see(moved, index)
        if not moved <= self._allowed() and self._moves(rows, ids, flipped, index):
            self.convict("the distribution depends on the token it is to predict")
            return
        self._charged(rows, row, ids, costs, index)

    def _allowed(self) -> float:
        return self.bench.tolerance_nats + 4 * self.row_noise + self.bench.grain_nats

    def _moves(self, rows: RowScorer, ids: IntArray, flipped: IntArray, index: int) -> bool:
        """Return whether the entry that moved most differs for certain."""
        one, other = (np.maximum(rows.row(i.copy(), index), -30.0) for i in (ids, flipped))
        entry = int(np.argmax(moved_by(one, other)))
        return self.bench.differ(
            lambda: float(rows.row(ids.copy(), index)[entry]),
            lambda: float(rows.row(flipped.copy(), index)[entry]),
        )

    def _charged(
        self, rows: RowScorer, row: FloatArray, ids: IntArray, costs: Costs, index: int
    ) -> None:
        off = -float(row[ids[index]]) - costs.at(index)
        self.shaved.append(0.0 if row[ids[index]] == -np.inf and np.isnan(off) else off)
        if not abs(self.shaved[-1]) <= rows.row_tolerance_nats + self._allowed():
            self.worst, self.position = abs(self.shaved[-1]), index
            what = "the cost charged is not that of the distribution shown"
            self.convict(unlike(what, self.worst, rows))

    def _mean(self) -> None:
        """Convict if small differences all have the same sign."""
        shaved = np.array(self.shaved)
        # Judged only when the number has doubled, so that chance gets few tries.
        if self.wrong or len(shaved) < self.judged_at:
            return
        self.judged_at = 2 * len(shaved)
        mean, error = mean_error(shaved)
        if mean - 5 * error > SHAVED_NATS:
            self.worst = mean
            self.convict("costs lie below those of the distributions shown, on average")

    def probe(self) -> Probe:
        """Return the result; with stated rounding it takes some differences to see their sign."""
        if self.rounds and len(self.shaved) < _FEWEST:
            self.doubt = self.doubt or (
                f"{len(self.shaved)} differences between rows and costs are too few to see whether "
                "they have one sign; raise the budget (--budget)"
            )
        return super().probe()

    def passed(self) -> str:
        """Return the sentence for a probe without findings."""
        words = "the distribution stays, and is the one charged"
        if self.rounds and self.bench.rows is not None:
            mean, error = mean_error(np.array(self.shaved))
            words += (
                f" within the {self.bench.rows.row_tolerance_nats:g} nats that it states; on "
                f"average costs lie {mean:.2g} +- {5 * error:.2g} nats below the rows, so the "
                f"scorer may gain up to {max(0.0, mean + 5 * error):.2g} nats a token unseen"
            )
        return words

    def power(self) -> str:
        """Return the power of the places of the text itself."""
        rows = self.bench.rows
        least = (rows.row_tolerance_nats if rows else 0.0) + self._allowed()
        return power.by_places(self.looked, len(self.bench.text) - 1, least, "a cost below the row")


def _row_moved(one: FloatArray, other: FloatArray) -> float:
    """Return the largest difference among likely entries."""
    likely = np.maximum(one, other) > -30.0
    return float(moved_by(np.where(likely, one, 0), np.where(likely, other, 0)).max())
