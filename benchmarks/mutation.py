"""Do the tests notice? Change a module in one place, run the tests that reach it, count who fails.

    python benchmarks/mutation.py --modules score.ledger statistics [--sample 40 --seed 0]

prints for every module how many mutants there are, how many the tests kill, and the diff of every
survivor. The mutants are `mutation_operators.mutants`: mutmut's and some of our own; those that
change nothing which can be seen are listed in `mutation_equivalents.toml` with the reason.

One process imports everything, runs every test once and notes which lines it reaches. For every
mutant it forks; the child takes over the code of the mutant and runs the tests that reach the
changed lines, the quick ones first, until one fails. So a mutant costs the time of its tests, not
that of importing. Code that is shared by tests through fixtures of the session stays as it was.

Compiled loops run as plain Python, since their compiled copies would not change; with --compiled
those of other modules are compiled.
"""

import argparse
import ast
import ctypes
import functools
import importlib
import itertools
import math
import os
import random
import resource
import signal
import sys
import time
import tomllib
import types
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import coverage
import hypothesis
import pytest
from mutation_operators import Mutant, mutants

ROOT = Path(__file__).resolve().parent.parent
EQUIVALENTS = Path(__file__).with_name("mutation_equivalents.toml")

_OF_ARTIFACTS = [f"pack/test_{name}.py" for name in ("artifact", "damage", "fields", "values")]
# The tests that mirror a module, and others that state its promises.
TESTS = {
    "score.ledger": [
        "score/test_ledger.py",
        "score/test_ledger_documents.py",
        "score/test_spread.py",
        "audit/test_ledger.py",
    ],
    "score.windows": ["score/test_windows.py", "score/test_ledger.py"],
    "score.trail": ["audit/test_ledger.py"],
    "score.sliding": ["score/test_sliding.py", "score/test_unlearned.py"],
    "score.sgd": ["score/test_sgd.py", "score/test_ttt.py"],
    "score.lora": ["score/test_lora.py", "score/test_ttt.py"],
    "score.experts.mixing": ["score/test_mixing.py"],
    "data.tokens": ["data/test_tokens.py"],
    "data.documents": ["data/test_documents.py"],
    "data.guard": ["data/test_guard.py"],
    "data.pieces": ["data/test_pieces.py"],
    "data.shingles": ["data/test_shingles.py", "data/test_guard.py"],
    "quantise.grid": ["quantise/test_grid.py"],
    "quantise.gptq": ["quantise/test_gptq.py", "quantise/test_gptq_model.py"],
    "quantise.trellis": ["quantise/test_trellis.py"],
    "pack.artifact": _OF_ARTIFACTS,
    "pack.layout": _OF_ARTIFACTS,
    "pack.arithmetic": ["pack/test_arithmetic.py"],
    "prove.coder": ["prove/test_coder.py"],
    "prove.shares": ["prove/test_shares.py"],
    "train.muon": ["optim/test_muon.py", "optim/test_muon_exact.py", "optim/test_fused_muon.py"],
    "train.rules": ["optim/test_muon.py", "optim/test_muon_exact.py", "optim/test_fused_muon.py"],
    "train.checkpoint": ["test_checkpoint.py"],
    "pipeline.folder": ["test_stages.py"],
    "audit.scorers.sums": ["audit/test_sums.py", "audit/test_sum_bounds.py"],
    "audit.scorers.trails": ["audit/test_ledger.py"],
    "audit.scorers.verdicts": ["audit/test_verdicts.py"],
    "submission.statistics": ["test_statistics.py"],
    "costing": ["test_costing.py", "test_harness.py"],
    "base.units": ["test_units.py"],
}

# A child may take so many times the processor time that its tests took, and this much more.
_TIMES, _MORE_S = 5.0, 5.0
# A child that waits instead of computing is ended after so many times that.
_PATIENCE = 4.0
_MORE_BYTES = 4 << 30
_PR_SET_PDEATHSIG = 1


# ---------------------------------------------------------------------------------------------
# Taking over a mutant's code


def graft(module: types.ModuleType, source: str) -> int:
    """Give a module that is in use the code of other source; return how many things changed.

    Functions and classes stay the same objects, which others hold: only their code, defaults and
    plain values change. A constant changes wherever it was imported by its name, too.
    """
    other = types.ModuleType(module.__name__)
    other.__file__ = module.__file__
    exec(compile(source, str(module.__file__), "exec"), other.__dict__)
    changes = 0
    for name, new in vars(other).items():
        old = vars(module).get(name)
        if getattr(new, "__module__", None) == module.__name__:
            changes += _grafted(old, new)
        elif not name.startswith("__") and _differ(old, new):
            changes += 1
            for holder in _holders(module, name):
                setattr(holder, name, new)
    return changes


