"""Kill Fairway at random moments, go on by one and the same command, and compare every byte.

    python benchmarks/kills.py --count 200 --seed 1 --out /tmp/kills

Each verb is one command line: train, pack, score, prove, audit, report, seeds, submit. It is run
once without a kill, which gives the files to expect and its duration. Then, again and again: the
folder is put back to what it was before the verb, the command is killed (SIGKILL, the process
alone) after a time drawn evenly from its whole duration, and from a second on killed again with
probability two thirds each time; at last it is run until it ends with code 0. The folder must then
hold what it held without a kill: the same names, none left over, the same bytes. From JSON measured
seconds and rates are taken out first (names that end in `seconds` or `_s`), and three digests of
files that hold such times (of run.json itself, steps.jsonl, results.json); of report.html, whose
numbers stand in report.json, only its presence and its end are compared.

Commands are forked from this process, which has imported all that they need: the seconds of a kill
are seconds of work. What they start themselves (a proof's fresh process, the runs of seeds) starts
as ever.

A run begins with `train`, killed as soon as its folder is there: `--resume`, which goes on blindly
after that, is refused where no run was ever begun. `submit` refuses a folder that is there, so for
that verb a record that is there ends the loop.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import hashlib
import importlib
import json
import math
import random
import re
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairway.cli import main as cli
from fairway.data.build import build_data
from fairway.data.documents import Document

VERBS = ("train", "pack", "score", "prove", "audit", "report", "seeds", "submit")
# How the kills are shared out: by what a round costs.
WEIGHTS = dict(zip(VERBS, (40, 36, 28, 24, 24, 24, 12, 12), strict=True))
TIMES = re.compile(r".*seconds|.*_s|steps\.jsonl|results")
SETTINGS = (
    *("model.vocab_size=300", "data.val_bytes=1200", "train.steps=8", "train.warmup_steps=0"),
    *("train.checkpoint_every_s=0.05", "quant.calibration_tokens=512", "pack.code_bytes=60000"),
    *(
        "score.check_positions=2",
        "ttt.epochs=1",
        "prove.bytes=60",
        "audit.budget_s=0.001",
        "audit.tokens=64",
    ),
    *("runtime.threads=1", "runtime.dtype=float32", "runtime.matmul=highest"),
    *("runtime.attention=plain", "runtime.device=cpu"),
)
HEAVY = (
    "fairway.pipeline.run",
    "fairway.cli.show",
    "fairway.submission.submission",
    "fairway.submission.seeds",
    "fairway.report",
)
WORDS = [
    "the",
    "of",
    "a",
    "model",
    "text",
    "token",
    "learns",
    "predicts",
    "small",
    "every",
    "byte",
    "is",
    "and",
    "to",
    "in",
    "that",
]


@dataclass(frozen=True)
class Case:
    """A verb: its command, the folder it changes, and what that is before."""

    verb: str
    words: list[str]
    folder: Path
    before: Path


def text(seed: int, lines: int = 20) -> str:
    """Return pseudo-English."""
    draw = random.Random(seed)
    return "\n".join(" ".join(draw.choices(WORDS, k=draw.randint(6, 14))) for _ in range(lines))


class Command:
    """A command line of Fairway in a process of its own, forked from this one."""

    def __init__(self, words: list[str]) -> None:
        self.errors = Path(os.environ["KILLS_ERRORS"])
        self.number = os.fork()
        if self.number == 0:
            null, told = os.open(os.devnull, os.O_WRONLY), self.errors.open("wb")
            os.dup2(null, 1)
            os.dup2(told.fileno(), 2)
            sys.argv = ["fairway", *words]
            os._exit(self._code())

    def _code(self) -> int:
        try:
            cli.main()
        except SystemExit as ending:
            return int(ending.code or 0)
        except BaseException:
            traceback.print_exc()
            return 1
        return 0

    def wait(self, seconds: float = math.inf) -> int | None:
        """Return the exit code, or None if it has not ended by then."""
        end_s = time.monotonic() + seconds
        while True:
            number, status = os.waitpid(self.number, os.WNOHANG)
            if number:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > end_s:
                return None
            time.sleep(0.002)

    def kill(self) -> None:
        """Kill it, and it alone."""
        os.kill(self.number, signal.SIGKILL)
        os.waitpid(self.number, 0)


def finish(words: list[str]) -> float:
    """Run a command line to its end; return its seconds."""
    start_s, command = time.monotonic(), Command(words)
    if code := command.wait():
        raise SystemExit(f"{' '.join(words)}: {code}\n{command.errors.read_text()}")
    return time.monotonic() - start_s


def kill_after(words: list[str], seconds: float) -> float:
    """Run a command line for some seconds and kill it; return 0, or after how many seconds it had
    ended before that."""
    start_s, command = time.monotonic(), Command(words)
    if command.wait(seconds) is not None:
        return time.monotonic() - start_s
    command.kill()
    return 0.0


# ---------------------------------------------------------------------------------------------
# What a folder holds


def contents(folder: Path) -> dict[str, Any]:
    """Return every file of a folder by name: its digest, or JSON without times."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            found[name] = "folder"
        elif path.name not in (".lock",) and not re.fullmatch(r"seed-\d+\.log", name):
            found[name] = _content(path)
    return found


