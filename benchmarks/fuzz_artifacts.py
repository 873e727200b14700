"""Load spoiled artifacts: each must load or be refused, within time and memory (docs/format.md).

    PYTHONPATH=tests python benchmarks/fuzz_artifacts.py [--count 100000] [--seed 2]

Half of them have their digests made right again; the other half must never load.
"""

import argparse
import tempfile
from pathlib import Path

from mutants import spoil


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        loaded, slowest_s = spoil(Path(folder), arguments.count // 5, arguments.seed)
    print(
        f"{arguments.count:,} files: {loaded:,} with digests made right loaded, the others were "
        f"refused; the slowest took {slowest_s:.2f} s"
    )


if __name__ == "__main__":
    main()