def _grafted(old: Any, new: Any) -> int:
    """Change a function or a class; return the number of changes."""
    old, new = (getattr(x, "py_func", x) for x in (old, new))
    for inner in ("__func__", "fget", "func"):
        if not isinstance(old, type) and hasattr(old, inner):
            return _grafted(getattr(old, inner), getattr(new, inner))
    if isinstance(old, type):
        return sum(_member(old, name, value) for name, value in vars(new).items())
    changes = 0
    if isinstance(old, types.FunctionType):
        if old.__code__ != new.__code__:
            old.__code__ = new.__code__
            changes += 1
        for defaults in ("__defaults__", "__kwdefaults__"):
            changes += _defaults(old, new, defaults)
    if hasattr(old, "__wrapped__"):
        changes += _grafted(old.__wrapped__, new.__wrapped__)
    return changes


def _member(owner: type, name: str, new: Any) -> int:
    old = vars(owner).get(name)
    plain = not callable(new) and not hasattr(new, "__get__") and not name.startswith("__")
    if plain and _differ(old, new):
        setattr(owner, name, new)
        return 1
    inside = isinstance(new, types.FunctionType | classmethod | staticmethod | property)
    return _grafted(old, new) if inside or hasattr(new, "func") else 0


def _defaults(old: Any, new: Any, name: str) -> int:
    """Change those defaults of a function that are plain values."""
    before, after = getattr(old, name), getattr(new, name)
    if not before or not _differ(before, after):
        return 0
    if isinstance(before, dict):
        setattr(old, name, {k: after[k] if _differ(v, after[k]) else v for k, v in before.items()})
    else:
        setattr(old, name, tuple(b if _differ(a, b) else a for a, b in zip(before, after)))  # noqa: B905
    return 1


def _differ(old: Any, new: Any) -> bool:
    """Return whether two values are plain and not the same."""
    words = repr(old), repr(new)
    return words[0] != words[1] and not any(" at 0x" in word for word in words)


def _holders(module: types.ModuleType, name: str) -> Iterator[types.ModuleType]:
    """Yield the module and those that have imported a name from it."""
    yield module
    for other in list(sys.modules.values()):
        path = getattr(other, "__file__", None)
        if other is not module and path and name in vars(other) and str(ROOT) in path:
            for node in ast.walk(ast.parse(Path(path).read_text())):
                named = isinstance(node, ast.ImportFrom) and node.module == module.__name__
                if named and any(alias.name == name for alias in node.names):  # type: ignore[attr-defined]
                    yield other


# ---------------------------------------------------------------------------------------------
# Which test reaches which line


@dataclass(eq=False)
class _Reach:
    """What one test costs and reaches."""

    item: Any
    seconds: float
    lines: dict[str, set[int]]


class _Keep:
    """Stands for a next test of another file: what lasts for the session is kept for it."""

    def __init__(self, session: Any) -> None:
        self.session = session

    def listchain(self) -> list[Any]:
        return [self.session]


# ---------------------------------------------------------------------------------------------
# The campaign


