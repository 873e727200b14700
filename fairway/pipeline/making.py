"""The stages of a run that make its artifact: training, and packing."""

from typing import Any

from fairway.base.errors import InterruptedRun
from fairway.base.files import write_atomic
from fairway.base.memory import give_back
from fairway.base.names import ARTIFACT, TOKENIZER_FILE, WEIGHTS
from fairway.config.written import config_hash, to_dict
from fairway.machine.peers import peers
from fairway.model.gpt import num_parameters
from fairway.pack.model import pack_model
from fairway.pipeline.averaging import known_steps, lag_warning
from fairway.pipeline.context import Run
from fairway.pipeline.initial import initial
from fairway.pipeline.limits import (
    check_later_stages,
    check_learning_time,
    tell_of_shards,
    tell_of_size,
    time_budget,
)
from fairway.pipeline.needs import check_host_memory
from fairway.quantise.calibrate import collect_hessians
from fairway.quantise.estimate import estimated_total
from fairway.train.checkpoint import save_checkpoint
from fairway.train.loop import Training, TrainingText, train
from fairway.train.preflight import preflight
from fairway.train.steps import STEPS, read_steps
from fairway.version import VERSION


def train_model(run: Run) -> dict[str, Any]:
    """Check the later stages, then train and write raw and averaged weights."""
    config, source = run.config, run.source
    source.verify()
    found = initial(config, source, run.say) if config.train.init else None
    shards, ids = source.train_shards(config.train.shards), run.validation.ids
    check_later_stages(config, len(ids), run.code_bytes, run.plan, run.say)
    check_learning_time(config, ids, run.plan, run.ranks)
    known = known_steps(config.train)
    _tell(run, lag_warning(config.optim, known))
    tell_of_shards(config, source, run.say)
    preflight(config, shards, run.folder, num_parameters(config.model), run.plan)
    check_host_memory(config, shards, run.validation, run.plan, run.say)
    run.begin()
    try:
        training = train(
            *(config, run.plan, run.ranks, TrainingText(shards, source.bytes_per_token)),
            *(run.folder, lambda model: estimated_total(model, config, run.code_bytes)),
            *(run.say, run.resume),
            begun=None if found is None else (found.state, found.facts["digest"]),
            collect=collect_hessians,
            beside=run.beside,
        )
    except InterruptedRun:
        # The first process that exits ends all, so wait until rank 0 has saved the state.
        peers().tell("saved")
        raise
    if not run.ranks.first:
        return {}
    facts = _written(run, training, known)
    return facts if found is None else {**facts, "init": found.facts}


def _written(run: Run, training: Training, known: int) -> dict[str, Any]:
    """Write the weights; return the facts of the training."""
    tensors = {f"raw.{n}": w.detach() for n, w in training.model.named_parameters()}
    tensors |= {f"ema.{n}": w for n, w in training.average.average.items()}
    facts = {"looping": training.model.looping}
    save_checkpoint(run.file(WEIGHTS), tensors, facts)
    steps = read_steps(run.file(STEPS))
    _tell(run, "" if known else lag_warning(run.config.optim, len(steps)))
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


def _tell(run: Run, warning: str) -> None:
    if warning:
        run.say(warning)


def pack_artifact(run: Run) -> dict[str, Any]:
    """Quantise the averaged weights and write the artifact, with the tokenizer beside it."""
    give_back()
    config = run.config
    state, looping = run.weights("ema")
    provenance = {
        "recipe": config.recipe,
        "recipe_hash": config_hash(run.public),
        "seed": config.seed,
        "looping": looping,
        "score": to_dict(config.score),
        "fairway": VERSION,
    }
    write_atomic(run.file(TOKENIZER_FILE), run.source.tokenizer.data)
    facts = pack_model(
        *(config, run.code_bytes, run.model("ema"), state, run.source),
        *(run.file(ARTIFACT), provenance, run.say),
    )
    tell_of_size(config, facts["bytes"] + run.code_bytes, run.say)
    train_s, calibrate_s = run.facts()["train"]["seconds"], facts["seconds"]["calibrate"]
    return {**facts, "budget": time_budget(config, train_s, calibrate_s, run.say)}
