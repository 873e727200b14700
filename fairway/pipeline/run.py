"""The pipeline: text -> tokens -> model -> artifact -> score, stage by stage in a run folder.

Each method is one stage and one verb of the command line. It reads the files of the stage before,
never its memory, so that a stage can be repeated alone, and what is scored is what was written.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairway.api import TOKENIZER_FILE, load, model_from
from fairway.base.errors import InterruptedRun, UserError
from fairway.base.files import digest_file, write_atomic, write_json
from fairway.base.memory import give_back
from fairway.base.terminal import command
from fairway.config.overrides import override
from fairway.config.settings import Config, config_hash, to_dict
from fairway.data.build import DataFolder, Validation
from fairway.machine.peers import peers
from fairway.machine.plan import Plan, make_plan
from fairway.machine.ranks import Ranks, join_ranks
from fairway.model.gpt import num_parameters
from fairway.pack.model import pack_model
from fairway.pipeline.auditing import AuditStage
from fairway.pipeline.averaging import known_steps, lag_warning
from fairway.pipeline.codesize import known_code, measure_code
from fairway.pipeline.evidence import Evidence
from fairway.pipeline.experts import ExpertStages
from fairway.pipeline.folder import RunFolder, key_of
from fairway.pipeline.inputs import (
    ARTIFACT,
    WEIGHTS,
    Inputs,
    command_of,
    config_of,
    public,
    replayed,
)
from fairway.pipeline.limits import (
    check_later_stages,
    check_learning_time,
    tell_of_size,
    time_budget,
)
from fairway.pipeline.results import RESULTS, compose
from fairway.pipeline.scoring import ScoreStages
from fairway.pipeline.text import open_text
from fairway.quantise.estimate import estimated_total
from fairway.report import write_report
from fairway.score.sliding import text_of
from fairway.train.checkpoint import load_checkpoint, save_checkpoint
from fairway.train.loop import CHECKPOINT, TrainingText, train
from fairway.train.preflight import preflight
from fairway.train.steps import STEPS, Say, read_steps
from fairway.version import VERSION

DATA, REPORT = "data", "report.html"


class Pipeline:
    """A run: a config, its folder, and the stages."""

    def __init__(self, config: Config, folder: RunFolder, say: Say) -> None:
        self.ranks: Ranks = join_ranks()
        self.config, self.folder = config, folder
        # Of many processes only the first speaks.
        self.say: Say = say if self.ranks.first else lambda text: None
        self._source: DataFolder | None = None
        self._plan: Plan | None = None

    @property
    def _inputs(self) -> Inputs:
        """Return what the stages of this run read, for the settings that it has now."""
        first = self.ranks.first
        return Inputs(self.config, self.folder, first, self.data, self.plan, self._replayed)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the folder against other writers; ranks but the first only pass through."""
        if not self.ranks.first:
            yield
            return
        with self.folder.locked():
            yield

    def _propose(self) -> None:
        """Let config and machine plan enter the record once a stage has succeeded with them."""
        self.folder.propose(config=to_dict(self.config), plan=self._keyed_plan())

    def _keyed_plan(self) -> dict[str, Any]:
        return {"key": self._plan_key(), **self.plan().as_dict()}

    def _stage(self, name: str, files: list[str], work: Callable[[], dict[str, Any]]) -> None:
        """Do a stage, unless nothing that it reads has changed; the first process does this."""
        self.folder.stage(name, self._inputs.of(name), files, work, self.say)

    def walk(self, resume: bool = False, restart: bool = False) -> dict[str, Any]:
        """Run every stage in order; return the results, the same on every rank.

        Under `torchrun` all ranks train and score. The first alone packs, writes, and decides what
        is done already; the others wait for its word.
        """
        self.train(resume, restart)
        self.pack()
        self.score()
        self.report()
        return self.results()

    # -----------------------------------------------------------------------------------------
    # The other ranks

    def _share_memory(self) -> None:
        """Let every rank know what rank 0 knows of this run by now."""
        if self.ranks.world > 1:
            own = json.dumps([self.folder.memory, self.folder.proposed])
            self.folder.memory, self.folder.proposed = json.loads(peers().tell(own))

    def _is_due(self, stage: str) -> bool:
        """Return whether rank 0 finds that a stage is to be done.

        Raises UserError on a rank that would read or do something else than rank 0.
        """
        reads = self._inputs.of(stage)
        key, done = key_of(reads), self.ranks.first and self.folder.is_done(stage, reads)
        expected, done = json.loads(peers().tell(json.dumps([key, done])))
        if key != expected:
            raise UserError(
                f"process {self.ranks.rank} has other files or settings for '{stage}' than process "
                "0; all hosts need the same run folder, data, settings and version of Fairway"
            )
        return not done

    # -----------------------------------------------------------------------------------------
    # The machine

    def plan(self) -> Plan:
        """Return what this run computes with: remembered, so that every stage and every later
        process uses the same arithmetic; a replay takes the plan of the run it follows."""
        if self._plan is None:
            self._plan = self._find_plan()
            self._refuse_more_processes_than_gpus(self._plan)
            self._plan.apply()
        return self._plan

    def _refuse_more_processes_than_gpus(self, plan: Plan) -> None:
        gpus = torch.cuda.device_count()
        if plan.device == "cuda" and self.ranks.local >= gpus:
            raise UserError(
                f"process {self.ranks.local} of this host has no GPU, since there are {gpus}; "
                f"start at most --nproc-per-node={gpus}"
            )

    def _find_plan(self) -> Plan:
        key, replayed, memory = self._plan_key(), self._replayed(), self.folder.memory
        begun = memory.get("begun", {}).get("plan")
        for kept in (self.folder.proposed.get("plan"), begun, memory.get("plan")):
            if kept is not None and kept["key"] == key:
                return _plan_of(kept)
        plan = _plan_of(replayed["plan"]) if replayed else make_plan(self.config.runtime)
        self.say(f"machine: {plan.describe()}")
        return plan

    def _plan_key(self) -> str:
        return key_of(to_dict(self.config.runtime), self._replayed())

    def _replayed(self) -> dict[str, Any] | None:
        return replayed(self.config)

    # -----------------------------------------------------------------------------------------
    # Text

    def data(self, build: bool = False) -> DataFolder:
        """Return the tokens to train and score on; only training builds the embedded corpus."""
        if self._source is None:
            self._source = open_text(
                self.config,
                self.folder.file(DATA),
                lambda reads, work: self._embedded(reads, work, build),
            )
        return self._source

    def _validation(self, source: DataFolder) -> Validation:
        data = self.config.data
        return source.sample_validation(data.val_bytes, data.val_tokens)

    def _embedded(
        self, reads: dict[str, Any], work: Callable[[], dict[str, Any]], build: bool
    ) -> None:
        if build:
            self.folder.stage("data", reads, [DATA], work, self.say)
        else:
            self._require("data", reads, verb="train")

    # -----------------------------------------------------------------------------------------
    # Model

    def train(self, resume: bool = False, restart: bool = False) -> dict[str, Any]:
        """Train and write raw and averaged weights; an unfinished run needs a word first."""
        if self.ranks.first:
            self.data(build=True)
            self._refuse_unfinished(resume or restart)
            measure_code(self.config, self.folder, self.say)
            self._propose()
            # Nothing is unfinished once this training is on record.
            self.folder.propose(begun=None)
        self._share_memory()
        source, plan = self.data(), self.plan()
        due, resume = self._is_due("train"), self._can_resume(resume)
        if self.ranks.first:
            self._stage("train", [WEIGHTS, STEPS], lambda: self._train(source, plan, resume))
            self.folder.settle()
            # Not before the training is on record: a disk that fills up now must not cost it.
            self.folder.file(CHECKPOINT).unlink(missing_ok=True)
        elif due:
            self._train(source, plan, resume)
        self._share_memory()
        return self._facts("train")

    def _can_resume(self, wanted: bool) -> bool:
        """Return whether there is a checkpoint to resume from, the same on every rank."""
        found = wanted and self.folder.file(CHECKPOINT).exists()
        found = json.loads(peers().tell(json.dumps(found)))
        if wanted and not found and not self.folder.is_done("train", self._inputs.of("train")):
            self.say(f"{self.folder.path} has no checkpoint yet: the training begins anew")
        return bool(found)

    def _refuse_unfinished(self, told_what_to_do: bool) -> None:
        if told_what_to_do or not self.folder.file(CHECKPOINT).exists():
            return
        if not self.folder.is_done("train", self._inputs.of("train")):
            raise UserError(
                f"{self.folder.path} holds an unfinished training; add --resume to continue it or "
                "--restart to begin again"
            )

    def _facts(self, stage: str) -> dict[str, Any]:
        return dict(self.folder.memory["stages"][stage]["facts"])

    def _require(self, stage: str, reads: dict[str, Any] | None = None, verb: str = "") -> None:
        """Refuse to go on unless a stage was done with exactly these settings."""
        verb = verb or stage
        if not self.folder.has(stage, self._inputs.of(stage) if reads is None else reads):
            raise UserError(
                f"{self.folder.path} has no '{stage}' stage made with these settings; run "
                f"`fairway {verb}` with them first"
            )
        # No command has the name of the data stage, and training needs its recipe.
        first = stage in ("data", "train")
        path = self.folder.path
        again = command_of(self.config, path) if first else command(verb, path)
        self.folder.require_unchanged(stage, again=again)

    def _train(self, source: DataFolder, plan: Plan, resume: bool) -> dict[str, Any]:
        source.verify()
        shards, code_bytes = source.train_shards(), self._code_bytes()
        ids = self._validation(source).ids
        check_later_stages(self.config, len(ids), code_bytes, plan, self.say)
        check_learning_time(self.config, ids, plan, self.ranks)
        known = known_steps(self.config.train)
        self._tell(lag_warning(self.config.optim, known))
        preflight(self.config, shards, self.folder.path, num_parameters(self.config.model), plan)
        text = TrainingText(shards, source.bytes_per_token)
        if self.ranks.first:
            begun = {"config": to_dict(self.config), "plan": self._keyed_plan()}
            self.folder.remember("begun", begun)
        try:
            training = train(
                self.config,
                plan,
                self.ranks,
                text,
                self.folder.path,
                lambda model: estimated_total(model, self.config, code_bytes),
                self.say,
                resume,
            )
        except InterruptedRun:
            # The first to leave ends all: not before rank 0 has saved the state.
            peers().tell("saved")
            raise
        if not self.ranks.first:
            return {}
        average = training.average.average
        tensors = {f"raw.{n}": w.detach() for n, w in training.model.named_parameters()}
        tensors |= {f"ema.{n}": w for n, w in average.items()}
        facts = {"looping": training.model.looping}
        save_checkpoint(self.folder.file(WEIGHTS), tensors, facts)
        steps = read_steps(self.folder.file(STEPS))
        self._tell("" if known else lag_warning(self.config.optim, len(steps)))
        seconds = steps[-1]["seconds"]
        tail = [record["loss"] for record in steps[-max(1, len(steps) // 20) :]]
        return {
            **facts,
            "steps": len(steps),
            "tokens": steps[-1]["tokens"],
            "seconds": seconds,
            "tokens_per_s": steps[-1]["tokens"] / seconds,
            "final_loss": sum(tail) / len(tail),
        }

    def _tell(self, warning: str) -> None:
        if warning:
            self.say(warning)

    def _code_bytes(self) -> int:
        return known_code(self.config, self.folder)

    def _weights(self, kind: str) -> tuple[dict[str, Tensor], bool]:
        """Return the 'raw' or 'ema' weights and whether the recurrence was on."""
        tensors, facts = load_checkpoint(self.folder.file(WEIGHTS))
        state = {n.removeprefix(f"{kind}."): w for n, w in tensors.items() if n.startswith(kind)}
        return state, bool(facts["looping"])

    # -----------------------------------------------------------------------------------------
    # Artifact

    def pack(self) -> dict[str, Any]:
        """Quantise the averaged weights and write the artifact."""
        if self.ranks.first:
            source, plan = self.data(), self.plan()
            self._need(WEIGHTS, "train")
            self._require("train")
            code_bytes = measure_code(self.config, self.folder, self.say, packing=True)
            self._propose()
            reads = {**self._inputs.of("pack"), "beside": code_bytes}

            def work() -> dict[str, Any]:
                return self._pack(source, plan, code_bytes)

            self.folder.stage("pack", reads, [ARTIFACT, TOKENIZER_FILE], work, self.say)
            self.folder.settle()
        self._share_memory()
        return self._facts("pack")

    def _pack(self, source: DataFolder, plan: Plan, code_bytes: int) -> dict[str, Any]:
        give_back()
        config = self.config
        state, looping = self._weights("ema")
        provenance = {
            "recipe": config.recipe,
            "recipe_hash": config_hash(self._public()),
            "seed": config.seed,
            "looping": looping,
            "score": to_dict(config.score),
            "fairway": VERSION,
        }
        write_atomic(self.folder.file(TOKENIZER_FILE), source.tokenizer.data)
        model = model_from(state, config.model, plan, looping)
        path = self.folder.file(ARTIFACT)
        facts = pack_model(config, code_bytes, model, state, source, path, provenance, self.say)
        tell_of_size(config, facts["bytes"] + code_bytes, self.say)
        train_s = (self.folder.facts("train") or {"seconds": 0.0})["seconds"]
        budget = time_budget(config, train_s, facts["seconds"]["calibrate"], self.say)
        return {**facts, "budget": budget}

    # -----------------------------------------------------------------------------------------
    # Score

    def score(self) -> dict[str, Any]:
        """Score raw and averaged weights side by side, then the artifact, as read from disk."""
        if self.ranks.first:
            self.data()
            self._need(ARTIFACT, "pack")
            self._require("train")
            self._require("pack")
            self._measure_for_score()
            self._propose()
        self._share_memory()
        source, plan = self.data(), self.plan()
        source.verify(("val",))
        validation = self._validation(source)
        text = text_of(validation.ids, source.tokenizer.table, validation.bytes)
        ScoreStages(
            *(self.config, self.folder, self.ranks, self._inputs.of, self._is_due),
            *(text, plan, self._weights, self.say),
        ).run()
        if self.ranks.first:
            path = self.folder.file(ARTIFACT)
            ExpertStages(
                self.config,
                self._inputs.of,
                text,
                source.tokenizer,
                lambda: load(path, plan=plan).model,
                digest_file(path),
                self.say,
            ).run(self.folder)
            Evidence(
                self.config, self.folder, self._inputs.of, source, validation, plan, self.say
            ).run()
            self._audit(source, validation, plan)
            self.folder.settle()
        self._share_memory()
        return self._facts("score.sliding")

    def _measure_for_score(self) -> None:
        """Measure the code anew where settings of the score change the bundle."""
        code_bytes, packed = measure_code(self.config, self.folder, self.say), self._facts("pack")
        if code_bytes != packed["code_bytes"]:
            tell_of_size(self.config, packed["bytes"] + code_bytes, self.say)

    def audit(self) -> dict[str, Any]:
        """Audit a scored run once more if anything that its audit reads has changed."""
        self._inputs.require("audit")
        self._measure_for_score()
        self._propose()
        self._audit(self.data(), self._validation(self.data()), self.plan())
        self.folder.settle()
        return self._facts("audit")

    def _audit(self, source: DataFolder, validation: Validation, plan: Plan) -> None:
        """Check the ledgers and budgets of this run, and probe what scored its artifact."""
        give_back()
        AuditStage(
            self.config,
            self._code_bytes(),
            self._inputs.of("audit"),
            np.asarray(validation.ids, np.int64),
            source.tokenizer,
            lambda: load(self.folder.file(ARTIFACT), plan=plan).model,
            self.say,
        ).run(self.folder)

    # -----------------------------------------------------------------------------------------
    # Results and report

    def report(self) -> Path:
        """Write results.json and the report page; return the page's path."""
        if not self.ranks.first:
            return self.folder.file(REPORT)
        results = self.results()
        self.folder.require_unchanged("train", STEPS)
        steps = read_steps(self.folder.file(STEPS))
        write_json(self.folder.file(RESULTS), results)
        self.folder.remember("results", digest_file(self.folder.file(RESULTS)))
        with self.folder.reading():
            return write_report(self.folder.path, results, steps, self.folder.file(REPORT))

    def results(self) -> dict[str, Any]:
        """Return everything known of this run, in the versioned schema of results.json."""
        self._inputs.require()
        with self.folder.reading():
            plan = self.plan().as_dict()
            return compose(self.folder, self._public(), plan, self._code_bytes())

    def _public(self) -> Config:
        """Return the config with digests in place of paths: what a result may say of it."""
        config = self.config
        digest = "" if config.data.source == "embedded" else self.data().digest
        return public(config, digest, self._replayed())

    def _need(self, file: str, verb: str) -> None:
        if not self.folder.file(file).is_file():
            raise UserError(
                f"{self.folder.file(file)} does not exist; run `fairway {verb}` on it first"
            )


def _plan_of(memory: dict[str, Any]) -> Plan:
    return Plan(**{name: value for name, value in memory.items() if name != "key"})


def open_run(path: Path, overrides: list[str], say: Say) -> Pipeline:
    """Return the pipeline of an existing run folder, its config changed by overrides."""
    folder = RunFolder.existing(path)
    return Pipeline(override(config_of(folder), overrides), folder, say)