@dataclass(eq=False)
class Campaign:
    """A pytest plugin: instead of running the tests once, it runs them for every mutant."""

    work: dict[str, list[Mutant]]
    known: dict[tuple[str, str, str, str], str]
    quiet: bool
    most_s: float
    out: Any
    failed: bool = False
    child: bool = False
    counts: dict[str, Counter[str]] = field(default_factory=dict)

    def pytest_runtest_makereport(self, item: Any, call: Any) -> None:
        """See a test fail; in a child that is all there is to know."""
        if call.excinfo is None or call.excinfo.errisinstance(pytest.skip.Exception):
            return
        if self.child:
            os._exit(1)
        self.failed = True
        self.out.write(f"{item.nodeid} fails without any mutant: {call.excinfo.value}\n")

    def pytest_runtestloop(self, session: Any) -> bool:
        """Note what every test reaches, then try the mutants of every module."""
        modules = {name: importlib.import_module(f"fairway.{name}") for name in self.work}
        files = {name: str(module.__file__) for name, module in modules.items()}
        reaches = [self._reach(session, item, list(files.values())) for item in session.items]
        if self.failed:
            return True
        for name, work in self.work.items():
            self._check_itself(session, modules[name], reaches, files[name])
            if self.failed:
                return True
            counts = self.counts[name] = Counter(mutants=len(work))
            for mutant in work:
                if mutant.key in self.known:
                    counts["equivalent"] += 1
                    continue
                chosen = self._chosen(reaches, files[name], mutant.lines, self.most_s)
                verdict = self._try(session, modules[name], mutant.source, chosen)
                counts[verdict] += 1
                if verdict in ("survived", "unreached", "unchanged"):
                    self._tell(mutant, verdict)
            self.out.write(f"{_row(name, counts)}\n")
            self.out.flush()
        return True

    def _tell(self, mutant: Mutant, verdict: str) -> None:
        if not self.quiet:
            new = mutant.new.replace("\n", "\n    ")
            self.out.write(f"{verdict}, line {mutant.lines[0]}: {_lines_of(mutant)}  + {new}\n")
            self.out.flush()

    def _reach(self, session: Any, item: Any, files: list[str]) -> _Reach:
        started = time.process_time()
        seen = coverage.Coverage(data_file=None, include=files, config_file=False)
        seen.start()
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=_Keep(session))
        seen.stop()
        seconds, data = time.process_time() - started, seen.get_data()
        return _Reach(item, seconds, {file: set(data.lines(file) or ()) for file in files})

    @staticmethod
    def _chosen(
        reaches: list[_Reach], file: str, lines: tuple[int, int], most_s: float
    ) -> list[_Reach]:
        """Return the tests that reach some lines: all of them where those run at import.

        The quick ones come first; those that would end after `most_s` are left out.
        """
        wanted = set(range(lines[0], lines[1] + 1))
        found = [reach for reach in reaches if reach.lines[file] & wanted]
        if _is_kept(file, lines[0]):
            # The first test runs it, and all that reach the module may use what it has found.
            found = [reach for reach in reaches if reach.lines[file]]
        if not found and _at_import(file, lines[0]):
            found = reaches
        found = sorted(found, key=lambda reach: reach.seconds)
        ends_s = itertools.accumulate(reach.seconds for reach in found)
        return [reach for reach, end_s in zip(found, ends_s, strict=True) if end_s <= most_s]

    def _check_itself(
        self, session: Any, module: types.ModuleType, reaches: list[_Reach], file: str
    ) -> None:
        """See that the module's own code, taken over like a mutant's, passes the tests."""
        chosen = [reach for reach in reaches if reach.lines[file]]
        same = "\n" + Path(file).read_text()
        if (verdict := self._try(session, module, same, chosen)) != "survived":
            self.failed = True
            self.out.write(f"{module.__name__} as it is, taken over like a mutant: {verdict}\n")

    def _try(
        self, session: Any, module: types.ModuleType, source: str, chosen: list[_Reach]
    ) -> str:
        if not chosen:
            return "unreached"
        seconds = _TIMES * sum(reach.seconds for reach in chosen) + _MORE_S
        process = os.fork()
        if process == 0:
            try:
                self._be_mutant(session, module, source, chosen, seconds)
            finally:
                os._exit(1)
        return _ended(process, _PATIENCE * seconds)

    def _be_mutant(
        self,
        session: Any,
        module: types.ModuleType,
        source: str,
        chosen: list[_Reach],
        seconds: float,
    ) -> None:
        """Run the tests as a mutant, then end: 0 if none fails, 1 if one does, 3 if it is the same.

        What cannot be imported at all has failed as well.
        """
        self.child = True
        os.setsid()
        # Its parent's end is its own.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 1))
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + _MORE_BYTES, used + _MORE_BYTES))
        if not graft(module, source):
            os._exit(3)
        for holder in (module, *{reach.item.module for reach in chosen}):
            # What the module and tests keep from one to the next was made by the module as it is.
            for value in vars(holder).values():
                if isinstance(value, functools._lru_cache_wrapper):
                    value.cache_clear()
        for reach in chosen:
            reach.item.config.hook.pytest_runtest_protocol(item=reach.item, nextitem=_Keep(session))
        os._exit(0)


def _lines_of(mutant: Mutant) -> str:
    """Return where a mutant is and what stands there, as survivors are told."""
    old = mutant.old.replace("\n", "\n    ")
    return f"{mutant.module} {mutant.function}\n  - {old}\n"


