"""Do the intervals of `fairway ablate` cover the truth as often as they say? Simulated studies.

    python benchmarks/studies_cover.py [--studies 1000] [--seed 20] [--json FILE]

Every study has pairs of a base and an arm with a true effect. A pair shares what its seed does;
each run has noise of its own, of mean zero: normal, heavy-tailed (Student's t with 3 degrees of
freedom), skewed (lognormal, exponential), or of another size in the arm than in the base. The study
looks after each pair, as the command does, and stops once its arm is decided or hopeless, or all
pairs are done. Counted is whether every interval that it showed on the way had the true effect in
it, how often a true effect was found on its side, and how many pairs that took. `merged` looks at
three times the pairs without a plan, as `--merge` does, and never stops. The last kinds draw the
differences themselves from a skewed distribution, which noise that is alike in base and arm cannot
do: they show the limit of Student's interval.
"""

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fairway.studies.intervals import estimate
from fairway.studies.table import DECIDED

Draw = Callable[[np.random.Generator, int], npt.NDArray[np.float64]]

# Each of mean zero; the noise of one run.
NOISE: dict[str, Draw] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "t3": lambda rng, n: rng.standard_t(3, n),
    "exponential": lambda rng, n: rng.exponential(size=n) - 1.0,
    "lognormal": lambda rng, n: rng.lognormal(0.0, 1.0, n) - math.exp(0.5),
}
# True effects, in units of the noise.
EFFECTS = (0.0, -0.5, -2.0, -5.0, 1.0)
PAIRS = (3, 4, 6, 8, 16)


def differences(kind: str, rng: np.random.Generator, pairs: int) -> npt.NDArray[np.float64]:
    """Return differences of so many pairs without effect: arm minus base."""
    name, _, how = kind.partition(", ")
    if how == "differences":
        return NOISE[name](rng, pairs)
    scale = 2.0 if how == "twice in the arm" else 1.0
    shared = rng.normal(size=pairs)
    arm = shared + scale * NOISE[name](rng, pairs)
    return np.asarray(arm - (shared + NOISE[name](rng, pairs)))


KINDS = (
    *NOISE,
    "normal, twice in the arm",
    "exponential, twice in the arm",
    "exponential, differences",
    "lognormal, differences",
)


@dataclass
class Outcome:
    """What became of one study: whether all its intervals covered, its last verdict, its pairs."""

    covered: bool
    verdict: str
    pairs: int


def study(gains: npt.NDArray[np.float64], effect: float, planned: int, error: float) -> Outcome:
    """Run one study to its end; `planned` 0 is one without a plan, that never stops."""
    covered, verdict, n = True, "open", 0
    for n in range(2, len(gains) + 1):
        found = estimate([float(gain) for gain in gains[:n]], planned, error)
        low = -math.inf if found.low is None else found.low
        high = math.inf if found.high is None else found.high
        covered = covered and low <= effect <= high
        verdict = found.verdict
        if planned and verdict in DECIDED:
            break
    return Outcome(covered, verdict, n)


def simulate(
    kind: str, pairs: int, studies: int, error: float, seed: int, merged: bool = False
) -> dict[str, float]:
    """Return, over many studies: coverage, its standard error, power by effect, mean pairs."""
    rng = np.random.default_rng([seed, pairs, *kind.encode()])
    outcomes: list[tuple[float, Outcome]] = []
    for number in range(studies):
        effect = EFFECTS[number % len(EFFECTS)]
        gains = differences(kind, rng, 3 * pairs if merged else pairs) + effect
        outcomes.append((effect, study(gains, effect, 0 if merged else pairs, error)))
    coverage = float(np.mean([outcome.covered for _, outcome in outcomes]))
    found = {
        "coverage": coverage,
        "se": math.sqrt(coverage * (1 - coverage) / studies),
        "mean_pairs": float(np.mean([outcome.pairs for _, outcome in outcomes])),
    }
    for effect in EFFECTS:
        right = "better" if effect < 0 else "worse"
        verdicts = [outcome.verdict for one, outcome in outcomes if one == effect]
        if effect:
            found[f"found at {effect:+g}"] = float(np.mean([v == right for v in verdicts]))
        else:
            found["claims at 0"] = float(np.mean([v in ("better", "worse") for v in verdicts]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--error", type=float, default=0.05)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows = []
    for kind in KINDS:
        for pairs in PAIRS:
            for merged in (False, True) if pairs == 4 else (False,):
                found = simulate(kind, pairs, given.studies, given.error, given.seed, merged)
                name = f"{3 * pairs}, merged" if merged else str(pairs)
                rows.append({"noise": kind, "pairs": name, **found})
                numbers = "  ".join(f"{key} {value:.3f}" for key, value in found.items())
                print(f"{kind:30} {name:>10}  {numbers}", flush=True)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
