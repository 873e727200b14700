"""The runs of a study: which comes next, how it is started, and its line in the table.

Every run is `fairway run --until` in its own folder below the study's. Pairs run in turn, the base
first, so that a study that is stopped early has complete pairs.

By the clock a slower GPU makes fewer steps. The GPUs of a host differ: equal trainings at the power
limit made 2,210, 2,242 and 2,252 steps on three cards (2026-11-27). So all runs of a pair use one
GPU, and each pair begins with the next arm, because a card is cool at first.
"""

import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import fairway
from fairway.base import units
from fairway.base.errors import UserError
from fairway.base.files import digest_file, digest_json
from fairway.base.names import WEIGHTS
from fairway.config.settings import AUTO, RuntimeConfig
from fairway.config.written import to_dict
from fairway.data.folder import DataFolder
from fairway.machine.plan import make_plan
from fairway.pipeline.folder import RunFolder, locked
from fairway.pipeline.jobs import Host, Job, Place, host_of, run_jobs
from fairway.pipeline.text import check_text, embedded_reads, given_tokenizer, open_text
from fairway.studies.arms import BASE, NOISE, Arm, Study, digest
from fairway.studies.lines import LINES, Line, append
from fairway.studies.table import Table, planned, table_of
from fairway.submission.submission import commit_of_sources
from fairway.train.steps import Say
from fairway.version import VERSION

_BASE = Arm(BASE)
# A run is expected to take as long as the longest one so far, times this.
_SLACK = 1.1
# The time that the first run needs besides its training: start, data, kernels, scores.
_OVERHEAD_S = 30.0
# Seconds at the end of a budget in which runs save their state.
_SAVING_S = 15.0


@dataclass(frozen=True, slots=True)
class Where:
    """How a study runs: the seconds of this call, the runs at once, and what is kept."""

    budget_s: float = math.inf
    at_once: int = 0
    drop_weights: bool = False
    retry: bool = False
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class _Begun:
    """A started run: its arm and pair, its GPU, its start, and its sources."""

    arm: Arm
    pair: int
    card: str
    start_s: float
    commit: str
    sources: str


@dataclass(eq=False)
class _Queue:
    """The remaining runs of a study, in order.

    `cards` are the GPUs of the slots. `slots` has the slot of each pair that must stay in one.
    """

    study: Study
    table: Table
    out: Path
    where: Where
    say: Say
    until_s: float
    cards: Sequence[str] = ()
    here: dict[str, list[str]] = field(default_factory=dict)
    begun: dict[str, _Begun] = field(default_factory=dict)
    slots: dict[int, int] = field(default_factory=dict)

    @functools.cached_property
    def by_clock(self) -> bool:
        """Whether the runs end by the clock; kept, since the settings are checked at each look."""
        return by_clock(self.study)

    def use(self, cards: Sequence[str]) -> None:
        """Set the GPUs of the slots; pairs that began on one of them by the clock stay there."""
        self.cards = cards
        for line in self.table.lines:
            if line.card in cards and line.clock == "wall":
                slot = cards.index(line.card)
                self.slots.setdefault(line.seed - self.study.first_seed, slot)

    def following(self, slot: int) -> Job | None:
        """Return the next run that may begin in a slot now, or None."""
        here = (one for one in self._missing() if self.slots.get(one[1], slot) == slot)
        found = next(here, None)
        if not found or not self._in_time(found[0]):
            return None
        if self.cards and self.by_clock:
            self.slots[found[1]] = slot
        return self._job(*found, self.cards[slot] if self.cards else "")

    def _missing(self) -> Iterator[tuple[Arm, int]]:
        study = self.study
        done = {(line.arm, line.seed - study.first_seed) for line in self.table.lines}
        running = {(one.arm.name, one.pair) for one in self.begun.values()}
        failed = {line.seed - study.first_seed for line in self.table.of(BASE) if line.failed}
        over = {arm.name for arm in study.all_arms() if self.table.is_over(arm.name)}
        # After all arms are decided, the base has no further use.
        if self.table.verdict(BASE) == "failing" or all(arm.name in over for arm in study.arms):
            return
        for pair in range(study.pairs):
            for arm in self._in_turn(pair):
                if pair in failed or arm.name in over or pair >= planned(arm.name, study.pairs):
                    continue
                if (arm.name, pair) not in done | running:
                    yield arm, pair

    def _in_turn(self, pair: int) -> list[Arm]:
        """Return the arms in the order of a pair; by the clock each arm is first in some pairs."""
        arms = list(self.study.all_arms())
        first = pair % len(arms) if self.by_clock else 0
        return arms[first:] + arms[:first]

    def is_done(self) -> bool:
        """Return whether nothing is left to run."""
        return next(self._missing(), None) is None

    def _in_time(self, arm: Arm) -> bool:
        """Return whether a run may begin: it will end in time, or no call is long enough for it.

        A run that is longer than the whole budget begins at the start of the call, saves its state
        at the end, and continues with the next call.
        """
        if math.isinf(self.where.budget_s):
            return True
        left_s, needs_s = self.until_s - time.monotonic(), expected_s(self.study, self.table, arm)
        if needs_s is None or needs_s > self.where.budget_s - saving_s(self.where.budget_s):
            return left_s > self.where.budget_s / 2
        return needs_s <= left_s

    def _job(self, arm: Arm, pair: int, card: str) -> Job:
        study = self.study
        name = f"{arm.name}-{study.first_seed + pair}"
        folder = run_folder(self.out, study, arm, pair)
        words = ["run", study.recipe, "--until", study.until, "--out", str(folder)]
        for text in (*study.overrides(arm, pair), *self.here[arm.name]):
            words += ["--set", text]
        self.say(f"pair {pair + 1}, {arm.name}: running, log in {folder.name}.log")
        self.begun[name] = _Begun(arm, pair, card, time.monotonic(), _commit(), sources_digest())
        return Job(name, tuple(words), folder, folder.with_name(f"{folder.name}.log"))

    def ended(self, job: Job, reason: str) -> None:
        """Write the line of a run, and report its result."""
        begun = self.begun.pop(job.name)
        arm, pair = begun.arm, begun.pair
        line = line_of(self.study, begun, job, reason, time.monotonic() - begun.start_s)
        append(self.out / LINES, line)
        self.table.lines.append(line)
        if self.where.drop_weights and not line.failed:
            (job.folder / WEIGHTS).unlink(missing_ok=True)
        what = line.failed or _score(line, self.study.metric)
        self.say(f"pair {pair + 1}, {arm.name}: {what} ({units.duration(line.whole_s)})")
        if arm.name not in (BASE, NOISE) and self.table.is_over(arm.name):
            self.say(f"{arm.name}: {self.table.verdict(arm.name)}; no more runs of it")


