"""What a bundle does: train, pack and score from a data folder, without a run folder's memory.

The same functions in the same order as `fairway run`, hence the same bits under `train.clock`
steps or replay. It writes step records, the artifact and score.json, and never a file that is
there already. `fairway bundle` puts this module and what it needs into one file.
"""

import argparse
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fairway.api import ARTIFACT_FILE, model_from
from fairway.base.errors import UserError
from fairway.base.files import digest_file, read_json, write_json
from fairway.config.settings import Config, config_hash, to_dict
from fairway.data.folder import DataFolder
from fairway.machine.plan import Plan, make_plan
from fairway.machine.ranks import Ranks, join_ranks
from fairway.model.gpt import GPT, num_parameters
from fairway.pack.artifact import load_artifact
from fairway.pack.model import pack_model
from fairway.quantise.estimate import counted, estimated_total
from fairway.score.evaluation import Evaluation
from fairway.score.experts.evaluate import evaluate_mixture
from fairway.score.ledger import Score, Text
from fairway.score.sliding import evaluate_frozen, text_of
from fairway.score.ttt import evaluate_ttt
from fairway.score.windows import usable_targets
from fairway.train.loop import Training, TrainingText, train
from fairway.train.preflight import preflight
from fairway.train.steps import Say
from fairway.version import VERSION

SCORE_FILE = "score.json"


