"""The program of a bundle: trains, packs and scores from a data folder, without a run folder.

It runs the same stages as `fairway run`, so it gives the same bits under `train.clock` steps or
replay. It writes the same files and score.json, and never overwrites a file. `fairway bundle` puts
this module and the code it needs into one file.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from fairway.base.errors import UserError
from fairway.base.files import digest_file, read_json, write_json
from fairway.base.names import ARTIFACT, CHECKPOINT
from fairway.base.room import memory_told
from fairway.config.settings import Config
from fairway.config.written import config_hash
from fairway.data.folder import DataFolder
from fairway.machine.plan import Plan, make_plan
from fairway.machine.ranks import join_ranks
from fairway.pipeline.context import Run
from fairway.pipeline.inputs import public
from fairway.pipeline.order import artifact_stages
from fairway.pipeline.stages import ARTIFACT_WORK
from fairway.pipeline.stages import done as do
from fairway.quantise.estimate import counted
from fairway.train.steps import STEPS, Say

SCORE_FILE = "score.json"


def main(config: Config, bundle_bytes: int, seed: int, text: str, clock: str) -> None:
    """Read `DATA OUT [--seed N] [--replay RUN] [--dry-run]` and run all stages.

    The arguments are the bytes of the program's own file, and the values that may differ between
    bundles of one recipe: seed, `data.source` and `train.clock`. An error of the user is printed as
    one sentence, and the exit code is 2.
    """
    try:
        with memory_told("this run", "take a smaller model or less text"):
            _main(config, bundle_bytes, seed, text, clock)
    except UserError as error:
        print(f"train_gpt.py: {error}", file=sys.stderr)
        sys.exit(2)


def _main(config: Config, bundle_bytes: int, seed: int, text: str, clock: str) -> None:
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
    config, plan, followed = _driven(config, given.replay)
    plan.apply()
    source = DataFolder.open(Path(given.data))
    say(f"{config.recipe}, seed {config.seed}, on {source.digest[:16]}: {plan.describe()}")
    done: dict[str, dict[str, Any]] = {}
    run = Run(
        config=config,
        public=public(config, "" if text == "embedded" else source.digest, followed),
        plan=plan,
        ranks=ranks,
        source=source,
        folder=Path(given.out),
        code_bytes=counted(config.pack, bundle_bytes),
        facts=lambda: done,
        say=say,
    )
    if not given.dry_run:
        _walk(run, done)


def _driven(config: Config, followed: str) -> tuple[Config, Plan, dict[str, Any] | None]:
    """Return the config and the machine plan, from a followed run if there is one, and the
    digest of its steps."""
    if not followed:
        return config, make_plan(config.runtime), None
    run = Path(followed)
    plan = Plan.recalled(read_json(run / "run.json")["plan"])
    train = replace(config.train, clock="replay", replay=followed)
    return replace(config, train=train), plan, {"steps": digest_file(run / STEPS)}


def _walk(run: Run, done: dict[str, dict[str, Any]]) -> None:
    """Run the stages that make and score an artifact; write their results."""
    if run.folder.exists():
        raise UserError(f"{run.folder} exists already; name another folder")
    run.ranks.broadcast(0.0)
    if run.ranks.first:
        run.folder.mkdir(parents=True)
    for stage in artifact_stages(run.config):
        # Wait until the files of the previous stage are there.
        run.ranks.broadcast(0.0)
        if stage.together or run.ranks.first:
            done[stage.name] = do(ARTIFACT_WORK, stage.name, run)
    if not run.ranks.first:
        return
    run.file(CHECKPOINT).unlink(missing_ok=True)
    artifact = run.file(ARTIFACT)
    scores = {n.removeprefix("score."): f for n, f in done.items() if n.startswith("score.")}
    facts = {
        "recipe_hash": config_hash(run.public),
        "seed": run.config.seed,
        "seconds": done["train"]["seconds"] + done["pack"]["seconds"]["calibrate"],
        "artifact_bytes": artifact.stat().st_size,
        "artifact_digest": digest_file(artifact),
        "stages": scores,
    }
    write_json(run.file(SCORE_FILE), facts)
