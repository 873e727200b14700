"""The verbs that share a run: push, load."""

from pathlib import Path
from typing import Annotated

import typer

from fairway.cli.base import Json, emit
from fairway.cli.options import flag, path_option, run_argument

Repository = Annotated[
    str, typer.Argument(metavar="OWNER/NAME", help="A model repository of the Hugging Face Hub.")
]


def push(
    run: Annotated[Path, run_argument("RUN", "Folder of a scored run, or the artifact in it.")],
    repo: Repository,
    private: Annotated[bool, flag("--private", "Make a new repository private.")] = False,
    as_json: Json = False,
) -> None:
    """Upload a run's artifact, tokenizer, results and a model card, in one commit."""
    from fairway.submission.hub import push as pushed

    facts = pushed(run, repo, private)
    emit(as_json, facts, f"pushed {run} to {facts['repo']}, commit {facts['commit'][:12]}")


def load(
    repo: Repository,
    out: Annotated[Path, path_option("--out", help="Folder to write; nothing there is replaced.")],
    revision: Annotated[str, typer.Option(help="Commit, tag or branch.")] = "main",
    as_json: Json = False,
) -> None:
    """Download a pushed run into a folder; every digest is checked, and nothing is executed."""
    from fairway.submission.hub import fetch_model

    facts = fetch_model(repo, out, revision)
    emit(as_json, facts, f"{out}: {facts['repo']} at {facts['commit'][:12]}; try it with: "
         f"fairway sample {out} --prompt TEXT")  # fmt: skip
