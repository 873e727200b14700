"""Planted violators: their names, and the bench that each is audited on."""

import importlib
import time
from pathlib import Path
from typing import Any

from audit.honest import PIECES, text

from fairway.audit.scorers.bench import Bench

NAMES = sorted(
    file.stem for file in (Path(__file__).parent / "violators").glob("*.py") if file.stem[0] != "_"
)


def planted(name: str) -> Any:
    """Return a violator's module: `Violator`, the `PROBE` meant for it, and what it needs."""
    return importlib.import_module(f"audit.violators.{name}")


def bench_of(module: Any, seed: int, budget_s: float, **how: Any) -> Bench:
    """Return a violator on a text of its size, with fresh text and bytes where it needs them."""
    tokens = getattr(module, "TOKENS", 97)
    ids = text(seed, tokens)
    if getattr(module, "FRESH", False):
        how["later"] = text(seed, tokens, later=True)
    if getattr(module, "BYTES", False):
        how["text_bytes"] = sum(max(1, len(PIECES[token])) for token in ids[1:])
    # A loaded machine must not decide what is found.
    return Bench(module.Violator(), ids, seed, budget_s, clock=time.process_time, **how)


def valid_bench(kind: Any, seed: int, budget_s: float) -> Bench:
    """Return a valid scorer on a text of its size; only one that sleeps is measured by the wall."""
    clock = time.perf_counter if kind.__name__ == "Slow" else time.process_time
    return Bench(kind(), text(seed, getattr(kind, "tokens", 97)), seed, budget_s, clock=clock)
