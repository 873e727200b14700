"""The verbs `data build`, `data fetch` and `data show`."""

from pathlib import Path
from typing import Annotated

import typer

from fairway.base.errors import UserError
from fairway.base.terminal import command
from fairway.cli.base import Json, emit
from fairway.cli.examples import Verb
from fairway.cli.options import (
    Verbs,
    flag,
    path_argument,
    path_option,
    require_none,
    whole_option,
)
from fairway.config.overrides import override
from fairway.config.settings import Config, DataConfig, ModelConfig

data_app = typer.Typer(
    cls=Verbs, help="Turn your text into tokens, or fetch the tokens of the challenge."
)

DataOut = Annotated[Path, path_option("--out", help="Folder to write.")]
Embedded = Annotated[bool, flag("--embedded", "Use the documentation on this machine as the text.")]
Replace = Annotated[
    bool, flag("--replace", "Replace data that Fairway wrote into the folder before.")
]
CaseOps = Annotated[
    bool,
    flag(
        "--case-ops",
        "Train a unigram tokenizer with marks for capital letters, as the demo has it: fewer bits "
        "for English text, ten times as long to train.",
    ),
]
NewCommit = Annotated[bool, flag("--new-commit", "Replace shards of another commit in the folder.")]
# So many names of documents are printed; the manifest has all.
_MOST_NAMES = 3


@data_app.command("build", cls=Verb)
def data_build(
    context: typer.Context,
    texts: Annotated[
        list[Path] | None,
        path_argument(
            "TEXT...", "Files (.txt, .md, .jsonl, .jsonl.zst, .parquet), or folders of them."
        ),
    ] = None,
    out: DataOut = Path("data"),
    embedded: Embedded = False,
    vocab_size: Annotated[
        int, typer.Option(help="Number of tokens of the new tokenizer.")
    ] = ModelConfig().vocab_size,
    tokenizer: Annotated[
        Path | None, path_option("--tokenizer", help="Use this tokenizer, and train no new one.")
    ] = None,
    validation: Annotated[
        list[Path] | None, path_option("--validation", help="Files with the validation text.")
    ] = None,
    val_share: Annotated[
        float, typer.Option(help="Share of the documents kept for validation.")
    ] = DataConfig().val_share,
    shard_tokens: Annotated[
        int, whole_option("--shard-tokens", lo=1_000, help="Tokens per shard.")
    ] = 10_000_000,
    case_ops: CaseOps = False,
    replace: Replace = False,
    as_json: Json = False,
) -> None:
    """Turn your own files into tokens, with a tokenizer and a validation text."""
    from fairway.cli.show import data_lines
    from fairway.data.build import build_data
    from fairway.data.corpus import corpus_versions, embedded_documents
    from fairway.data.documents import LeftOut
    from fairway.data.sources import read_documents
    from fairway.data.tokens import Tokenizer

    _require_sense(context, bool(texts) != embedded, bool(tokenizer), bool(validation))
    # The bounds of these settings are those of a recipe.
    override(Config(), [f"data.val_share={val_share}", f"model.vocab_size={vocab_size}"])
    words = Tokenizer.load(tokenizer) if tokenizer else None
    provenance = {"corpus": "embedded", "versions": corpus_versions()} if embedded else None
    left_out = LeftOut()
    manifest = build_data(
        embedded_documents() if embedded else read_documents(texts or [], left_out),
        out,
        vocab_size=words.vocab_size if words else vocab_size,
        val_share=val_share,
        shard_tokens=shard_tokens,
        tokenizer=words,
        case_ops=case_ops,
        val_documents=read_documents(validation, left_out) if validation else None,
        provenance=provenance,
        left_out=left_out,
        replace=replace,
    )
    lines = [*data_lines(manifest), *_collections(manifest["split"].get("collections", []))]
    emit(as_json, manifest, *lines, _how_to_train("built", out))


def _collections(names: list[str]) -> list[str]:
    """Return a line with the first names of documents that hold most others, if any."""
    more = [f"{len(names) - _MOST_NAMES:,} more"] if len(names) > _MOST_NAMES else []
    told_of = ", ".join([*names[:_MOST_NAMES], *more])
    return [f"with the text of most others, and left out: {told_of}"] if names else []


def _require_sense(context: typer.Context, text: bool, tokenizer: bool, validation: bool) -> None:
    """Raise UserError unless there is one source of text, and for options without effect."""
    if not text:
        raise UserError("name text files to build from, or pass --embedded, but not both")
    if tokenizer:
        own = "with --tokenizer, which has its own tokens"
        require_none(context, own, "vocab_size", "case_ops")
    if validation:
        require_none(context, "with --validation, which is the whole validation text", "val_share")


@data_app.command("fetch", cls=Verb)
def data_fetch(
    out: DataOut = Path("data"),
    shards: Annotated[
        int, whole_option("--shards", lo=0, hi=100_000, help="Training shards to fetch.")
    ] = 1,
    revision: Annotated[
        str, typer.Option(help="Commit, tag or branch of the repository.")
    ] = "main",
    new_commit: NewCommit = False,
    as_json: Json = False,
) -> None:
    """Download the tokens and the tokenizer of the challenge (SP8192)."""
    from fairway.data.hub import fetch

    facts = fetch(out, shards=shards, revision=revision, new_commit=new_commit)
    emit(as_json, facts, _how_to_train("fetched", out))


def _how_to_train(done: str, out: Path) -> str:
    from fairway.data.folder import DataFolder

    size = DataFolder.open(out).tokenizer.vocab_size
    words = ("--set", f"data.source={out}", "--set", f"model.vocab_size={size}")
    return f"{done} {out}; train with: {command('run', 'demo', *words)}"


@data_app.command("show", cls=Verb)
def data_show(
    folder: Annotated[Path, path_argument("FOLDER", "A data folder.")], as_json: Json = False
) -> None:
    """Check a data folder and print what is in it."""
    from fairway.data.documents import told
    from fairway.data.folder import DataFolder

    source = DataFolder.open(folder)
    source.verify()
    facts = source.description()
    left_out = facts["left_out"]
    told_of = [] if left_out is None else [told(left_out) or "left out: nothing"]
    shown = {name: value for name, value in facts.items() if name != "left_out"}
    emit(as_json, facts, *[f"{name}: {value}" for name, value in shown.items()], *told_of)
