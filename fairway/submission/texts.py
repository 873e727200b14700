"""Makes the texts of a record from its results: README, submission.json, logs.

`submission` writes these texts and `verify` writes them again, so that a number edited by hand is
noticed. They contain no host, path or environment.
"""

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from fairway.base import units
from fairway.base.files import digest_bytes
from fairway.config.settings import Config
from fairway.config.written import from_dict
from fairway.score.ways import BESIDE, gains
from fairway.submission.techniques import techniques

SCHEMA = 1
TRACKS = {"10min_16mb": "track_10min_16mb", "non_record": "track_non_record_16mb"}
# The folder of a recipe's own files in a record, and the file names that are kept.
RECIPE = "recipe"
_SAFE = re.compile(r"(\w[\w-]*/)*\w[\w.-]*\.py", re.ASCII)
# The beginning of a step's line in a log.
STEP = "step:"


def submission(
    runs: Sequence[Mapping[str, Any]],
    logs: Sequence[str],
    manifest: Mapping[str, Any],
    claim: Mapping[str, Any],
) -> dict[str, Any]:
    """Return submission.json for results of one configuration and their logs.

    `claim` has the parts that only people know (name, author, github_id, track) and the commit.
    Every other file of the record is in it by its digest, or follows from it.
    """
    stage = runs[0]["headline"]
    scores = [run["stages"][stage]["bpb"] for run in runs]
    code, seeds = manifest["bytes"], {}
    for run, text in zip(runs, logs, strict=True):
        size = run["artifact"]["bytes"]
        seeds[str(run["seed"])] = {
            "val_bpb": run["stages"][stage]["bpb"],
            "val_nats_per_token": run["stages"][stage]["nats_per_token"],
            "bytes_model": size,
            "bytes_total": size + code,
            "steps": run["train"]["steps"],
            "train_seconds": run["budget"]["used_s"],
            "eval_seconds": run["stages"][stage]["seconds"],
            "artifact_sha256": run["artifact"]["digest"],
            "results_sha256": digest_bytes(as_json(run)),
            "log_sha256": digest_bytes(text.encode()),
        }
    first = runs[0]
    return {
        **claim,
        "schema": SCHEMA,
        "val_bpb": statistics.fmean(scores),
        "val_bpb_std": statistics.stdev(scores) if len(scores) > 1 else None,
        "stage": stage,
        "seeds": seeds,
        "bytes_code": code,
        "bytes_model": max(seed["bytes_model"] for seed in seeds.values()),
        "bytes_total": max(seed["bytes_total"] for seed in seeds.values()),
        "val_tokens": first["stages"][stage]["tokens"],
        "val_bytes": first["stages"][stage]["bytes"],
        "text_sha256": first["text"]["digest"],
        "data_sha256": first["text"]["data_digest"],
        "recipe": first["recipe"],
        **_own_recipe(first),
        "fixed_digest": manifest["fixed_digest"],
        "versions": first["versions"],
        "machine": first["machine"],
        "code_sha256": manifest["digest"],
        "bundle_sha256": digest_bytes(as_json(manifest)),
    }


def recipe_files(results: Mapping[str, Any]) -> dict[str, str]:
    """Return the digests of a recipe's own files, by their names in a record's folder.

    A recipe of Fairway has none. Names that are safe on every system are kept.
    """
    found = dict((results.get("recipe_origin") or {"files": {}})["files"])
    names = [n if _SAFE.fullmatch(n) else f"recipe-{at}.py" for at, n in enumerate(found)]
    return {f"{RECIPE}/{name}": digest for name, digest in zip(names, found.values(), strict=True)}


def _own_recipe(results: Mapping[str, Any]) -> dict[str, Any]:
    origin = results.get("recipe_origin")
    if origin is None:
        return {}
    said = {"recipe_function": origin["function"], "recipe_package": origin["package"]}
    return {**said, "recipe_files": recipe_files(results)}


def readme(runs: Sequence[Mapping[str, Any]], claim: Mapping[str, Any]) -> str:
    """Return the README of a record: its table, techniques, compliance, and how to repeat it.

    `claim` is the record's submission.json.
    """
    config: Config = from_dict(dict(runs[0]["config"]))
    mean, sd = claim["val_bpb"], claim["val_bpb_std"]
    spread = "" if sd is None else f", standard deviation {sd:.6f}"
    parts = [
        f"# {claim['name']}\n",
        f"**{mean:.6f} bits per byte** (stage {claim['stage']}, mean of {len(runs)} seeds"
        f"{spread}) on {claim['val_bytes']:,} bytes, {claim['val_tokens']:,} tokens; at most "
        f"{claim['bytes_total']:,} bytes of artifact and code.\n",
        "Everything here but name and author was written from what was measured; "
        "`fairway verify` checks every file of this folder.\n",
        "## Seeds\n",
        _table(claim),
        "## Stages\n",
        _stages(runs),
        *_gains(runs),
        "## Techniques\n",
        "".join(f"- {name} ({credit})\n" for name, credit in techniques(config)),
        *_recipe_told(runs[0]),
        "## Compliance\n",
        _compliance(runs, claim, config),
        "## To repeat it\n",
        _commands(claim),
    ]
    return "\n".join(parts)


