"""Replay: a text must have the same cost every time, also from a copy of the scorer."""

from collections.abc import Iterator

import numpy as np

from fairway.audit.scorers.bench import MOST_NOISE_NATS, ROUNDING_NATS, mean_error, moved_by
from fairway.audit.scorers.scorer import Costs, PartScorer, Scorer, scored
from fairway.audit.scorers.texts import of_pieces
from fairway.audit.scorers.trial import Trial
from fairway.audit.scorers.verdicts import Probe
from fairway.base.arrays import IntArray

# Noise up to this leaves the verdict open; larger differences are not noise.
OPEN_NOISE_NATS = 0.1
# A text that is one token shorter or longer may change the mean cost of a token by this much.
_EDGE_NATS = 0.1
# The mean cost of a token may be this much lower or higher after another first question.
_FIRST_NATS = 1e-3
# This many totals in strictly falling or rising order are not noise either (2 of 40,320 orders).
_TREND = 8


class Replay(Trial):
    """Score one text repeatedly: between the other probes, at the end, and with fresh copies."""

    name = "replay"
    rules = ("C1",)
    did = "scored one text again, between all other questions, and compared the costs (nats)"
    share, least, usual = 0.05, 2, 3
    turn = 0
    totals: list[float]
    started_anew = 0
    # How often a fresh scorer heard another text before the text.
    other_first = 0

    def steps(self) -> Iterator[None]:
        """Ask twice at first, then once a step; some of the questions go to a fresh scorer."""
        # Totals of the scorer itself only; copies of it may have the same noise.
        self.totals = [float(self.bench.costs(self.bench.text).nats.sum())]
        self.samples = 1
        while True:
            self.again(anew=self.samples in (2, 3) or self.samples % 8 == 0)
            yield

    def again(self, anew: bool = False) -> None:
        """Score the text once more, by the scorer itself or by a fresh one."""
        bench = self.bench
        if not anew:
            self._compare(bench.scorer)
            return
        with bench.anew() as fresh:
            self.started_anew += fresh is not None
            if fresh is not None and self.started_anew % 2 == 0:
                self._after_another(fresh)
            else:
                self._compare(bench.scorer if fresh is None else fresh)

    def _after_another(self, fresh: Scorer) -> None:
        """Let a fresh scorer hear another text first: it must not favour the first text it hears.

        A small gain at every token passes as noise of single costs, so the mean is judged, too.
        """
        bench, text = self.bench, self.bench.text
        if self.other_first % 2:
            other = of_pieces(text, bench.bos_id, len(text), bench.draw)
        else:
            other = bench.changed(text, np.arange(1, len(text)))
        scored(fresh, other)
        self.other_first += 1
        again = self._compare(fresh)
        if self.wrong:
            return
        # Both are in the same order, or `_compare` had convicted.
        with np.errstate(invalid="ignore"):
            moved = again.nats - bench.costs(text).nats
        moved = moved[np.isfinite(moved)]
        if len(moved) < 2:
            return
        spread = np.ptp(self.totals) / len(moved)
        mean, error = mean_error(moved)
        if abs(mean) - 5 * error > _FIRST_NATS + 2 * spread:
            self.worst = abs(mean)
            self.convict(
                f"a token costs {abs(mean):.2g} nats {'more' if mean > 0 else 'less'} on average "
                "if the scorer has heard another text first: the first text is favoured"
            )

    def _compare(self, scorer: Scorer) -> Costs:
        """Score the text once more and compare; return its costs."""
        bench = self.bench
        first, second = bench.costs(bench.text), scored(scorer, bench.text)
        self.samples += 1
        if not np.array_equal(first.index, second.index):
            self.convict("the two runs scored in different orders")
            return second
        moved = moved_by(first.nats, second.nats)
        self.see(moved, first.index)
        if scorer is bench.scorer:
            self.totals.append(float(second.nats.sum()))
        most = float(moved.max(initial=0.0))
        bench.met(most)
        if most > MOST_NOISE_NATS:
            self._judge(most)
        return second

    def _judge(self, most: float) -> None:
        """Distinguish noise from effects of earlier questions."""
        totals = np.array(self.totals)
        steps = np.diff(totals[-_TREND:])
        trend = len(totals) >= _TREND and bool((steps < 0).all() or (steps > 0).all())
        repeats = len(np.unique(totals)) < len(totals)
        if repeats or trend or most > OPEN_NOISE_NATS:
            self.convict(
                "the cost of a text changes from run to run: the score depends on more than "
                "artifact and text, such as the state that an earlier run left"
            )

    def probe(self) -> Probe:
        """Return the result; noise that other probes found counts too."""
        noise = self.bench.noise_nats
        if not self.wrong and noise > OPEN_NOISE_NATS:
            self.convict(
                f"equal questions were answered with costs up to {noise:.2g} nats apart: the score "
                "depends on more than artifact and text"
            )
        elif noise > MOST_NOISE_NATS:
            self.doubt = (
                f"costs have noise of up to {noise:.2g} nats, and {MOST_NOISE_NATS} are allowed: a "
                "leak of that size cannot be detected; fix the scorer's seeds and order of sums"
            )
        return super().probe()

    def passed(self) -> str:
        """Return how large the noise was."""
        anew = (
            f", {self.started_anew} times of a scorer started anew or copied"
            if self.started_anew
            else "; the scorer can neither be copied nor started anew"
        )
        noise = self.bench.noise_nats
        if noise:
            words = f"the same but for noise of {noise:.2g} nats, which the other probes allow for"
        else:
            words = "the same to the bit"
        return f"{words}; asked {self.samples} times{anew}"