def main(config: Config, bundle_bytes: int, seed: int, text: str, clock: str) -> None:
    """Read `DATA OUT [--seed N] [--replay RUN] [--dry-run]` and do all of it.

    Told are the bytes of the file that carries this program, and what may be another one in every
    bundle of it: seed, `data.source` and `train.clock`.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("out")
    parser.add_argument("--seed", type=int, default=seed)
    parser.add_argument("--replay", default="")
    parser.add_argument("--dry-run", action="store_true")
    given = parser.parse_args()
    data, loop = replace(config.data, source=text), replace(config.train, clock=clock)
    config = replace(config, seed=given.seed, data=data, train=loop)
    ranks = join_ranks()
    say: Say = (lambda text: print(text, flush=True)) if ranks.first else (lambda text: None)
    config, plan, digest = _driven(config, given.replay)
    plan.apply()
    source = DataFolder.open(Path(given.data))
    say(f"{config.recipe}, seed {config.seed}, on {source.digest[:16]}: {plan.describe()}")
    if not given.dry_run:
        code_bytes = counted(config.pack, bundle_bytes)
        Solo(config, code_bytes, plan, ranks, source, Path(given.out), say, digest).walk()


def _driven(config: Config, followed: str) -> tuple[Config, Plan, str]:
    """Return the config and the machine plan, those of a followed run if there is one, and the
    digest of its steps."""
    if not followed:
        return config, make_plan(config.runtime), ""
    run = Path(followed)
    memory = read_json(run / "run.json")["plan"]
    plan = Plan(**{name: value for name, value in memory.items() if name != "key"})
    train = replace(config.train, clock="replay", replay=followed)
    return replace(config, train=train), plan, digest_file(run / "steps.jsonl")


class Solo:
    """One run from data to score; see the module's text."""

    def __init__(
        self,
        config: Config,
        code_bytes: int,
        plan: Plan,
        ranks: Ranks,
        source: DataFolder,
        out: Path,
        say: Say,
        replayed: str,
    ) -> None:
        self.config, self.plan, self.ranks, self.source = config, plan, ranks, source
        self.code_bytes = code_bytes
        self.out, self.say, self.replayed = out, say, replayed
        self.artifact = out / ARTIFACT_FILE
        self.stages: dict[str, dict[str, Any]] = {}

    def walk(self) -> None:
        """Train, pack, score, and write what came of it."""
        if self.ranks.first:
            self.out.mkdir(parents=True)
        self.ranks.broadcast(0.0)
        # What is too short to be scored must be told now, not after the training.
        data = self.config.data
        validation = self.source.sample_validation(data.val_bytes, data.val_tokens)
        score = self.config.score
        usable_targets(len(validation.ids), score.seq_len, score.truncate)
        training = self._train()
        seconds = training.clock.elapsed_s
        if self.ranks.first:
            seconds += self._pack(training)
        del training
        self.ranks.broadcast(0.0)
        text = text_of(validation.ids, self.source.tokenizer.table, validation.bytes)
        self._score(text)
        if self.ranks.first:
            facts = {
                "recipe_hash": config_hash(self._public()),
                "seed": self.config.seed,
                "seconds": seconds,
                "artifact_bytes": self.artifact.stat().st_size,
                "artifact_digest": digest_file(self.artifact),
                "stages": self.stages,
            }
            write_json(self.out / SCORE_FILE, facts)

    def _train(self) -> Training:
        source = self.source
        source.verify()
        shards = source.train_shards()
        preflight(self.config, shards, self.out, num_parameters(self.config.model), self.plan)
        return train(
            self.config,
            self.plan,
            self.ranks,
            TrainingText(shards, source.bytes_per_token),
            self.out,
            lambda model: estimated_total(model, self.config, self.code_bytes),
            self.say,
        )

    def _public(self) -> Config:
        """Return the config with digests in place of paths, as `fairway run` records it."""
        config = self.config
        source = f"sha256:{self.source.digest}"
        if config.data.source == "embedded":
            source = "embedded"
        data = replace(config.data, source=source)
        replay = f"sha256:{self.replayed}" if self.replayed else ""
        return replace(config, data=data, train=replace(config.train, replay=replay))

    def _pack(self, training: Training) -> float:
        """Write the artifact; return the seconds of calibration, which count as training."""
        config, looping = self.config, training.model.looping
        state = {name: w.cpu() for name, w in training.average.average.items()}
        provenance = {
            "recipe": config.recipe,
            "recipe_hash": config_hash(self._public()),
            "seed": config.seed,
            "looping": looping,
            "score": to_dict(config.score),
            "fairway": VERSION,
        }
        model = model_from(state, config.model, self.plan, looping)
        facts = pack_model(
            *(config, self.code_bytes, model, state),
            *(self.source, self.artifact, provenance, self.say),
        )
        size = facts["bytes"] + self.code_bytes
        if size > config.pack.limit_bytes:
            raise UserError(f"artifact and code have {size:,} of {config.pack.limit_bytes:,} bytes")
        return float(facts["seconds"]["calibrate"])

    def _loaded(self) -> GPT:
        artifact = load_artifact(self.artifact)
        looping = bool(artifact.header["provenance"]["looping"])
        return model_from(artifact.state, artifact.config, self.plan, looping)

    def _score(self, text: Text) -> None:
        config, ranks = self.config, self.ranks
        for name in ("quantised", "sliding"):
            start_s = time.perf_counter()
            asked = Evaluation(text, config.score, config.ttt, config.seed, name, ranks)
            score = evaluate_frozen(self._loaded(), asked, sliding=name == "sliding")
            self._keep(name, score, start_s)
        if config.ttt.method != "off":
            start_s = time.perf_counter()
            asked = Evaluation(text, config.score, config.ttt, config.seed, "ttt", ranks)
            found = evaluate_ttt(self._loaded(), asked)
            self._keep("ttt", found.score, start_s)
        # Experts follow the text token by token: one process scores.
        if config.mixture.experts and ranks.first:
            start_s = time.perf_counter()
            asked = Evaluation(text, config.score, config.ttt, config.seed, "mixture")
            tokenizer = self.source.tokenizer
            mixed, _ = evaluate_mixture(self._loaded(), asked, config.mixture, tokenizer)
            self._keep("mixture", mixed, start_s)

    def _keep(self, name: str, score: Score, start_s: float) -> None:
        seconds = time.perf_counter() - start_s
        self.say(f"{name:>9}: {score.bpb:.8f} bpb ({seconds:.1f} s)")
        self.stages[name] = {**asdict(score), "seconds": seconds}