def _recipe_told(results: Mapping[str, Any]) -> list[str]:
    files = recipe_files(results)
    if not files:
        return []
    function = results["recipe_origin"]["function"]
    return [
        "## Recipe\n",
        f"The function `{function}` of `{next(iter(files))}` returned these settings. The bundle "
        "holds them; neither it nor `fairway verify` executes that file.\n",
    ]


def _table(claim: Mapping[str, Any]) -> str:
    lines = [
        "| seed | bits per byte | artifact bytes | total bytes | steps | training | evaluation |",
        "|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for seed, run in claim["seeds"].items():
        times = (units.duration(run["train_seconds"]), units.duration(run["eval_seconds"]))
        lines.append(
            f"| {seed} | {run['val_bpb']:.8f} | {run['bytes_model']:,} | {run['bytes_total']:,} "
            f"| {run['steps']:,} | {times[0]} | {times[1]} |"
        )
    return "\n".join(lines) + "\n"


def _stages(runs: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| stage | mean bits per byte |", "|---|--:|"]
    for name in runs[0]["stages"]:
        mean = statistics.fmean(run["stages"][name]["bpb"] for run in runs)
        lines.append(f"| {name} | {mean:.6f} |")
    return "\n".join(lines) + "\n"


def _gains(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the gain of test-time training over the artifact's other scores, if there is any."""
    found = [gains(run["stages"]) or {} for run in runs]
    lines = ["| gain of test-time training | mean bits per byte |", "|---|--:|"]
    for name, (_, words) in BESIDE.items():
        if all(name in each for each in found):
            lines.append(f"| {words} | {statistics.fmean(each[name] for each in found):.6f} |")
    if len(lines) == 2:
        return []
    return ["\n".join(lines) + "\n"]


def _compliance(runs: Sequence[Mapping[str, Any]], claim: Mapping[str, Any], config: Config) -> str:
    train_s = max(run["budget"]["used_s"] for run in runs)
    score_s = max(run["stages"][claim["stage"]]["seconds"] for run in runs)
    lines = [
        f"- bytes: {claim['bytes_code']:,} of code and at most {claim['bytes_model']:,} of model "
        f"are {claim['bytes_total']:,} of {config.pack.limit_bytes:,}",
        f"- training with calibration: at most {train_s:.1f} s of "
        f"{config.train.budget_s:.0f} s (clock: {config.train.clock})",
        f"- evaluation: at most {score_s:.1f} s of {config.ttt.budget_s:.0f} s",
        "- validation text: in no training; what adapts reads tokens on record only",
    ]
    for run in runs:
        audit = run["audit"]
        names = sorted({probe["name"] for probe in audit["probes"]})
        lines.append(
            f"- seed {run['seed']}: audit passed, {len(audit['probes'])} probes "
            f"({', '.join(names) or 'none'}), {len(audit['findings'])} findings"
        )
        lines += [f"  - {f['severity']}: {f['why']}" for f in audit["findings"]]
    return "\n".join(lines) + "\n"


def _commands(claim: Mapping[str, Any]) -> str:
    seeds = " ".join(claim["seeds"])
    lines = [
        "    pip install -r requirements.txt",
        f"    for SEED in {seeds}; do {command(claim)}; done",
    ]
    text = (
        "\nDATA is the folder of shards and tokenizer with digest "
        f"{claim['data_sha256'][:16]}; RUN-$SEED is made.\n"
    )
    return "\n".join(lines) + "\n" + text


def command(claim: Mapping[str, Any]) -> str:
    """Return the command that repeats one seed."""
    processes = claim["processes"]
    start = f"torchrun --standalone --nproc-per-node={processes}" if processes > 1 else "python"
    return f"{start} train_gpt.py DATA RUN-$SEED --seed $SEED"


def step_lines(results: Mapping[str, Any], steps: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines of a run's log for its recorded steps."""
    return [
        f"{STEP}{s['step'] + 1}/{results['train']['steps']} train_loss:{s['loss']:.6f} "
        f"grad_norm:{s['grad_norm']:.6f} tokens:{s['tokens']} train_time:{s['seconds']:.3f}s"
        for s in steps
    ]


def log(results: Mapping[str, Any], steps: Sequence[str], code_bytes: int) -> str:
    """Return the log of a run: the lines of its steps, then the result of each stage.

    The total size includes the bundle of the record.
    """
    machine = ", ".join(f"{name} {value}" for name, value in results["machine"].items())
    lines = [
        f"recipe {results['recipe']} ({results['recipe_hash']}), seed {results['seed']}",
        f"machine: {machine}",
        f"parameters: {results['model']['parameters']}",
        f"data: sha256 {results['text']['data_digest']}",
        *steps,
    ]
    artifact = results["artifact"]
    lines.append(f"artifact: {artifact['bytes']} bytes, sha256 {artifact['digest']}")
    lines.append(f"code size: {code_bytes} bytes")
    lines.append(f"total submission size: {artifact['bytes'] + code_bytes} bytes")
    for name, stage in results["stages"].items():
        lines.append(
            f"{name} val_loss:{stage['nats_per_token']:.8f} val_bpb:{stage['bpb']:.8f} "
            f"nats:{stage['nats']!r} tokens:{stage['tokens']} bytes:{stage['bytes']} "
            f"eval_time:{stage['seconds']:.3f}s"
        )
    lines.append(f"training and calibration: {results['budget']['used_s']:.3f} s")
    return "\n".join(lines) + "\n"


def as_json(value: Mapping[str, Any]) -> bytes:
    """Return a value as written in files: indented JSON with a final newline."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()
