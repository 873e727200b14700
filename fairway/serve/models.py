"""The served models: artifacts, the weights of a run before packing, and recorded costs of stages
of a run.

All models compute on one thread, one request at a time, with one machine plan.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from fairway.api import LanguageModel, fitting_tokenizer, load, model_from
from fairway.base.errors import UserError
from fairway.base.files import digest_file, missing
from fairway.base.mistaken import artifact_at
from fairway.base.names import ARTIFACT, WEIGHTS, recorded_file
from fairway.config.settings import RuntimeConfig
from fairway.data.folder import beginnings
from fairway.pipeline.folder import MEMORY, RunFolder
from fairway.pipeline.record import config_of
from fairway.pipeline.recorded import DOCUMENT_BYTES, DOCUMENTS, RECORDED, recorded
from fairway.pipeline.text import open_text
from fairway.pipeline.work import DATA
from fairway.score.costs import document_costs
from fairway.serve.errors import RequestError
from fairway.serve.watching import Watching
from fairway.train.saved import reading, weights_of

# Weights of a run besides its artifact, by the word after the run's name.
STAGES = {"raw": "raw", "average": "ema"}
# The most requests that may wait for the model.
MOST_WAITING = 16
# The stages whose costs a run stores, in the words of the page.
_KEPT = {
    "sliding": "sliding window",
    "documents": "each document alone, no learning",
    "ttt": "test-time training",
    "mixture": "model with experts",
}

T = TypeVar("T")


@dataclass(frozen=True)
class Served:
    """One model with its name: an artifact, alone or with an adapter, or the weights of a stage of
    its run.
    """

    name: str
    file: Path
    artifact: LanguageModel
    # The digest of the artifact and its adapter as loaded: the files may be replaced later.
    digest: str
    stage: str = ""
    adapter: Path | None = None

    @property
    def language(self) -> LanguageModel:
        """Return the model; weights of a stage are read on first use."""
        return self._of_stage[0] if self.stage else self.artifact

    @property
    def fingerprint(self) -> str:
        """Return a text that identifies these weights."""
        return f"fairway-{self._of_stage[1] if self.stage else self.digest}"

    @cached_property
    def _of_stage(self) -> tuple[LanguageModel, str]:
        whole, path = self.artifact, self.file.parent / WEIGHTS
        if not path.is_file():
            raise UserError(
                f"the weights of '{self.name}' are gone: {path} {missing(path)}; ask another model"
            )
        digest = digest_file(path)[:12]
        with reading(path):
            state, looping = weights_of(path, STAGES[self.stage])
            model = model_from(state, whole.model.config, whole.plan, looping)
        language = LanguageModel(model, whole.tokenizer, whole.score_config, whole.plan)
        return language, f"{digest}-{self.stage}"

    @property
    def described(self) -> str:
        """Return its kind, in a few words."""
        kinds = {"raw": "last weights", "average": "averaged weights"}
        return kinds.get(self.stage, "with adapter" if self.adapter else "artifact")

    def costs(self, text: str, watching: Watching) -> dict[str, Any]:
        """Return the cost of each token of a text by this model, as `document_costs` does."""
        model = self.language
        return document_costs(text, model.costs(text, witness=watching), model.tokenizer)


@dataclass(frozen=True)
class Record:
    """The costs that a stage of a run stored for the tokens of a few documents, by their texts.

    It is not a model: it computes nothing, and has no costs of other texts.
    """

    name: str
    described: str
    by_text: dict[str, dict[str, Any]]

    def costs(self, text: str, watching: Watching) -> dict[str, Any]:
        """Return the stored costs of a document's tokens; RequestError for any other text."""
        if text not in self.by_text:
            raise RequestError(
                f"'{self.name}' is a record of {len(self.by_text)} validation documents and has no "
                "costs of this text; choose a document under 'Text from', or a model"
            )
        return self.by_text[text]


