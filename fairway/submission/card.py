"""The model card of a shared run: its measurements, in Markdown."""

from collections.abc import Mapping
from typing import Any

from fairway.base import units
from fairway.score.baselines import part_bytes

_HEAD = """---
library_name: fairway
pipeline_tag: text-generation
tags:
- fairway
---
"""


def card(results: Mapping[str, Any], repo: str) -> str:
    """Return the card of a run's results under the name of its repository, owner/name."""
    artifact, text, train = results["artifact"], results["text"], results["train"]
    headline = results["stages"][results["headline"]]
    parts = [
        _HEAD,
        f"# {repo.partition('/')[2]}\n",
        f"A language model of {results['model']['parameters']:,} parameters in "
        f"{artifact['bytes']:,} bytes, made by Fairway {results['versions']['fairway']}. It codes "
        f"{text['bytes']:,} bytes of held-out text at **{headline['bpb']:.4f} bits per byte** "
        f"({results['headline']}).\n",
        "## Scores\n",
        _scores(results),
        "## How it was made\n",
        f"- recipe `{results['recipe']}` (`{results['recipe_hash']}`), seed {results['seed']}",
        f"- {train['steps']:,} steps, {train['tokens']:,} tokens, "
        f"{units.duration(train['seconds'])} of training",
        f"- text: sha256 `{text['data_digest']}`, held out: `{text['digest']}`",
        f"- artifact: sha256 `{artifact['digest']}`",
        _audit(results.get("audit")),
        "\n## To use it\n",
        f'    fairway load {repo} --out model\n    fairway sample model --prompt "Returns the"\n',
        "The files are checked against their digests, and loading executes nothing.\n",
    ]
    return "\n".join(parts)


def _scores(results: Mapping[str, Any]) -> str:
    lines = ["| stage | bits per byte | seconds |", "|---|--:|--:|"]
    for name, stage in results["stages"].items():
        lines.append(f"| {name} | {stage['bpb']:.4f} | {stage['seconds']:.1f} |")
    part = part_bytes(results.get("baselines"), results["text"]["bytes"])
    scope = "" if part is None else f", first {part:,} bytes"
    for name, tool in (results.get("baselines") or {}).items():
        lines.append(f"| baseline: {name}{scope} | {tool['bpb']:.4f} | |")
    return "\n".join(lines) + "\n"


def _audit(audit: Mapping[str, Any] | None) -> str:
    if audit is None:
        return "- audit: none"
    return f"- audit: {audit['verdict']}, {len(audit['probes'])} probes"
