"""How long the audit of a record takes on huge logs, and what the audit of a scorer finds.

python benchmarks/audits.py                           # logs of 100 MB, of four kinds
python benchmarks/audits.py --violators 20 --budget 20  # planted violators on so many texts
python benchmarks/audits.py --valid 20 --budget 20      # valid scorers that look odd
python benchmarks/audits.py --power 10                  # leaks by size and share of places
"""

import argparse
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


def violators(seeds: int, budget_s: float) -> None:
    """Print how many audits of planted violators find them, by any probe and by the one meant."""
    from audit.planted import NAMES, bench_of, planted

    found = {
        (name, seed): _invalid(bench_of(planted(name), seed, budget_s))
        for seed in range(seeds)
        for name in NAMES
    }
    for name in NAMES:
        told = [found[name, seed] for seed in range(seeds)]
        meant = sum(planted(name).PROBE in bad for bad in told)
        print(f"{name:>28}: {sum(map(bool, told))} of {seeds}, {meant} by {planted(name).PROBE}")
    meant = sum(planted(name).PROBE in bad for (name, _), bad in found.items())
    caught = sum(map(bool, found.values()))
    print(f"{len(NAMES)} violators: {caught} of {len(found)} caught, {meant} as meant")


def valid(seeds: int, budget_s: float) -> None:
    """Print how often valid scorers are accused, and how often an audit of one stays open."""
    from audit.planted import valid_bench
    from audit.valid import KINDS

    from fairway.audit.scorers.probes import audit_scorer
    from fairway.audit.scorers.verdicts import verdict_of

    told = {
        (kind.__name__, seed): verdict_of(audit_scorer(valid_bench(kind, seed, budget_s)))
        for seed in range(seeds)
        for kind in KINDS
    }
    for kind in KINDS:
        verdicts = [told[kind.__name__, seed] for seed in range(seeds)]
        print(f"{kind.__name__:>20}: {verdicts.count('valid')} of {seeds} valid")
    accused = list(told.values()).count("invalid")
    print(f"{len(KINDS)} kinds, {seeds} texts: {accused} false alarms")


def power(seeds: int) -> None:
    """Print how often a leak of a size, at a share of places, is found in so many seconds."""
    import numpy as np
    from audit.honest import Adaptive, Charges, Ids, text

    from fairway.audit.scorers.bench import Bench

    class Leak(Adaptive):
        """Charges less at some places, chosen by number; for `future` by what comes next."""

        def __init__(self, size_nats: float, share: float, future: bool) -> None:
            self.size_nats, self.future = size_nats, future
            self.leaky = np.random.default_rng(5).random(1 << 16) < share

        def score(self, ids: Ids) -> Charges:
            for t, cost in super().score(ids):
                late = not self.future or (t + 1 < len(ids) and ids[t + 1] % 2 == 0)
                yield t, max(0.0, cost - self.size_nats * (self.leaky[t] and late))

    for future in (True, False):
        for share, size_nats in ((0.1, 0.01), (0.02, 0.01), (0.005, 0.01)):
            row = []
            for budget_s in (1.0, 5.0):
                benches = (
                    Bench(
                        Leak(size_nats, share, future),
                        text(seed, 385),
                        seed,
                        budget_s,
                        clock=time.process_time,
                    )
                    for seed in range(seeds)
                )
                row.append(sum(bool(_invalid(bench)) for bench in benches) / seeds)
            kind = "next token" if future else "sum above one"
            print(f"{kind}, {size_nats} nats at {share:.1%}: {row} in 1, 5 s of CPU", flush=True)


def _invalid(bench: object) -> set[str]:
    from fairway.audit.scorers.probes import audit_scorer

    found = audit_scorer(bench)  # type: ignore[arg-type]
    return {probe.name for probe in found if probe.verdict == "invalid"}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("violators", "valid", "power"):
        parser.add_argument(f"--{name}", type=int, default=0, metavar="TEXTS")
    parser.add_argument("--budget", type=float, default=20.0, metavar="SECONDS")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests"))
    if options.violators:
        violators(options.violators, options.budget)
    elif options.valid:
        valid(options.valid, options.budget)
    elif options.power:
        power(options.power)
    else:
        logs()