class Coverage(Trial):
    """Check that every token is charged exactly once, and that no cost is below zero."""

    name = "coverage"
    rules = ("C4", "C2")
    did = "checked which tokens were scored, how often, and whether a cost is below zero"
    share, least, usual = 0.05, 1, 2
    turn = 1

    def steps(self) -> Iterator[None]:
        """Check the text, then longer ones."""
        bench = self.bench
        costs = bench.costs(bench.text)
        self.samples = len(costs.index)
        missing = self._wrong(costs, len(bench.text))
        if missing and not self.wrong:
            self._windows(costs, missing)
        yield
        for length in bench.lengths():
            ids = bench.longer(length)
            taken = scored(bench.scorer, ids)
            self.samples += len(taken.index)
            left_out = self._wrong(taken, length)
            if not self.wrong and not missing and left_out:
                self.convict(
                    f"{left_out} of {length - 1} tokens of a longer text have no cost: only a part "
                    "is scored"
                )
            yield

    def _wrong(self, costs: Costs, count: int) -> int:
        """Convict for impossible charges; return the number of tokens at the end without a cost."""
        strange = np.flatnonzero((costs.index < 1) | (costs.index >= count))
        if len(strange):
            self.convict("a token was scored that the text does not have", costs, strange)
            return 0
        times = np.bincount(costs.index, minlength=count)
        twice = np.flatnonzero(times > 1)
        below = np.flatnonzero(~(costs.nats >= -self.bench.tolerance_nats))
        missing = np.flatnonzero(times[1:] == 0) + 1
        if len(twice):
            self.position = int(twice[0])
            self.convict(f"{len(twice)} tokens were scored more than once")
        elif len(below):
            self.convict("a cost below zero: a probability above 1, or no number", costs, below)
        elif len(missing) and len(missing) < count - missing[0]:
            self.position = int(missing[0])
            self.convict(f"{len(missing)} tokens before the last scored one have no cost")
        return len(missing)

    def _windows(self, costs: Costs, missing: int) -> None:
        """Check that a scorer of whole windows leaves out less than one window of a longer text."""
        text = self.bench.text
        double = np.concatenate([text, text])
        missed = len(double) - 1 - len(scored(self.bench.scorer, double).index)
        if missed > len(costs.index):
            self.convict(
                f"{missed} of {len(double) - 1} tokens of a longer text have no cost: only a part "
                "is scored"
            )
            return
        self.position = len(text) - missing
        self.doubt = (
            f"the last {missing} of {len(text) - 1} tokens have no cost; does the scorer take "
            "whole windows only?"
        )

    def passed(self) -> str:
        """Return the number of scored tokens."""
        return f"all {len(self.bench.text) - 1} tokens were scored once"


