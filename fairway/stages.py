"""The run folder: stages cached by the digests of what they read, one writer at a time.

`run.json` is the folder's memory: the config, the machine plan, and for every finished stage its
key (a digest of its inputs), the digests of its files, its facts and its seconds. It carries its
own digest, so that one check refuses every kind of damage.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fairway.errors import UserError
from fairway.files import digest_bytes, digest_file, read_json, write_json
from fairway.version import VERSION

SCHEMA = 1
MEMORY = "run.json"


def key_of(*parts: Any) -> str:
    """Return a digest of JSON-able parts, with Fairway's version: what a stage depends on."""
    text = json.dumps([VERSION, *parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _digest_of(path: Path) -> str | None:
    """Return the digest of a file, or of all files in a folder; None if there is neither."""
    if path.is_dir():
        inside = sorted(item for item in path.rglob("*") if item.is_file())
        return key_of([[item.relative_to(path).as_posix(), digest_file(item)] for item in inside])
    return digest_file(path) if path.is_file() else None


def _digest(memory: dict[str, Any]) -> str:
    return digest_bytes(json.dumps(memory, sort_keys=True).encode())


class RunFolder:
    """One run's folder and its memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.memory = self._recall()

    def _recall(self) -> dict[str, Any]:
        """Return what run.json holds, without its digest; an empty memory if there is none."""
        file = self.path / MEMORY
        if not file.exists():
            return {"schema": SCHEMA, "stages": {}}
        memory = read_json(file)
        schema = memory.get("schema") if isinstance(memory, dict) else None
        if schema != SCHEMA:
            raise UserError(
                f"{file} has schema {schema}, this Fairway reads {SCHEMA}; choose another --out"
            )
        if memory.pop("digest", None) != _digest(memory):
            raise UserError(
                f"{file} is damaged: its content does not match its digest; delete it and the "
                "stages run again"
            )
        return dict(memory)

    @classmethod
    def existing(cls, path: Path) -> "RunFolder":
        """Return a run folder that must be there already."""
        if not (path / MEMORY).is_file():
            raise UserError(f"{path} is not a run folder (no {MEMORY}); make one: fairway run demo")
        return cls(path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder against a second writer, or refuse at once."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file; name a folder with --out")
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"{self.path} is being written by another process; wait for it, or choose another "
                "--out"
            ) from None
        try:
            # Another process may have finished stages between our reading and our turn.
            self.memory = self._recall()
            yield
        finally:
            lock.release()

    def file(self, name: str) -> Path:
        """Return the path of a file of this folder."""
        return self.path / name

    def remember(self, name: str, value: Any) -> None:
        """Keep a JSON-able value under a name; what is known already is not written again."""
        if name in self.memory and self.memory[name] == value:
            return
        self.memory[name] = value
        write_json(self.path / MEMORY, {**self.memory, "digest": _digest(self.memory)})

    def forget(self, stage: str) -> None:
        """Drop what is known of a stage that is no longer asked for."""
        stages = {name: kept for name, kept in self.memory["stages"].items() if name != stage}
        self.remember("stages", stages)

    def facts(self, stage: str) -> dict[str, Any] | None:
        """Return the facts of a finished stage, or None."""
        record = self.memory["stages"].get(stage)
        return None if record is None else dict(record["facts"])

    def seconds(self) -> dict[str, float]:
        """Return the seconds that each finished stage took when it last ran."""
        return {name: record["seconds"] for name, record in self.memory["stages"].items()}

    def is_done(self, stage: str, key: str) -> bool:
        """Return whether a stage finished with this key and its files are still what they were."""
        return self.has_key(stage, key) and self.changed(stage) is None

    def has_key(self, stage: str, key: str) -> bool:
        """Return whether a stage finished with this key, whatever became of its files."""
        record = self.memory["stages"].get(stage)
        return record is not None and record["key"] == key

    def changed(self, stage: str) -> Path | None:
        """Return the first file of a finished stage that is not what it wrote, or None."""
        files = self.memory["stages"][stage]["files"]
        paths = {self.file(name): digest for name, digest in files.items()}
        return next((path for path, d in paths.items() if _digest_of(path) != d), None)

    def stage(
        self,
        name: str,
        key: str,
        files: list[str],
        work: Callable[[], dict[str, Any]],
        say: Callable[[str], None],
    ) -> dict[str, Any]:
        """Return a stage's facts: those remembered if nothing it reads has changed, else new.

        `files` are the files, or folders of files, that the stage writes.
        """
        if self.is_done(name, key):
            say(f"{name}: unchanged, kept")
            return dict(self.memory["stages"][name]["facts"])
        start_s = time.perf_counter()
        facts = work()
        record = {
            "key": key,
            "files": {file: _digest_of(self.file(file)) for file in files},
            "facts": facts,
            "seconds": time.perf_counter() - start_s,
        }
        self.remember("stages", {**self.memory["stages"], name: record})
        return facts
