"""The inputs of the stages of a run, and the checks that they fit together.

A stage is kept while its inputs are unchanged. Results are composed only if all stages were made
with the settings of the run's record.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairway.audit.stage import audited
from fairway.base.errors import UserError
from fairway.base.files import digest_file
from fairway.base.names import ARTIFACT, CHECKPOINT, WEIGHTS, trail_file
from fairway.base.terminal import command
from fairway.config.settings import Config
from fairway.config.written import to_dict
from fairway.data.folder import DataFolder
from fairway.machine.plan import Plan
from fairway.pipeline.codesize import known_code
from fairway.pipeline.folder import RunFolder
from fairway.pipeline.initial import initial_digest
from fairway.pipeline.order import stages_of
from fairway.pipeline.record import command_of
from fairway.score.accounts import text_faults
from fairway.train.saved import what_trains
from fairway.train.steps import STEPS

# The stage that writes each file that other stages read.
_WRITTEN_BY = {WEIGHTS: "train", ARTIFACT: "pack"}


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """The present inputs of the stages of a run.

    `data` and `plan` are called only if a stage reads them. Every process but the first takes the
    digests of its own files, so a host with other files is noticed.
    """

    config: Config
    folder: RunFolder
    first: bool
    data: Callable[[], DataFolder]
    plan: Callable[[], Plan]
    origin: dict[str, Any] | None

    def of(self, stage: str) -> dict[str, Any]:
        """Return the inputs of a stage by name, ready for JSON."""
        reads = next(s.reads for s in stages_of(self.config) if s.name == stage)
        return {name: self._value(name) for name in reads}

    def _value(self, name: str) -> Any:
        config = self.config
        if name in _WRITTEN_BY:
            return self._digest(name)
        if name == "ledgers":
            # An edited ledger must be read again.
            stages = self.folder.memory["stages"]
            read = {n: record["key"] for n, record in stages.items() if audited(n)}
            found = {n: [key, str(self.folder.changed(n))] for n, key in read.items()}
            # So must edited counts; an honest run has none.
            return {**found, **{fault: [] for fault in self._faults()}}
        values: dict[str, Callable[[], Any]] = {
            # The size of the code at the last packing, until it is packed again.
            "beside": lambda: (self.folder.facts("pack") or {}).get("code_bytes"),
            "code": lambda: known_code(config, self.folder),
            "data": lambda: self.data().digest,
            "init": lambda: initial_digest(config),
            "plan": lambda: self.plan().as_dict(),
            "replay": lambda: replayed(config),
            "sample": lambda: [config.data.val_bytes, config.data.val_tokens],
            "seed": lambda: config.seed,
            "trains": lambda: what_trains(config),
        }
        if name in values:
            return values[name]()
        # The claimed score has no influence on any stage.
        return {n: v for n, v in to_dict(getattr(config, name)).items() if n != "headline"}

    def _faults(self) -> list[str]:
        """Return which scores do not count the text of this run."""
        facts = {n: record["facts"] for n, record in self.folder.memory["stages"].items()}
        scores = {n: score for n, score in facts.items() if n.startswith("score.")}
        return list(text_faults(scores, facts["text"])) if "text" in facts else []

    def _digest(self, file: str) -> str | None:
        if not self.first:
            return digest_file(self.folder.file(file))
        record = self.folder.memory["stages"].get(_WRITTEN_BY[file], {"files": {}})
        known: str | None = record["files"].get(file)
        return known

    def require(self, *but: str) -> None:
        """Raise UserError unless every stage of the config was made with it and its files are
        unchanged. The weights may be missing: nothing reads them after scoring. An audit that is
        still due checks the ledgers itself."""
        for stage in (s.name for s in stages_of(self.config) if s.name not in but):
            if not self.folder.has(stage, self.of(stage)):
                raise UserError(self._missing(stage))
            files = self.folder.memory["stages"][stage]["files"]
            kept = [n for n in files if n != WEIGHTS or self.folder.file(n).exists()]
            if "audit" in but:
                trail = trail_file(stage.removeprefix("score."))
                kept = [name for name in kept if name != trail]
            if kept:
                self.folder.require_unchanged(stage, *kept, again=self._remedy(stage))

    def public(self) -> Config:
        """Return the config for a result, with digests in place of paths."""
        digest = "" if self.config.data.source == "embedded" else self.data().digest
        begun = initial_digest(self.config)
        return public(self.config, digest, replayed(self.config), begun)

    def forget_others(self) -> None:
        """Remove the scores that the settings no longer include."""
        asked = {stage.name for stage in stages_of(self.config)}
        for name in self.folder.all_facts().keys() - asked:
            if name.startswith("score.") or name == "published":
                self.folder.forget(name)

    def require_file(self, name: str, verb: str) -> None:
        """Refuse to continue without a file that another verb writes."""
        path = self.folder.file(name)
        if not path.is_file():
            raise UserError(f"{path} does not exist; run `fairway {verb}` on it first")

    def refuse_unfinished(self) -> None:
        """Refuse a new training if an unfinished one exists."""
        unfinished = self.folder.file(CHECKPOINT).exists()
        if unfinished and not self.folder.is_done("train", self.of("train")):
            raise UserError(
                f"{self.folder.path} holds an unfinished training; add --resume to continue it or "
                "--restart to begin again"
            )

    def require_stage(self, stage: str, reads: dict[str, Any] | None = None) -> None:
        """Refuse to continue unless a stage was done with exactly these settings, or with
        `reads`."""
        path, config = self.folder.path, self.config
        # No command is named after the data stage, and the training command needs its recipe.
        first = stage in ("data", "train")
        verb = "train" if first else stage
        if not self.folder.has(stage, self.of(stage) if reads is None else reads):
            raise UserError(
                f"{path} has no '{stage}' stage made with these settings; run `fairway {verb}` "
                "with them first"
            )
        again = command_of(config, path, self.origin) if first else command(verb, path)
        self.folder.require_unchanged(stage, again=again)

    def _remedy(self, stage: str) -> str:
        """Return the command that makes a stage."""
        if stage == "train":
            return command_of(self.config, self.folder.path, self.origin)
        return command(stage if stage == "pack" else "score", self.folder.path)

    def _missing(self, stage: str) -> str:
        path, record = self.folder.path, self.folder.memory["stages"].get(stage)
        remedy = self._remedy(stage)
        if record is None:
            return f"{path} has no finished '{stage}' stage yet; run `{remedy}` first"
        now = self.of(stage)
        others = [name for name in now if record["reads"].get(name) != now[name]]
        what = " and ".join(others) or "code, of another version of Fairway"
        return f"the '{stage}' stage of {path} was made with other {what}; run `{remedy}` first"


def replayed(config: Config) -> dict[str, Any] | None:
    """Return the plan and the digest of the steps of the run that this run replays, if any."""
    if config.train.clock != "replay":
        return None
    other = RunFolder.existing(Path(config.train.replay))
    if not other.facts("train") or not other.file(STEPS).is_file():
        raise UserError(f"{other.path} has no recorded training to replay")
    other.require_unchanged("train", STEPS)
    return {"plan": other.memory["plan"], "steps": digest_file(other.file(STEPS))}


def public(config: Config, data: str, followed: dict[str, Any] | None, begun: str = "") -> Config:
    """Return a config with digests in place of paths; the embedded text has none."""
    source = f"sha256:{data}" if data else config.data.source
    replay = f"sha256:{followed['steps']}" if followed else ""
    init = f"sha256:{begun}" if begun else ""
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, source=source),
        train=dataclasses.replace(config.train, init=init, replay=replay),
    )
