"""Black-box probes, which every valid scorer passes.

Each asks the scorer for costs of texts that were changed, drawn or joined, and compares; none knows
how the scorer works. docs/RULES.md says which rule each belongs to, and what it cannot find.
Sources: issue #1017 for the conditions, #1240 for the flip; `betting` has the bound of the bets.
"""

from collections.abc import Iterator, Sequence

from fairway.audit.scorers.account import Bytes, Memory
from fairway.audit.scorers.bench import Bench
from fairway.audit.scorers.documents import Beginnings, Packed
from fairway.audit.scorers.flips import CurrentFlip, FutureFlip
from fairway.audit.scorers.replay import Coverage, Replay, Wholes
from fairway.audit.scorers.streams import Incompressible, Shuffled
from fairway.audit.scorers.substitution import Substitution
from fairway.audit.scorers.trial import Trial
from fairway.audit.scorers.verdicts import Probe

KINDS: tuple[type[Trial], ...] = (
    Replay, Coverage, FutureFlip, CurrentFlip, Substitution, Incompressible, Shuffled, Packed,
    Beginnings, Wholes, Bytes, Memory,
)  # fmt: skip
# The usual questions may take this part of the budget; the rest is for more of them, and the end.
_USUAL, _ALL = 0.6, 0.97


def audit_scorer(bench: Bench) -> list[Probe]:
    """Return what every probe found, replay first: its noise is the measure of the others.

    One clock holds for all. First every probe makes its least steps (with a budget of 0 whatever
    they take), what asks most last; then its usual ones; then, unless something was found,
    all go on by turns until the budget or the questions are at an end. Last, the text is asked for
    once more.
    """
    bench.start()
    probed = [kind(bench) for kind in KINDS if kind.concerns(bench)]
    trials = [(trial, trial.steps()) for trial in probed]
    for trial, work in sorted(trials, key=lambda pair: pair[0].turn):
        _least(bench, trial, work)
    for trial, work in trials:
        _usual(bench, trial, work)
    if bench.thorough:
        _go_on(bench, trials)
    replay = trials[0][0]
    assert isinstance(replay, Replay)
    if not replay.wrong and replay.steps_made:
        bench.begin("replay, at the end")
        replay.again()
    return [trial.probe() for trial, _ in trials]


def _least(bench: Bench, trial: Trial, work: Iterator[None]) -> None:
    """Make the least steps: of a slow scorer one, and none when a budget that binds is over."""
    for step in range(trial.least):
        if bench.budget_s and bench.left_s < (0.5 * bench.budget_s if step else bench.debt_s):
            break
        if not trial.done:
            trial.make_step(work)
    if not trial.steps_made:
        trial.doubt = "the budget was over before this was asked; raise it (--budget)"


def _usual(bench: Bench, trial: Trial, work: Iterator[None]) -> None:
    """Make the usual steps, unless the probe has used its share of the time."""
    most_s = trial.share * _USUAL * bench.budget_s
    while trial.steps_made < trial.usual and not trial.done and trial.used_s < most_s:
        if bench.left_s <= 0:
            return
        trial.make_step(work)


def _go_on(bench: Bench, trials: Sequence[tuple[Trial, Iterator[None]]]) -> None:
    """Give time to whoever has had the least of its share, until it is over."""
    end_s = (1 - _ALL) * bench.budget_s
    while bench.left_s > end_s and not any(trial.wrong for trial, _ in trials):
        # A scorer is asked again for ever: that alone is no reason to go on.
        going = [pair for pair in trials if not pair[0].done]
        if all(isinstance(trial, Replay) for trial, _ in going):
            return
        trial, work = min(going, key=lambda pair: pair[0].used_s / pair[0].share)
        # A step that the budget does not hold is not begun.
        if trial.used_s > trial.steps_made * bench.left_s:
            return
        trial.make_step(work)
