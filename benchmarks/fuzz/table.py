"""Print what the logs of campaigns come to, one line per format.

python -m benchmarks.fuzz.table LOG...
"""

import json
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    found: dict[str, list[dict[str, Any]]] = {}
    for name in sys.argv[1:]:
        for line in Path(name).read_text().splitlines():
            outcome = json.loads(line)
            found.setdefault(outcome["name"], []).append(outcome)
    print("| format | seeds | inputs | refused | read | slowest, s | memory, MB | failures |")
    print("|---|---|--:|--:|--:|--:|--:|--:|")
    for name, parts in [*found.items(), ("all", [p for ps in found.values() for p in ps])]:
        inputs, refused, read = (sum(p[n] for p in parts) for n in ("inputs", "refused", "read"))
        slowest_s, peak = (max(p[n] for p in parts) for n in ("slowest_s", "peak_bytes"))
        seeds = ", ".join(str(seed) for seed in sorted({p["seed"] for p in parts}))
        failures = sum(len(p["failures"]) for p in parts)
        counts = f"{inputs:,} | {refused:,} | {read:,} | {slowest_s:.2f} | {peak / 1e6:.1f}"
        print(f"| {name} | {seeds} | {counts} | {failures} |")


if __name__ == "__main__":
    main()
