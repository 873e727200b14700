"""What the verbs of a run share: its config and folder, the inputs of stages, and doing stages."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fairway.base.names import CHECKPOINT
from fairway.config.settings import Config
from fairway.config.written import to_dict
from fairway.data.build import DataFolder
from fairway.machine.plan import Plan
from fairway.machine.ranks import Ranks, join_ranks
from fairway.pipeline.codesize import known_code
from fairway.pipeline.folder import RunFolder
from fairway.pipeline.inputs import Inputs
from fairway.pipeline.live import FOLDER as LIVE
from fairway.pipeline.live import Live, Watching
from fairway.pipeline.memory import Watch
from fairway.pipeline.order import Stage, stages_of
from fairway.pipeline.planning import plan_key, plan_of_run
from fairway.pipeline.spending import WatchedRun, done_watched, files_of
from fairway.pipeline.text import open_text
from fairway.pipeline.together import is_due, told
from fairway.train.steps import Say, nobody

DATA = "data"


class Work:
    """A config, the run folder, and how a stage is done there.

    `origin` is the source of a recipe that is not Fairway's: see `fairway.recipes.find`.
    `watching` says how the training is observed.
    """

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        say: Say,
        origin: dict[str, Any] | None = None,
        watching: Watching | None = None,
    ) -> None:
        self.ranks: Ranks = join_ranks()
        self.config, self.folder, self.origin = config, folder, origin
        # Only the first process prints.
        self.say: Say = say if self.ranks.first else lambda text: None
        self.live: Live | None = None
        if watching is not None and self.ranks.first:
            self.live = Live(watching, config, folder.file(LIVE), say)
        self._source: DataFolder | None = None
        self._plan: Plan | None = None

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Lock the folder against other writers; only the first rank does so."""
        if not self.ranks.first:
            yield
            return
        with self.folder.locked():
            try:
                yield
            finally:
                if self.live:
                    self.live.close()

    # -----------------------------------------------------------------------------------------
    # The inputs of the stages

    def data(self, build: bool = False) -> DataFolder:
        """Return the tokens for training and scoring; only training builds the embedded corpus."""

        def embedded(reads: dict[str, Any], work: Callable[[], dict[str, Any]]) -> None:
            if build:
                self.folder.stage("data", reads, [DATA], work, self.say)
            else:
                self._inputs.require_stage("data", reads)

        if self._source is None:
            self._source = open_text(self.config, self.folder.file(DATA), embedded)
        return self._source

    def plan(self) -> Plan:
        """Return the machine plan of this run, applied to this process."""
        if self._plan is None:
            self._plan = plan_of_run(self.config, self.folder, self.ranks, self.say)
        return self._plan

    @property
    def _inputs(self) -> Inputs:
        first = self.ranks.first
        return Inputs(self.config, self.folder, first, self.data, self.plan, self.origin)

    def _run(self, resume: bool = False) -> WatchedRun:
        return WatchedRun(
            config=self.config,
            public=self._inputs.public(),
            plan=self.plan(),
            ranks=self.ranks,
            source=self.data(),
            folder=self.folder.path,
            code_bytes=known_code(self.config, self.folder),
            facts=self.folder.all_facts,
            say=self.say,
            begin=functools.partial(self._begin, resume),
            beside=self.live.beside if self.live else nobody,
            live=self.live,
            resume=resume,
        )

    # -----------------------------------------------------------------------------------------
    # Doing them

    def _do(self, run: WatchedRun, wanted: Callable[[Stage], bool], **reads: Any) -> None:
        """Do those of some stages whose inputs have changed."""
        for stage in filter(wanted, stages_of(self.config)):
            if not (stage.together or self.ranks.first):
                continue
            read = self._inputs.of(stage.name)
            do = functools.partial(done_watched, stage.name, run)
            due = not stage.together or is_due(self.folder, self.ranks, stage.name, read)
            if self.ranks.first:
                read |= reads
                watch = Watch(self.config, run.plan.device)
                work = functools.partial(watch.done, stage.name, run, do)
                self.folder.stage(stage.name, read, files_of(stage), work, self.say, watch)
            elif due:
                do()

    def _settings(self) -> dict[str, Any]:
        plan = {"key": plan_key(self.config), **self.plan().as_dict()}
        return {"config": to_dict(self.config), "plan": plan, "origin": self.origin}

    def _propose(self) -> None:
        """Write config and machine plan to the record after a stage has succeeded with them."""
        self.folder.propose(**self._settings())

    def _begin(self, resume: bool) -> None:
        if self.live:
            self.live.open(self.data().tokenizer, resume)
        if self.ranks.first:
            self.folder.remember("begun", self._settings())

    def _checkpoint(self) -> bool:
        """Return whether a checkpoint exists to resume from; the same on every rank."""
        found = bool(told(self.folder.file(CHECKPOINT).exists()))
        if not found and not self.folder.is_done("train", self._inputs.of("train")):
            self.say(f"{self.folder.path} has no checkpoint yet: training starts at step 1")
        return found

    def _facts(self, stage: str) -> dict[str, Any]:
        return dict(self.folder.memory["stages"][stage]["facts"])
