"""The command line of the campaigns; see the package's text."""

import argparse
import importlib
import os
import sys
from pathlib import Path

# Before any library starts threads of its own: a child that is forked has none of them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MALLOC_ARENA_MAX", "1")
# The specimens are those of the tests.
sys.path.append(str(Path(__file__).parents[2] / "tests"))

from benchmarks.fuzz import FORMATS, Format
from benchmarks.fuzz.campaign import once, run


def format_named(name: str) -> Format:
    module, made = FORMATS[name]
    found: Format = getattr(importlib.import_module(f"benchmarks.fuzz.{module}"), made)()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__)
    parser.add_argument("formats", nargs="+", choices=[*FORMATS, "all"], metavar="FORMAT")
    parser.add_argument("--count", type=int, default=1_000, help="inputs of each format")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--log", type=Path, help="file to which outcomes are added as JSON lines")
    parser.add_argument("--only", type=int, help="make and read this one input again")
    parser.add_argument("--keep", type=Path, help="with --only: folder for its files")
    given = parser.parse_args()
    failed = False
    for name in FORMATS if "all" in given.formats else given.formats:
        if given.only is not None:
            print(once(format_named(name), given.seed, given.only, given.keep or Path("kept")))
            continue
        outcome = run(format_named(name), given.count, given.seed, given.first)
        print(outcome.line(), flush=True)
        for failure in outcome.failures:
            print(f"  number {failure['number']}, {failure['kind']} ({failure['note']}):")
            print("    " + failure["what"].strip().replace("\n", "\n    "))
        failed |= bool(outcome.failures)
        if given.log:
            with given.log.open("a") as log:
                log.write(outcome.record() + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
