"""The run folder: stages cached by the digests of their inputs, with one writer at a time.

`run.json` is the memory of the folder. For each finished stage it holds the inputs (settings, and
digests of files), the digests of its files, its facts and its seconds. It also holds the config and
the machine plan, which are written together with the first stage that succeeds with them. It
contains its own digest, so one check finds every kind of damage.
"""

import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout

from fairway.base.errors import UserError
from fairway.base.files import digest_file, digest_json, read_json, write_json
from fairway.base.names import ARTIFACT
from fairway.base.outputs import require_folder
from fairway.pipeline.facts import check_memory
from fairway.version import VERSION

SCHEMA = 2
MEMORY, LOCK = "run.json", ".lock"
# The temporary files of a killed process: see `fairway.base.files`.
_LEFT = re.compile(r"\.(?P<name>.+)\.[a-z0-9_]{8}(\.part|\.old)?")
# The files of a run folder.
_OURS = re.compile(
    r"(run|results|report)\.json|report\.html|(weights|checkpoint)\.safetensors|steps\.jsonl|"
    r"artifact\.fwy|proof\.fwp|costs(-\w+)?\.json|tokenizer\.model|ledger-\w+\.jsonl\.gz|data"
)


def key_of(*parts: Any) -> str:
    """Return a digest of JSON-able parts and of Fairway's version: the key of a stage's inputs."""
    return digest_json([VERSION, *parts])


def run_at(path: Path) -> Path:
    """Return the folder of the run if the path is its artifact; any other path unchanged."""
    named = path.name == ARTIFACT and path.is_file() and (path.parent / MEMORY).is_file()
    return path.parent if named else path


def _digest_of(path: Path) -> str | None:
    """Return the digest of a file, or of all files in a folder; None if neither exists."""
    if path.is_dir():
        inside = sorted(item for item in path.rglob("*") if item.is_file())
        return key_of([[item.relative_to(path).as_posix(), digest_file(item)] for item in inside])
    return digest_file(path) if path.is_file() else None


@contextmanager
def locked(path: Path, wait_s: float = 0.0) -> Iterator[None]:
    """Lock a folder against a second writer; create it if it is missing; refuse after `wait_s`."""
    require_folder(path, "copy the run to another place, or name one with --out")
    path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path / LOCK)
    try:
        lock.acquire(timeout=wait_s)
    except Timeout:
        raise UserError(
            f"{path} is being written by another process; wait for it, or choose another --out"
        ) from None
    try:
        yield
    finally:
        lock.release()


def sweep(path: Path, ours: re.Pattern[str]) -> None:
    """Remove the temporary files of killed writers from a folder whose lock is held."""
    for left in path.iterdir():
        match = _LEFT.fullmatch(left.name)
        if match and ours.fullmatch(match["name"]):
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left)
            else:
                left.unlink()


class Watched(Protocol):
    """Gives the memory of the last work: `need_bytes` (planned), `peak_bytes` (measured)."""

    facts: dict[str, int | None]