def _content(path: Path) -> Any:
    data = path.read_bytes()
    if path.suffix == ".json":
        value = json.loads(data)
        if path.name == "run.json":
            del value["digest"]
        return _timeless(value)
    if path.name == "steps.jsonl":
        return [_timeless(json.loads(line)) for line in data.splitlines()]
    if path.suffix == ".html":
        return data.endswith(b"</html>\n")
    return hashlib.sha256(data).hexdigest()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {n: _timeless(v) for n, v in value.items() if not TIMES.fullmatch(n)}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Return the names of files that are missing, left over, or other than expected."""
    missing = [f"missing {name}" for name in expected if name not in found]
    left = [f"left over {name}" for name in found if name not in expected]
    other = [f"other {n}" for n, value in expected.items() if n in found and found[n] != value]
    return [*missing, *left, *other]


# ---------------------------------------------------------------------------------------------
# The campaign


def put_back(case: Case) -> None:
    """Put a verb's folder back to what it was before the verb."""
    shutil.rmtree(case.folder, ignore_errors=True)
    shutil.copytree(case.before, case.folder)


def kept(folder: Path, home: Path, name: str) -> Path:
    """Return a copy of a folder, to come back to."""
    return Path(shutil.copytree(folder, home / "before" / name))


def cases(
    home: Path, verbs: list[str]
) -> tuple[list[Case], dict[str, tuple[dict[str, Any], float]]]:
    """Run every verb that is needed once; return the cases, and what each verb leaves, timed."""
    documents = [Document(f"doc-{n}", text(n)) for n in range(50)]
    build_data(documents, home / "data", vocab_size=300, val_share=0.1, shard_tokens=20_000)
    sets = [f"data.source={home / 'data'}", *SETTINGS]
    options = [word for one in sets for word in ("--set", one)]
    run, other, proofs = home / "run", home / "seeds", home / "proofs"
    (proofs / "in").mkdir(parents=True)
    (proofs / "in" / "text.txt").write_text(text(99, 2))
    begin = ["train", "smoke", "--out", str(run), *options]
    first = Command(begin)
    while not (run / ".lock").exists():
        time.sleep(0.001)
    first.kill()
    resume = [*begin, "--resume"]
    runtime = [word for one in SETTINGS if one.startswith("runtime") for word in ("--set", one)]
    proof = [str(run), str(proofs / "in" / "text.txt"), "--out", str(proofs / "p.fwp")]
    other.mkdir()
    record = home / "records"
    record.mkdir()
    seeds = [str(other / f"seed-{n}") for n in (1, 2)]
    # A record counts its own code.
    short = ["--set", "prove.bytes=0", "--set", "ttt.method=off", "--set", "pack.code_bytes=auto"]
    submitted = ["--track", "non_record", "--min-seeds", "2", "--out", str(record / "one")]
    plan = {
        "train": (resume, run),
        "pack": (["pack", str(run)], run),
        "score": (["score", str(run)], run),
        "report": (["report", str(run)], run),
        "audit": (["audit", str(run), "--set", "audit.tokens=80"], run),
        "prove": (["prove", *proof, "--bytes", "60", *runtime], proofs),
        "seeds": (
            ["seeds", "smoke", "--seeds", "1", "2", "--out", str(other), *options, *short],
            other,
        ),
        "submit": (["submit", *seeds, *submitted], record),
    }
    made, expected = [], {}
    for verb in needed(list(plan), verbs):
        words, folder = plan[verb]
        case = Case(verb, words, folder, kept(folder, home, verb))
        seconds = finish(words)
        made.append(case)
        expected[verb] = contents(folder), seconds
        print(f"{verb}: {seconds:.1f} s without a kill", flush=True)
        kept(folder, home, f"{verb}-after")
    return made, expected