def by_clock(study: Study) -> bool:
    """Return whether the runs of a study end by the clock."""
    return study.config(_BASE).train.clock == "wall"


def expected_s(study: Study, table: Table, arm: Arm = _BASE) -> float | None:
    """Return the seconds that a run of an arm will take, or None if unknown."""
    for lines in (table.of(arm.name), table.lines):
        if taken := [line.whole_s for line in lines if not line.failed]:
            return _SLACK * max(taken)
    train = study.config(arm).train
    return train.budget_s + _OVERHEAD_S if train.clock == "wall" else None


def saving_s(budget_s: float) -> float:
    """Return the seconds at the end of a budget in which runs save their state."""
    return min(_SAVING_S, budget_s / 4)


def _score(line: Line, metric: str) -> str:
    return f"{metric} {line.bpb[metric]:.5f} bpb"


def run_folder(out: Path, study: Study, arm: Arm, pair: int) -> Path:
    """Return the folder of one run; its name has the arm, the seed and a digest of settings."""
    key = digest_json([digest(study.config(arm)), study.config(arm).data.source])[:8]
    return out / "runs" / f"{arm.name}-{study.first_seed + pair}-{key}"


def run_study(study: Study, out: Path, where: Where, say: Say) -> tuple[Table, bool]:
    """Run the missing runs of a study; return its table, and whether none is left.

    Lines are added to `study.jsonl` as runs end. Raises UserError if another process writes to the
    folder, and for a damaged table.
    """
    until_s = time.monotonic() + where.budget_s
    if math.isfinite(until_s):
        until_s -= saving_s(where.budget_s)
    with locked(out):
        table = table_of(study, out)
        if where.retry:
            table.lines = [line for line in table.lines if not line.failed]
        (out / "runs").mkdir(exist_ok=True)
        queue = _Queue(study, table, out, where, say, until_s)
        if queue.is_done():
            return table, True
        for arm in study.all_arms():
            # The machines of a cluster choose their own settings.
            machine = _machine(study.config(arm).runtime) if where.place is None else []
            queue.here[arm.name] = [*_text(study, arm, out, say), *machine]
        place = where.place or _host(study, where)
        queue.use(place.cards)
        run_jobs(queue.following, queue.ended, place, until_s)
        return table, queue.is_done()


def slots_of(study: Study, where: Where) -> int:
    """Return how many runs go at once: as many as requested, or one per GPU."""
    if where.place is not None:
        return where.place.slots
    return where.at_once or max(1, _gpus(study))


def _gpus(study: Study) -> int:
    return torch.cuda.device_count() if study.config(_BASE).runtime.device != "cpu" else 0


def _host(study: Study, where: Where) -> Host:
    """Return the slots of this host; UserError for more runs at once than GPUs."""
    gpus, slots = _gpus(study), slots_of(study, where)
    return host_of(slots, 1, gpus, _cards(slots) if 1 < slots <= gpus else ())


def _cards(slots: int) -> list[str]:
    """Return the unique names of the GPUs of slots, which are the visible ones in order."""
    return [str(torch.cuda.get_device_properties(slot).uuid) for slot in range(slots)]


def keeps_pairs(study: Study, where: Where) -> bool:
    """Return whether all runs of a pair wait for one GPU of several."""
    several = _gpus(study) > 1 and slots_of(study, where) > 1
    return by_clock(study) and where.place is None and several