class RunFolder:
    """The folder of a run and its memory.

    `proposed` holds facts that are written with the next stage that succeeds: see `propose`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.memory = self._recall()
        self.proposed: dict[str, Any] = {}

    def _recall(self) -> dict[str, Any]:
        """Return the content of run.json without its digest; an empty memory if the file is
        missing."""
        file = self.path / MEMORY
        if not file.exists():
            return {"schema": SCHEMA, "stages": {}}
        memory = read_json(file)
        schema = memory.get("schema") if isinstance(memory, dict) else None
        if schema != SCHEMA:
            raise UserError(
                f"{file} has schema {schema}, this Fairway reads {SCHEMA}; choose another --out"
            )
        if memory.pop("digest", None) != digest_json(memory):
            raise UserError(
                f"{file} is damaged: its content does not match its digest; delete it and the "
                "stages run again"
            )
        check_memory(memory, str(file))
        return dict(memory)

    @classmethod
    def existing(cls, path: Path) -> "RunFolder":
        """Return a run folder that must exist already."""
        if path.is_file():
            raise UserError(
                f"{path} is a file, but this command needs the folder of its run (with {MEMORY}); "
                "an artifact alone can be scored on texts, sampled, exported and unpacked"
            )
        if not (path / MEMORY).is_file():
            raise UserError(
                f"{path} has no finished stage yet; run the command that began it again, with "
                "--resume"
                if (path / LOCK).is_file()
                else f"{path} is not a run folder (no {MEMORY}); make one: fairway run demo"
            )
        return cls(path)

    def is_begun(self) -> bool:
        """Return whether a command has begun a run here, even if it ended early."""
        return (self.path / MEMORY).is_file() or (self.path / LOCK).is_file()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder against a second writer, or refuse at once; remove files of killed
        writers."""
        with locked(self.path):
            # Another process may have finished stages between our reading and our lock.
            self.memory = self._recall()
            sweep(self.path, _OURS)
            yield

    def file(self, name: str) -> Path:
        """Return the path of a file of this folder."""
        return self.path / name

    def propose(self, **facts: Any) -> None:
        """Let the next stage that succeeds write these facts, or the verb at its end.

        A refusal, a failure or a kill before that leaves the memory unchanged. The value None
        removes a name from the memory.
        """
        self.proposed |= facts

    def settle(self) -> None:
        """Write the proposed facts, after all stages of a verb succeeded with them."""
        self._keep()

    def remember(self, name: str, value: Any) -> None:
        """Store a JSON-able value under a name; an equal value is not written again."""
        self._write({**self.memory, name: value})

    def forget(self, stage: str) -> None:
        """Remove the entry of a stage that the settings no longer include."""
        stages = self.memory["stages"]
        if stage in stages:
            self._keep({name: kept for name, kept in stages.items() if name != stage})

    def _keep(self, stages: Mapping[str, Any] | None = None) -> None:
        """Write stages (by default those already known) together with the proposed facts."""
        known = self.memory["stages"] if stages is None else stages
        memory = {**self.memory, **self.proposed, "stages": known}
        self._write({name: value for name, value in memory.items() if value is not None})

    def _write(self, memory: dict[str, Any]) -> None:
        if memory != self.memory:
            write_json(self.path / MEMORY, {**memory, "digest": digest_json(memory)})
            self.memory = memory

    def facts(self, stage: str) -> dict[str, Any] | None:
        """Return the facts of a finished stage, or None."""
        record = self.memory["stages"].get(stage)
        return None if record is None else dict(record["facts"])

    def all_facts(self) -> dict[str, dict[str, Any]]:
        """Return the facts of every finished stage, by name."""
        return {name: dict(record["facts"]) for name, record in self.memory["stages"].items()}

    def seconds(self) -> dict[str, float]:
        """Return the seconds that each finished stage took when it last ran."""
        return {name: record["seconds"] for name, record in self.memory["stages"].items()}

    def memory_of_stages(self) -> dict[str, dict[str, int | None]]:
        """Return the planned and the peak memory of each stage, where known."""
        stages = self.memory["stages"].items()
        return {name: dict(record["memory"]) for name, record in stages if "memory" in record}

    def is_done(self, stage: str, reads: Mapping[str, Any]) -> bool:
        """Return whether a stage finished with these inputs and its files are unchanged."""
        return self.has(stage, reads) and self.changed(stage) is None

    def has(self, stage: str, reads: Mapping[str, Any]) -> bool:
        """Return whether a stage finished with these inputs, even if its files have changed."""
        record = self.memory["stages"].get(stage)
        return record is not None and record["key"] == key_of(reads)

    def changed(self, stage: str, *names: str) -> Path | None:
        """Return the first file of a finished stage (of some files, by default of all) that has
        changed, or None."""
        files = self.memory["stages"][stage]["files"]
        paths = {self.file(n): digest for n, digest in files.items() if not names or n in names}
        return next((path for path, d in paths.items() if _digest_of(path) != d), None)

    def require_unchanged(self, stage: str, *names: str, again: str = "") -> None:
        """Raise UserError if files of a finished stage (by default any file) have changed.

        `again` is the command that writes them again, if its name differs from the stage's.
        """
        changed = self.changed(stage, *names)
        if changed and stage == "train" and "begun" in self.memory:
            raise UserError(f"{self.path} holds an unfinished training; run it with --resume")
        if changed:
            what = "is not what was written (it is damaged, or was edited)"
            raise UserError(
                f"{changed} {what if changed.exists() else 'is gone'}; run "
                f"`{again or f'fairway {stage}'}` again"
            )

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Turn errors of reading a malformed memory into one sentence."""
        try:
            yield
        except UserError:
            raise
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise UserError(
                f"{self.path / MEMORY} lacks facts of a finished run ({error!r}); delete it, "
                "then the stages run again"
            ) from None

    def stage(
        self,
        name: str,
        reads: Mapping[str, Any],
        files: list[str],
        work: Callable[[], dict[str, Any]],
        say: Callable[[str], None],
        watch: Watched | None = None,
    ) -> dict[str, Any]:
        """Return the facts of a stage: the stored ones if its inputs are unchanged, else new ones.

        `reads` holds the settings and digests of files that decide the result; `files` are the
        files, or folders of files, that the stage writes. The memory of the work, from a `watch`,
        is stored beside the seconds.
        """
        if self.is_done(name, reads):
            say(f"{name}: unchanged, kept")
            return dict(self.memory["stages"][name]["facts"])
        start_s = time.perf_counter()
        facts = work()
        record = {
            "key": key_of(reads),
            "reads": dict(reads),
            "files": {file: _digest_of(self.file(file)) for file in files},
            "facts": facts,
            "seconds": time.perf_counter() - start_s,
        }
        if watch is not None:
            record["memory"] = dict(watch.facts)
        self._keep({**self.memory["stages"], name: record})
        return facts