def needed(names: list[str], verbs: list[str]) -> list[str]:
    """Return the verbs to run once: each reads what all before it left, but for seeds."""
    alone = ["seeds", *(["submit"] if "submit" in verbs else [])]
    chain = [name for name in names if name not in ("seeds", "submit")]
    last = max((chain.index(verb) for verb in verbs if verb in chain), default=-1)
    return chain[: last + 1] + (alone if {"seeds", "submit"} & set(verbs) else [])


def campaign(home: Path, count: int, seed: int, verbs: list[str]) -> int:
    """Kill `count` times, evenly over the verbs; print a table; return how often all was not as
    without a kill."""
    made, expected = cases(home, verbs)
    draw, wrong, rows = random.Random(seed), 0, []
    all_weights = sum(WEIGHTS[verb] for verb in verbs)
    of_verb = {case.verb: case for case in made}
    for case in (of_verb[verb] for verb in verbs):
        want, seconds = expected[case.verb]
        kills, rounds, bad, least = 0, 0, 0, round(count * WEIGHTS[case.verb] / all_weights)
        # A machine's load changes: a kill is drawn from what the whole took last.
        whole_s, begun_s = seconds, time.monotonic()
        prepare(case, made, home)
        while kills < least:
            put_back(case)
            rounds += 1
            first = True
            while first or (kills < least and draw.random() < 2 / 3):
                ended_s = kill_after(case.words, draw.uniform(0, whole_s))
                whole_s = ended_s if first and ended_s else whole_s
                kills += not ended_s
                first = False
            went_on(case)
            if faults := differences(want, contents(case.folder)):
                bad += 1
                print(f"{case.verb}, round {rounds}: {'; '.join(faults)}", flush=True)
        rows.append((kills, rounds, bad, time.monotonic() - begun_s))
        print(line(case.verb, rows[-1]), flush=True)
        wrong += bad
    print(f"\n| verb | kills | rounds | not equal | seconds |\n|---|{'--:|' * 4}")
    for verb, row in zip(verbs, rows, strict=True):
        print(line(verb, row))
    print(line("all", [sum(column) for column in zip(*rows, strict=True)]) + f"\n(seed {seed})")
    return wrong


def line(name: str, row: Sequence[float]) -> str:
    """Return a line of the table."""
    return f"| {name} | {' | '.join(f'{number:,.0f}' for number in row)} |"


def prepare(case: Case, made: list[Case], home: Path) -> None:
    """Put the folders that a verb reads, and others changed, to what they were when it ran."""
    if case.verb in ("prove", "submit"):
        folder = home / ("run" if case.verb == "prove" else "seeds")
        after = home / "before" / ("audit-after" if case.verb == "prove" else "seeds-after")
        shutil.rmtree(folder)
        shutil.copytree(after, folder)


def went_on(case: Case) -> None:
    """Run a command until it ends well."""
    for _ in range(20):
        command = Command(case.words)
        if command.wait() == 0 or (case.verb == "submit" and (case.folder / "one").exists()):
            return
        print(f"{case.verb} again: {command.errors.read_text().strip()[-300:]}", flush=True)
    raise SystemExit(f"{case.verb} does not end")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--verbs", nargs="+", default=list(VERBS), choices=VERBS)
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    given = parser.parse_args()
    given.out.mkdir(parents=True)
    os.environ["KILLS_ERRORS"] = str(given.out.resolve() / "errors.txt")
    # What is noted for later runs is noted here, and not where the user has it.
    os.environ["XDG_CACHE_HOME"] = str(given.out.resolve() / "cache")
    for module in HEAVY:
        importlib.import_module(module)
    raise SystemExit(campaign(given.out.resolve(), given.count, given.seed, given.verbs) > 0)


if __name__ == "__main__":
    main()