def _ended(process: int, seconds: float) -> str:
    """Wait for a child and all it has started; return how it ended."""
    deadline = time.monotonic() + seconds
    while not (found := os.waitpid(process, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return "timeout"
        time.sleep(0.005)
    if os.WIFSIGNALED(found[1]):
        overtime = os.WTERMSIG(found[1]) in (signal.SIGXCPU, signal.SIGKILL)
        return "timeout" if overtime else "killed"
    return {0: "survived", 3: "unchanged"}.get(os.WEXITSTATUS(found[1]), "killed")


def _at_import(file: str, line: int) -> bool:
    """Return whether a line of a file belongs to no function's body."""
    for node in ast.walk(ast.parse(Path(file).read_text())):
        inside = isinstance(node, ast.FunctionDef) and node.body[0].lineno <= line
        if inside and line <= (node.end_lineno or line):  # type: ignore[attr-defined]
            return False
    return True


def _is_kept(file: str, line: int) -> bool:
    """Return whether a line belongs to a function whose results are kept for the process."""
    for node in ast.walk(ast.parse(Path(file).read_text())):
        inside = isinstance(node, ast.FunctionDef) and node.lineno <= line <= (node.end_lineno or 0)
        if inside and any("cache" in ast.unparse(d).split(".") for d in node.decorator_list):  # type: ignore[attr-defined]
            return True
    return False


# ---------------------------------------------------------------------------------------------
# The command


def score(counts: Counter[str]) -> float:
    """Return the share of the mutants that are no equivalents and are noticed."""
    noticed = counts["killed"] + counts["timeout"]
    return noticed / max(counts["mutants"] - counts["equivalent"], 1)


HEADER = "| module | mutants | killed | timeouts | survived | equivalents | score |"


def _row(name: str, counts: Counter[str]) -> str:
    lived = counts["survived"] + counts["unreached"] + counts["unchanged"]
    return (
        f"| {name} | {counts['mutants']} | {counts['killed']} | {counts['timeout']} | {lived} "
        f"| {counts['equivalent']} | {100 * score(counts):.1f} % |"
    )


def equivalents() -> dict[tuple[str, str, str, str], str]:
    """Return the mutants that no test can tell from the module, with the reason."""
    known: dict[tuple[str, str, str, str], str] = {}
    for entry in tomllib.loads(EQUIVALENTS.read_text()).get("equivalent", []):
        for old, new in entry["changes"]:
            known[entry["module"], entry["function"], old, new] = entry["reason"]
    return known


def planned(modules: list[str], sample: int, seed: int) -> dict[str, list[Mutant]]:
    """Return the mutants of some modules; refuse equivalents that are none of theirs."""
    known, work = equivalents(), {}
    for name in modules:
        path = ROOT / "fairway" / f"{name.replace('.', '/')}.py"
        found = list(mutants(name, path.read_text()))
        stale = {key for key in known if key[0] == name} - {mutant.key for mutant in found}
        if stale:
            raise SystemExit(f"{EQUIVALENTS.name} lists what is no mutant any more: {stale}")
        if 0 < sample < len(found):
            found = sorted(random.Random(seed).sample(found, sample), key=lambda f: f.lines)
        work[name] = found
    return work


def _interpreted(modules: list[str]) -> None:
    """Leave the functions of some modules uncompiled, and compile the others."""
    from fairway.base import native

    plain = native.compiled
    names = {f"fairway.{name}" for name in modules}
    native.compiled = lambda f: f if f.__module__ in names else plain(f)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--modules", nargs="+", default=list(TESTS), choices=list(TESTS))
    parser.add_argument("--sample", type=int, default=0, help="so many of each module; 0: all")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument(
        "--again", type=Path, help="only the lines that survivors in this earlier output changed"
    )
    parser.add_argument("--tests", nargs="+", help="run these instead, paths below tests/")
    parser.add_argument("--compiled", action="store_true", help="compile other modules' loops")
    parser.add_argument(
        "--most-s",
        type=float,
        default=math.inf,
        help="seconds of tests for a mutant: the rest of them are left out, so that more survive",
    )
    parser.add_argument("--quiet", action="store_true", help="show no survivors")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    # numba is not imported yet.
    if not options.compiled:
        os.environ["NUMBA_DISABLE_JIT"] = "1"
    os.chdir(ROOT)
    work = planned(options.modules, options.sample, options.seed)
    if options.again:
        told = options.again.read_text()
        work = {n: [m for m in found if _lines_of(m) in told] for n, found in work.items()}
    files = options.tests or sorted({file for name in work for file in TESTS[name]})

    # A failing example is enough; it need not be a small one.
    phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
    hypothesis.settings.register_profile(
        "mutation", derandomize=True, database=None, deadline=None, phases=phases
    )
    hypothesis.settings.load_profile("mutation")
    if options.compiled:
        _interpreted(options.modules)
    # What tests print is nobody's business here.
    out = os.fdopen(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nothing, stream)
    campaign = Campaign(work, equivalents(), options.quiet, options.most_s, out)
    switches = ["-o", "addopts=", "--import-mode=importlib", "--strict-markers", "-m", "not slow"]
    switches += ["-p", "no:cacheprovider", "-s", "-q"]
    code = pytest.main([*switches, *(f"tests/{file}" for file in files)], plugins=[campaign])
    if campaign.failed or not campaign.counts:
        print(f"the tests do not run (pytest ended with {int(code)})", file=out, flush=True)
        return 1
    total: Counter[str] = sum(campaign.counts.values(), Counter())
    out.write("\n".join([HEADER, "|" + "---|" * 7, *(_row(*c) for c in campaign.counts.items())]))
    out.write(f"\n{_row('all', total)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