@functools.cache
def _machine(runtime: RuntimeConfig) -> list[str]:
    """Return the machine settings that a CPU's probe finds, once for all runs of an arm.

    Otherwise each run would probe again, and the two runs of a pair might differ. With a GPU there
    is nothing to probe.
    """
    if runtime.device != "cpu" and torch.cuda.is_available():
        return []
    found, asked = make_plan(runtime).as_dict(), to_dict(runtime)
    return [f"runtime.{name}={found[name]}" for name in asked if asked[name] in (AUTO, 0)]


def _text(study: Study, arm: Arm, out: Path, say: Say) -> list[str]:
    """Return the setting that names an arm's text.

    An embedded corpus is built once for all arms that read the same.
    """
    config = study.config(arm)
    if config.data.source != "embedded":
        with _named(arm):
            open_text(config, out, lambda reads, work: None)
        return []

    def embedded(reads: dict[str, Any], work: Callable[[], dict[str, Any]]) -> None:
        try:
            DataFolder.open(folder).verify()
        except UserError:
            marks = ", capital letters as marks" if config.data.case_ops else ""
            say(
                f"building the embedded text once ({config.model.vocab_size:,} tokens{marks}) for "
                "all runs that read it"
            )
            work()

    with _named(arm):
        reads = embedded_reads(config, given_tokenizer(config))
        folder = out / f"data-{digest_json(reads)[:8]}"
        open_text(config, folder, embedded)
    return [f"data.source={folder.resolve()}"]


def check_arms(study: Study) -> None:
    """Raise UserError, before the first run, for an arm whose text or initial weights a run would
    refuse."""
    for arm in study.all_arms():
        with _named(arm):
            check_text(study.config(arm), lambda text: None)


@contextmanager
def _named(arm: Arm) -> Iterator[None]:
    """Begin the sentence of an error with the name of an arm."""
    try:
        yield
    except UserError as error:
        raise UserError(f"arm '{arm.name}': {error}") from None


def sources_digest() -> str:
    """Return 16 hex digits that identify the version of Fairway's sources."""
    root = Path(fairway.__file__).parent
    files = sorted(root.rglob("*.py"))
    return digest_json({p.relative_to(root).as_posix(): digest_file(p) for p in files})[:16]


def _commit() -> str:
    """Return the commit of the sources, with ', changed' if they differ from it."""
    commit, changed = commit_of_sources()
    return f"{commit}, changed" if changed else commit


def line_of(study: Study, begun: _Begun, job: Job, failed: str, whole_s: float) -> Line:
    """Return the line of a finished run: the facts of its folder, or why it failed."""
    arm, pair = begun.arm, begun.pair
    config = study.config(arm, pair)
    known = _facts(job.folder, failed)
    stages_s = known.pop("stages_s")
    if not failed and study.metric not in known["bpb"]:
        failed = f"it ended without the score '{study.metric}'"
    return Line(
        arm=arm.name,
        pair=pair,
        seed=config.seed,
        planned=planned(arm.name, study.pairs),
        recipe=study.own.recipe,
        common=list(study.common),
        settings=list(arm.settings),
        base=digest(study.config(_BASE)),
        config=digest(config),
        until=study.until,
        clock=config.train.clock,
        commit=begun.commit,
        sources=begun.sources,
        fairway=VERSION,
        torch=torch.__version__,
        whole_s=round(max(whole_s, stages_s), 3),
        failed=failed,
        card=begun.card,
        **known,
    )


def _facts(folder: Path, failed: str) -> dict[str, Any]:
    """Return the recorded facts of a run; unknown ones are None or empty."""
    unknown = ("steps", "tokens", "train_s", "text_bytes", "artifact_bytes", "code_bytes")
    found: dict[str, Any] = dict.fromkeys((*unknown, "peak_bytes"))
    found |= {"data": "", "device": "", "bpb": {}, "stages_s": 0.0}
    try:
        run = RunFolder(folder)
    except UserError:
        return found
    facts, stages = run.all_facts(), run.memory["stages"]
    # Training time is the sum over all calls; other stages count once.
    seconds = run.seconds()
    if "train" in facts:
        seconds["train"] = max(seconds["train"], facts["train"]["seconds"])
    found |= {"device": run.memory.get("device", ""), "stages_s": sum(seconds.values())}
    if failed or "train" not in facts:
        return found
    trained, packed = facts["train"], facts.get("pack", {})
    scores = {n.removeprefix("score."): f for n, f in facts.items() if n.startswith("score.")}
    peaks = [took["peak_bytes"] for took in run.memory_of_stages().values()]
    return {
        **found,
        "data": stages["train"]["reads"]["data"][:16],
        "steps": trained["steps"],
        "tokens": trained["tokens"],
        "train_s": round(trained["seconds"], 3),
        "bpb": {name: score["bpb"] for name, score in scores.items()},
        "text_bytes": next((score["bytes"] for score in scores.values()), None),
        "artifact_bytes": packed.get("bytes"),
        "code_bytes": packed.get("code_bytes"),
        "peak_bytes": max((peak for peak in peaks if peak is not None), default=None),
    }