class Wholes(Trial):
    """Score parts of texts, and use every method: all answers must agree with the whole score."""

    name = "whole and part"
    rules = ("C1", "C4")
    did = "scored parts of texts, and texts by every method offered, and compared the costs (nats)"
    share, least, usual = 0.05, 1, 4
    by_length = 0.0

    def steps(self) -> Iterator[None]:
        """Compare the methods, then beginnings of the text with the whole."""
        bench = self.bench
        texts = [bench.text, of_pieces(bench.text, bench.bos_id, len(bench.text), bench.draw)]
        for ids in texts:
            self._methods(ids)
            if self.wrong:
                return
        yield
        self._edges()
        yield
        whole = bench.costs(bench.text)
        if not np.array_equal(whole.index, np.arange(1, len(bench.text))):
            # The end of a text may decide the order in which its documents are scored.
            return
        sizes = [2**k + more for k in range(3, 20) for more in (0, 1)]
        sizes += bench.draw.integers(4, len(bench.text), 24).tolist()
        for size in dict.fromkeys(bench.draw.permutation([s for s in sizes if s < len(texts[0])])):
            part = scored(bench.scorer, bench.text[: int(size)])
            self.samples += 1
            if np.array_equal(part.index, whole.index[: len(part.index)]):
                moved = moved_by(part.nats, whole.nats[: len(part.index)])
                self.by_length = max(self.by_length, float(moved.max(initial=0.0)))
            yield

    def _edges(self) -> None:
        """Remove or add a few tokens at the end, which changes an honest schedule very little.

        A scorer that recognises the whole text, or its length, changes its costs.
        """
        bench, text = self.bench, self.bench.text
        more = np.concatenate([text, bench.draw.choice(bench.words, 3)])
        for others in ([text[:-1], text[:-2], text[:-3]], [more[:-2], more[:-1], more]):
            dearer = [self._dearer(ids) for ids in others]
            self.samples += len(others)
            if min(dearer) > _EDGE_NATS:
                self.worst = min(dearer)
                how = "shorter" if len(others[0]) < len(text) else "longer"
                self.convict(
                    f"tokens cost {self.worst:.2g} nats more each in a text that is a token {how}: "
                    "the whole text, or its length, is known again"
                )
                return

    def _dearer(self, ids: IntArray) -> float:
        """Return a lower bound of the mean additional cost of tokens in another text."""
        text = self.bench.text
        both = (self.bench.costs(text), scored(self.bench.scorer, ids))
        costs, other = (charged.by_index(len(text) + 3) for charged in both)
        with np.errstate(invalid="ignore"):
            off = (other - costs)[1 : min(len(ids), len(text))]
        off = off[np.isfinite(off)]
        if len(off) < 2:
            return 0.0
        mean, error = mean_error(off)
        return mean - 5 * error

    def _until(self, ids: IntArray, costs: Costs) -> None:
        """Score up to one token only: its cost must be the same as in the whole."""
        for at in self.bench.draw.choice(costs.index, min(8, len(costs.index)), False).tolist():
            off = moved_by(
                np.array([scored(self.bench.scorer, ids, until=at).at(at)]),
                np.array([costs.at(at)]),
            )
            self.see(off, at)
            if self.above(self.bench.tolerance_nats):
                self.convict("a token costs something else when no later one is asked for")
                return

    def _methods(self, ids: IntArray) -> None:
        """Compare `score` with `score_part`: a part must have the same costs as in the whole."""
        scorer = self.bench.scorer
        self.samples += 1
        if not isinstance(scorer, PartScorer):
            return
        plain = list(scorer.score(ids.copy()))
        index = np.array([at for at, _ in plain])
        nats = np.array([cost for _, cost in plain])
        half = max(1, len(index) // 2)
        for count in (len(index), half, max(1, half // 3)):
            part = scored(scorer, ids, count=count)
            if not np.array_equal(part.index, index[:count]):
                self.convict("a part is scored in another order than the whole")
                return
            moved = moved_by(part.nats, nats[:count])
            self.see(moved, part.index)
            if self.above(self.bench.tolerance_nats):
                self.convict("a token costs something else when only a part is asked for")
                return
        self._until(ids, Costs(index, nats))

    def passed(self) -> str:
        """Return whether the length of a text changes its costs."""
        if self.by_length <= max(ROUNDING_NATS, self.bench.tolerance_nats):
            return "parts of a text cost what they cost in the whole"
        return (
            f"a token's cost depends on the length of the text, by up to {self.by_length:.2g} "
            "nats; a schedule over the text may do this; the other probes asked at several lengths"
        )
