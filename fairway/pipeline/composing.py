"""Composes results.json from the facts of a run's stages."""

from typing import Any

from fairway.base.errors import UserError
from fairway.config.settings import Config, headline
from fairway.config.written import config_hash, to_dict
from fairway.model.gpt import num_parameters
from fairway.pipeline.averaging import loss_warning
from fairway.pipeline.folder import RunFolder
from fairway.pipeline.results import SCHEMA, versions
from fairway.quantise.estimate import how_counted
from fairway.score.accounts import text_faults
from fairway.score.ways import gains


def average_warning(config: Config, folder: RunFolder) -> str:
    """Return a warning about the weight average of a scored run, if it was the worse choice."""
    train, raw, ema = (folder.facts(name) or {} for name in ("train", "score.raw", "score.ema"))
    return loss_warning(config.optim, train["steps"], raw["bpb"], ema["bpb"])


def compose(
    folder: RunFolder, public: Config, machine: dict[str, Any], code_bytes: int
) -> dict[str, Any]:
    """Return the results of a run folder whose stages fit together: see `fairway.pipeline.inputs`.

    `public` is its config without paths; `code_bytes` is the size of the code that counts with its
    artifact.
    """
    facts = {name: folder.facts(name) for name in folder.memory["stages"]}
    packed = facts["pack"] or {}
    artifact = ("bytes", "digest", "limit_bytes", "matrix_sigmas", "level", "sections")
    stages = {
        name.removeprefix("score."): value
        for name, value in facts.items()
        if name.startswith("score.") and value is not None
    }
    for fault in text_faults(stages, facts["text"] or {}):
        raise UserError(f"the scores in {folder.path} are not of one text: {fault}; score it again")
    # Counting the text is not reported as separate work.
    seconds = {name: taken_s for name, taken_s in folder.seconds().items() if name != "text"}
    total_s = sum(seconds.values())
    # The parts of packing replace their sum; the rest is compiling and statistics.
    parts = _parts_of_packing(packed["seconds"], seconds.pop("pack"))
    return {
        "schema": SCHEMA,
        "recipe": public.recipe,
        "recipe_hash": config_hash(public),
        "recipe_origin": _origin(folder.memory.get("origin")),
        "seed": public.seed,
        "config": to_dict(public),
        "versions": versions(),
        "machine": machine,
        "text": facts["text"],
        "model": {"parameters": num_parameters(public.model)},
        "train": facts["train"],
        "stages": stages,
        "headline": headline(public),
        "gains": gains(stages),
        # Not among the stages, since it is no score and can be no headline.
        "published_mixture": facts.get("published"),
        "artifact": {
            **{name: packed[name] for name in artifact},
            "code_bytes": code_bytes,
            "code": how_counted(public.pack),
        },
        "budget": packed["budget"],
        "warnings": [text for text in [average_warning(public, folder)] if text],
        "baselines": facts.get("baselines"),
        "weights": packed["weights"],
        "matrices": packed["matrices"],
        "seconds": {**seconds, **parts, "total": total_s},
        "memory": folder.memory_of_stages(),
        "proof": facts.get("proof") if public.prove.bytes else None,
        "audit": facts.get("audit"),
        "samples": (facts.get("samples") or {"samples": []})["samples"],
    }


def _parts_of_packing(parts_s: dict[str, float], whole_s: float) -> dict[str, float]:
    # In folders of before 2026-11-27 the part that codes is named like the whole.
    named = {"coding" if name == "pack" else name: taken_s for name, taken_s in parts_s.items()}
    return {**named, "pack, other": whole_s - sum(named.values())}


def _origin(origin: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the facts of a recipe that is not Fairway's, without its path and its text."""
    if origin is None:
        return None
    files = {file["name"]: file["digest"] for file in origin["files"]}
    return {"function": origin["function"], "package": origin["package"], "files": files}