class Desk:
    """All served models and records, and the one thread on which the models compute, for one
    request at a time.
    """

    def __init__(
        self, served: Sequence[Served], runs: Sequence[Path], records: Sequence[Record] = ()
    ) -> None:
        self.served = {one.name: one for one in served}
        self.records = {one.name: one for one in records if one.name not in self.served}
        self._runs = runs
        self._worker = ThreadPoolExecutor(1, "fairway")
        self._lock = asyncio.Lock()
        self._waiting = 0
        self.ending = threading.Event()

    @property
    def first(self) -> Served:
        """Return the model for requests that name none."""
        return next(iter(self.served.values()))

    def find(self, name: str | None) -> Served:
        """Return a model by its name; RequestError (404) for an unknown one."""
        if name is None:
            return self.first
        if name in self.records:
            raise RequestError(
                f"'{name}' is a record of costs and cannot compute; choose a model", 400, "model"
            )
        if name not in self.served:
            known = ", ".join(self.served)
            raise RequestError(
                f"there is no model '{name[:100]}'; there are {known}", 404, "model",
                "model_not_found",
            )  # fmt: skip
        return self.served[name]

    def side(self, name: str | None) -> Served | Record:
        """Return a model or a record by its name; RequestError like `find`."""
        return self.records[name] if name in self.records else self.find(name)

    async def run(self, work: Callable[..., T], *args: Any) -> T:
        """Return the result of a function that runs on the thread of the models."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._worker, work, *args)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Hold the models for one request; RequestError (503) if too many requests wait."""
        if self._waiting >= MOST_WAITING:
            raise RequestError(
                f"{self._waiting} requests already wait for the model; try again later", 503,
                None, "busy",
            )  # fmt: skip
        self._waiting += 1
        try:
            async with self._lock:
                yield
        finally:
            self._waiting -= 1

    def documents(self) -> list[str]:
        """Return the beginnings of some validation documents: those of the records, else of the
        first run that has its text.

        Raises UserError with the reason if no run has it.
        """
        if kept := [text for one in self.records.values() for text in one.by_text]:
            return list(dict.fromkeys(kept))
        reason = UserError("an artifact has no validation text; name the folder of its run")
        for run in self._runs:
            try:
                return _documents(run)
            except UserError as error:
                reason = error
        raise reason


def _documents(run: Path) -> list[str]:
    data = (config := config_of(RunFolder.existing(run))).data
    source = open_text(config, run / DATA, lambda reads, work: None)
    found = source.sample_validation(data.val_bytes, data.val_tokens).documents
    return beginnings(found, DOCUMENTS, DOCUMENT_BYTES)


def open_desk(
    paths: Sequence[Path],
    tokenizer: Path | None,
    runtime: RuntimeConfig,
    adapter: Path | None = None,
) -> Desk:
    """Return the desk of some runs or artifacts; their artifacts are loaded and checked now.

    The first is served with an `adapter`, too. Raises UserError for anything missing or damaged,
    and for one artifact named twice.
    """
    files: list[Path] = []
    # What does not fit is told before the first model is loaded.
    for path in paths:
        file = artifact_at(path)
        if any(other.resolve() == file.resolve() for other in files):
            raise UserError(f"{path} is named twice; name two different runs or artifacts")
        fitting_tokenizer(file, tokenizer, None if files else adapter)
        files.append(file)
    served: list[Served] = []
    for file in files:
        plan = served[0].artifact.plan if served else None
        model = load(file, tokenizer=tokenizer, runtime=runtime, plan=plan)
        name, digest = _name(file, [other.name for other in served]), digest_file(file)[:12]
        one = Served(name, file, model, digest)
        served.append(one)
        if adapter and len(served) == 1:
            tuned = load(file, tokenizer=tokenizer, adapter=adapter, plan=model.plan)
            digest += f"-{digest_file(adapter)[:12]}"
            # A stage or a record may have the adapter's name.
            own = (
                f"adapter-{adapter.stem}" if adapter.stem in (*STAGES, *RECORDED) else adapter.stem
            )
            served.append(Served(f"{name}:{own}", file, tuned, digest, adapter=adapter))
        if (file.parent / MEMORY).is_file() and (file.parent / WEIGHTS).is_file():
            served += [replace(one, name=f"{one.name}:{stage}", stage=stage) for stage in STAGES]
    artifacts = [one for one in served if not one.stage]
    stages = [one for one in served if one.stage]
    folders = dict.fromkeys(one.file.parent for one in artifacts)
    runs = [folder for folder in folders if (folder / MEMORY).is_file()]
    records = [record for one in artifacts if not one.adapter for record in _records(one)]
    return Desk([*artifacts, *stages], runs, records)


def _records(one: Served) -> Iterator[Record]:
    """Yield the records of an artifact's run that are of this artifact: the run may have been
    packed again since. Raises UserError for a damaged one.
    """
    if not (one.file.parent / MEMORY).is_file():
        return
    folder = RunFolder(one.file.parent)
    for stage in RECORDED:
        scored = folder.facts(f"score.{stage}")
        if scored is None or not scored["file_digest"].startswith(one.digest):
            continue
        # A copied folder may lack these files; its artifact is whole without them.
        if not folder.file(recorded_file(stage)).is_file():
            continue
        if kept := recorded(folder, stage, one.artifact.tokenizer):
            yield Record(f"{one.name}:{stage}", _KEPT[stage], kept)


def _name(file: Path, taken: Sequence[str]) -> str:
    """Return a unique name for an artifact: its own, or its folder's if it has the usual one."""
    whole = file.resolve()
    name = whole.parent.name if whole.name == ARTIFACT else whole.stem
    name = name or "model"
    return next(word for word in (name, *(f"{name}-{n}" for n in range(2, 9))) if word not in taken)
