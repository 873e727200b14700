"""A process that only audits records: it reads paths, and writes findings as they are found.

`fairway.audit.records.fence` starts it, and ends it if a record takes too much. It limits its own
processor time and memory, so that no record can stop more than this process.
"""

import json
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fairway.audit.findings import Finding, plain
from fairway.audit.records.audit import findings
from fairway.base.locks import limits

# The audit stops itself after 6 s; this limit is for code that cannot be interrupted.
MOST_S = 8.0
# Syntax trees take 400 bytes per character; logs are read in blocks.
MOST_BYTES = 3 << 30


def serve() -> None:
    """Answer each line (a path in JSON) with a line for each finding and one for the facts."""
    if (resource := limits()) is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = MOST_BYTES if hard == resource.RLIM_INFINITY else min(MOST_BYTES, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    for line in sys.stdin:
        # Processor time, because the machine may be shared; after it the system ends this process.
        _allow(MOST_S)
        _answer(Path(json.loads(line)))
        _allow(0.0)


def _allow(seconds: float) -> None:
    """Limit the processor time of this process from now on, if the system can do that."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _answer(path: Path) -> None:
    facts: dict[str, Any] = {}
    begun_s = time.process_time()
    try:
        for finding in findings(path, facts):
            _say({"finding": asdict(finding)})
    except Exception as error:
        why = f"it could not be audited ({type(error).__name__}: {plain(str(error))})"
        _say({"finding": asdict(Finding("warning", "not-audited", why))})
    _say({"facts": facts, "cpu_s": time.process_time() - begun_s})


def _say(value: dict[str, Any]) -> None:
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    serve()
