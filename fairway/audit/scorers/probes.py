"""Black-box probes, which every valid scorer passes.

Each probe asks the scorer for costs of changed, drawn or joined texts, and compares them. A probe
needs no access to the scorer's code. docs/RULES.md lists the rule of each probe, and what it cannot
find. Sources: issue #1017 for the conditions, #1240 for the flip; `betting` has the bound.
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
# Shares of the budget: for the usual questions, and for all questions before the final replay.
_USUAL, _ALL = 0.6, 0.97


def audit_scorer(bench: Bench) -> list[Probe]:
    """Return the findings of every probe, replay first: the others need its measure of noise.

    All probes share one clock. First every probe makes its minimum of steps (with a budget of 0,
    however long they take); the most expensive comes last. Then each makes its usual steps. Unless
    something was found, they then continue in turn until the budget or the questions end. At the
    end the text is scored once more.
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
    """Make the minimum of steps; a slow scorer gets one, or none if the budget is used up."""
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
    """Give time to the probe that has used least of its share, until the budget ends."""
    end_s = (1 - _ALL) * bench.budget_s
    while bench.left_s > end_s and not any(trial.wrong for trial, _ in trials):
        # Replay can repeat for ever; it alone does not continue.
        going = [pair for pair in trials if not pair[0].done]
        if all(isinstance(trial, Replay) for trial, _ in going):
            return
        trial, work = min(going, key=lambda pair: pair[0].used_s / pair[0].share)
        # A step is not started if the remaining budget is too short for it.
        if trial.used_s > trial.steps_made * bench.left_s:
            return
        trial.make_step(work)
