"""results.json: everything known of a finished run, in a versioned schema, nothing of its machine
but what the numbers depend on. No host, no path, no environment."""

import platform
from importlib import metadata
from typing import Any

from fairway.config import Config, config_hash, to_dict
from fairway.errors import UserError
from fairway.model.gpt import num_parameters
from fairway.stages import RunFolder
from fairway.version import VERSION

SCHEMA = 1
_PACKAGES = ("torch", "numpy", "sentencepiece", "brotli", "safetensors", "zstandard")
_NEEDED = ("train", "pack", "score.sliding")


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    found = {name: metadata.version(name) for name in _PACKAGES}
    return {"fairway": VERSION, "python": platform.python_version(), **found}


def compose(folder: RunFolder, public: Config, machine: dict[str, Any]) -> dict[str, Any]:
    """Return the results of a run folder. `public` is its config without paths.

    Raises UserError when a stage is still missing.
    """
    facts = {name: folder.facts(name) for name in folder.memory["stages"]}
    missing = [stage for stage in _NEEDED if facts.get(stage) is None]
    if missing:
        raise UserError(f"{folder.path} has no finished '{missing[0]}' stage yet; run it first")
    packed, sliding = facts["pack"] or {}, facts["score.sliding"] or {}
    if packed["digest"] != sliding["file_digest"]:
        raise UserError(f"{folder.path} was packed again since it was scored; run `fairway score`")
    sizes = ("bytes", "digest", "limit_bytes", "code_bytes", "sections")
    artifact = (*sizes, "matrix_sigmas", "level")
    seconds = folder.seconds()
    return {
        "schema": SCHEMA,
        "recipe": public.recipe,
        "recipe_hash": config_hash(public),
        "seed": public.seed,
        "config": to_dict(public),
        "versions": versions(),
        "machine": machine,
        "text": folder.memory["text"],
        "model": {"parameters": num_parameters(public.model)},
        "train": facts["train"],
        "stages": {
            name.removeprefix("score."): value
            for name, value in facts.items()
            if name.startswith("score.")
        },
        # Not among the stages: it is no score and can be no headline.
        "published_mixture": facts.get("published"),
        "artifact": {name: packed[name] for name in artifact},
        "budget": packed["budget"],
        "baselines": facts.get("baselines"),
        "weights": packed["weights"],
        "matrices": packed["matrices"],
        # What packing spent on its parts replaces its sum.
        "seconds": {**seconds, **packed["seconds"], "total": sum(seconds.values())},
        "proof": facts.get("proof") if public.prove.bytes else None,
        "audit": facts.get("audit"),
        "samples": (facts.get("samples") or {"samples": []})["samples"],
    }
