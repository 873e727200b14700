"""How long the audit of a record takes on huge logs, and how often planted violators are caught.

python benchmarks/audits.py                 # logs of 100 MB, of four kinds
python benchmarks/audits.py --violators 8   # tests/audit/violators on so many other texts
"""

import argparse
import importlib
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KINDS = {
    "step lines": b"step:1234/20000 train_loss:3.2 train_time:156789ms step_avg:127.06ms\n",
    "scores": b"quantized val_loss:2.83711422 val_bpb:1.09833533 eval_time:19115ms\n",
    "prose": b"loading a shard of tokens for the next of many batches to come, and waiting\n",
    "lines of one letter": b"x\n",
}


def logs() -> None:
    """Print the seconds that a folder with one log of 100 MB takes, by kind."""
    from fairway.audit.records.audit import audit_record

    for kind, line in KINDS.items():
        with tempfile.TemporaryDirectory() as name:
            with (Path(name) / "train_seed42.log").open("wb") as stream:
                for _ in range(100):
                    stream.write(line * (1_000_000 // len(line)))
            start_s, start_cpu_s = time.perf_counter(), time.process_time()
            audit_record(Path(name))
            taken = time.perf_counter() - start_s, time.process_time() - start_cpu_s
            print(f"{kind:>20}: {taken[0]:.2f} s ({taken[1]:.2f} s of CPU)")


def violators(seeds: int) -> None:
    """Print how many audits of planted violators find them, by any probe and by the one meant."""
    sys.path.insert(0, str(ROOT / "tests"))
    from audit.honest import text  # type: ignore[import-not-found]

    from fairway.audit.scorers.bench import Bench
    from fairway.audit.scorers.probes import audit_scorer

    names = sorted(file.stem for file in (ROOT / "tests/audit/violators").glob("*.py"))
    caught = meant = 0
    for name in names:
        module = importlib.import_module(f"audit.violators.{name}")
        for seed in range(1, seeds + 1):
            found = audit_scorer(Bench(module.Violator(), text(seed, 97), seed, 1e6))
            bad = {probe.name for probe in found if probe.verdict == "invalid"}
            caught, meant = caught + bool(bad), meant + (module.PROBE in bad)
            if module.PROBE not in bad:
                print(f"{name}, seed {seed}: not by {module.PROBE}, but by {sorted(bad)}")
    total = len(names) * seeds
    print(f"{len(names)} violators, {seeds} texts: {caught} of {total} caught, {meant} as meant")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--violators", type=int, default=0)
    options = parser.parse_args()
    if options.violators:
        violators(options.violators)
    else:
        logs()
