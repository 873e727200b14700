"""One difference from the pairs of several tables: its mean and Student's interval of one look.

    python benchmarks/pooled.py FILE:WITH:WITHOUT [FILE:WITH:WITHOUT ...] [--score ema]

FILE is a table of `benchmarks/studies/`; WITH and WITHOUT are two of its arms. Runs of one seed are
a pair, and each pair counts once. By the rule of docs/studies.md a run with fewer than 0.85 of the
median steps of its arm is left out. The interval is valid if nobody looked at the differences
before the number of pairs was decided; the intervals of `fairway ablate` need no such promise.
"""

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

from scipy import stats

LEAST_STEPS = 0.85


def runs(rows: list[dict[str, Any]], arm: str, score: str) -> dict[int, float]:
    """Return the score of each seed of an arm, without runs that other work slowed down."""
    own = [row for row in rows if row.get("arm", row.get("name")) == arm]
    if not own:
        raise SystemExit(f"no run of '{arm}'")
    least = LEAST_STEPS * statistics.median(row["steps"] for row in own)
    return {row["seed"]: row.get("bpb", row)[score] for row in own if row["steps"] >= least}


def differences(word: str, score: str) -> list[float]:
    """Return the differences of a table's pairs, and print them."""
    file, with_it, without = word.rsplit(":", 2)
    rows = [json.loads(line) for line in Path(file).read_text().splitlines()]
    one, other = (runs(rows, arm, score) for arm in (with_it, without))
    found = [one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())]
    print(f"{file}: {with_it} - {without}: {'  '.join(f'{d:+.5f}' for d in found)}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="+", metavar="FILE:WITH:WITHOUT")
    parser.add_argument("--score", default="ema")
    chosen = parser.parse_args()
    found = [d for word in chosen.words for d in differences(word, chosen.score)]
    n, mean = len(found), statistics.fmean(found)
    half = float(stats.t.ppf(0.975, n - 1)) * statistics.stdev(found) / math.sqrt(n)
    print(f"{mean:+.5f}, 95 % {mean - half:+.5f} to {mean + half:+.5f}, {n} pairs")


if __name__ == "__main__":
    main()
