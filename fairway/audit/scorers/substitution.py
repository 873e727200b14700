"""P1: the probabilities of all candidates for a place must sum to one, at many places."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import numpy as np

from fairway.audit.scorers import power, texts
from fairway.audit.scorers.bench import mean_error
from fairway.audit.scorers.places import in_turn, places
from fairway.audit.scorers.scorer import scored
from fairway.audit.scorers.sums import SUM_TOLERANCE, Place, Sum
from fairway.audit.scorers.trial import Trial
from fairway.base.arrays import IntArray

# All tokens of a small vocabulary are asked if this share of the remaining time is enough.
_SMALL_WORDS, _SMALL = 64, 0.7
_LEAST_ASKED, _FEWEST_ASKED = 48, 16
# The share of the remaining time that one place may take, and the seconds that it may always take.
_PLACE, _FREE_S = 0.1, 0.01
_OTHER_PLACES = 40
# From how many places on the mean of their sums is judged. Noise is allowed at every place, but it
# has no sign: a mean above one would be worth that much at every token.
_FEWEST_MEAN = 8


class Substitution(Trial):
    """Put other tokens at a place: the probabilities that they are charged must sum to one."""

    name = "P1 substitution"
    rules = ("C2", "C1")
    did = "put candidates at a place and summed exp(-cost) over the vocabulary (|sum - 1|)"
    share, least, usual = 0.35, 2, 12
    turn = 3

    def steps(self) -> Iterator[None]:
        """Sum at places of the text, of repetitive texts, and of longer ones."""
        bench = self.bench
        text = bench.text
        self.looked: set[int] = set()
        self.excesses: list[float] = []
        self.judged_at = _FEWEST_MEAN
        self.once_s = max(bench.seconds_of(lambda: scored(bench.scorer, text)), 1e-9)
        habits = texts.of_habits(text, bench.words, bench.bos_id, bench.draw)
        pieces = texts.of_pieces(text, bench.bos_id, len(text), bench.draw)
        dense, wild = self._sums(text), self._sums(habits, _OTHER_PLACES)
        yield from in_turn(islice(dense, 12), islice(wild, 12), self._anew())
        others = (pieces, *(bench.longer(n) for n in bench.lengths()))
        # Half of the steps are for the text itself.
        rest = in_turn(wild, *(self._sums(ids, _OTHER_PLACES) for ids in others))
        yield from in_turn(dense, rest)

    def _sums(self, ids: IntArray, most: int | None = None) -> Iterator[None]:
        for index in places(self.bench, ids, self.bench.costs(ids))[:most]:
            self._take(Place(self.bench, ids, index))
            if self.wrong:
                return
            yield

    def _anew(self) -> Iterator[None]:
        """Ask a fresh scorer about each candidate, so that it cannot know the others."""
        bench = self.bench

        def start() -> None:
            with bench.anew():
                pass

        once_s = bench.seconds_of(start) + self.once_s
        for index in places(bench, bench.text, bench.costs(bench.text))[1:4]:
            small = bench.rows is None and bench.scorer.vocab_size <= _SMALL_WORDS
            if small and once_s * bench.scorer.vocab_size <= self._time():
                self._take(Place(bench, bench.text, index, anew=True))
            if self.wrong:
                return
            yield

    def _take(self, place: Place) -> None:
        bench = self.bench
        found = place.sure(lambda: self._sum(place))
        self.samples += found.asked
        if found.with_bos is not None and bench.beginnings_known:
            # BOS is judged separately then, by the average of many places.
            bench.with_bos.append(found.with_bos)
            found = replace(found, wrong="", excess=min(found.excess, 0.0))
        if found.wrong:
            self.worst, self.position = found.excess, found.index
            self.convict(found.wrong)
            return
        self.doubt = self.doubt or found.doubt
        self.see(abs(found.excess), found.index)
        if not found.doubt:
            self.excesses.append(found.excess)
            self._judge_mean()
            if place.ids is bench.text:
                self.looked.add(place.index)

    def _judge_mean(self) -> None:
        """Convict if sums lie above one on average, although each is within the noise allowed."""
        # Judged only when the number has doubled, so that chance gets few tries.
        if len(self.excesses) < self.judged_at:
            return
        self.judged_at = 2 * len(self.excesses)
        mean, error = mean_error(np.array(self.excesses))
        if mean - 5 * error > SUM_TOLERANCE:
            self.worst, self.position = mean, None
            self.convict(
                f"the probabilities sum to {1 + mean:.4g} on average of {len(self.excesses)} places"
                ", more than one; noise explains single sums, not their mean"
            )

    def _sum(self, place: Place) -> Sum:
        bench = self.bench
        if bench.rows is not None:
            return place.shown_sum(bench.rows)
        size = bench.scorer.vocab_size
        # If the total time is small, ask more, so that the verdict does not stay open.
        cheap = self.once_s * _LEAST_ASKED < 0.2 * bench.budget_s or not bench.budget_s
        least = _LEAST_ASKED if cheap else _FEWEST_ASKED
        asked = max(int(self._time() / self.once_s), least)
        most_s = _SMALL * bench.left_s if bench.budget_s else np.inf
        if asked >= size or (size <= _SMALL_WORDS and self.once_s * size < most_s):
            return place.full_sum()
        return place.sampled_sum(asked)

    def _time(self) -> float:
        """Return the seconds that one place may take."""
        return max(_PLACE * self.bench.left_s, _FREE_S)

    def passed(self) -> str:
        """Return the result, and the mean excess if it is small but the same everywhere."""
        words = "probabilities sum to one, and are those charged"
        excess = np.array(self.excesses)
        if len(excess) < 2:
            return words
        mean, error = mean_error(excess)
        if abs(mean) > max(0.02 * SUM_TOLERANCE, 5 * error):
            words += (
                f"; the mean excess is {mean:+.2g} +- {5 * error:.2g}, alike at {len(excess)} "
                f"places: {SUM_TOLERANCE} are allowed; it is worth {abs(mean):.2g} nats a token to "
                f"{'the scorer' if mean > 0 else 'nobody'}"
            )
        return words

    def power(self) -> str:
        """Return the power of the places of the text itself."""
        allowed = Place(self.bench, self.bench.text, 1).allowed
        return power.by_places(
            len(self.looked), len(self.bench.text) - 1, allowed, "a sum above one"
        )
