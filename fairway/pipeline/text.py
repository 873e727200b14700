"""Opens the text of a run: a data folder, or the embedded corpus, which is built when needed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fairway.base.errors import UserError
from fairway.config.settings import BOS_ID, Config
from fairway.data.build import DataFolder, build_data
from fairway.data.corpus import corpus_versions, embedded_documents
from fairway.data.tokens import Tokenizer
from fairway.pipeline.initial import initial, initial_tokenizer
from fairway.pipeline.limits import check_text_length
from fairway.train.preflight import check_data

# Tokens of a shard of the embedded corpus: small, so that several processes have one each.
_SHARD_TOKENS = 1_000_000
# Builds the embedded corpus if it does not exist, given what it depends on and the work.
Embedded = Callable[[dict[str, Any], Callable[[], dict[str, Any]]], None]


def open_text(config: Config, out: Path, embedded: Embedded) -> DataFolder:
    """Return the tokens to train and score on, if the model of `config` can read them.

    The embedded corpus is at `out`. `embedded` receives what it depends on and the work that builds
    it. Raises UserError if there is no text, or if its tokenizer is not the model's.
    """
    data, model = config.data, config.model
    if not data.source:
        raise UserError(
            f"recipe {config.recipe} needs a data folder; fetch the challenge's with "
            "`fairway data fetch --out DATA`, or build your own with `fairway data "
            f"build --vocab-size {model.vocab_size} --out DATA`, then add --set "
            "data.source=DATA"
        )
    if data.source == "embedded":
        source = _embedded(config, out, embedded)
    else:
        source = DataFolder.open(Path(data.source))
    _require_words(config, source.tokenizer, data.source)
    return source


def check_text(config: Config, say: Callable[[str], None]) -> None:
    """Raise UserError for a text or initial weights with which a run would not begin.

    Nothing is made: the embedded text, which is made for the run, is not looked at, and neither is
    a text that no setting names.
    """
    source = None
    if config.data.source not in ("", "embedded"):
        source = open_text(config, Path(), lambda reads, work: None)
        check_data(config, source.train_shards(config.train.shards))
        sizes = config.data.val_bytes, config.data.val_tokens
        check_text_length(config, len(source.sample_validation(*sizes).ids))
    if config.train.init:
        _require_words(config, initial_tokenizer(config), config.train.init)
        initial(config, source, say)


def _require_words(config: Config, words: Tokenizer, where: str) -> None:
    """Raise UserError unless the model can read the tokens of a tokenizer."""
    model = config.model
    if words.vocab_size != model.vocab_size:
        raise UserError(
            f"the tokenizer of {where} has {words.vocab_size} pieces, but model.vocab_size is "
            f"{model.vocab_size}; set model.vocab_size={words.vocab_size}"
        )
    if model.smear and words.bos_id != BOS_ID:
        raise UserError(
            f"the tokenizer of {where} begins documents with token {words.bos_id}, but model.smear "
            f"stops at token {BOS_ID}; set model.smear=false or use another tokenizer"
        )


def given_tokenizer(config: Config) -> Tokenizer | None:
    """Return the tokenizer that a run takes from its initial weights, or None."""
    return initial_tokenizer(config) if config.train.init else None


def embedded_reads(config: Config, words: Tokenizer | None) -> dict[str, Any]:
    """Return what the embedded corpus of a run depends on, ready for JSON.

    `words` is the given tokenizer.
    """
    return {
        "val_share": config.data.val_share,
        "vocab_size": config.model.vocab_size,
        "versions": corpus_versions(),
        **({"tokenizer": words.digest} if words else {}),
        **({"case_ops": True} if config.data.case_ops and not words else {}),
    }


def _embedded(config: Config, out: Path, embedded: Embedded) -> DataFolder:
    data, vocab_size = config.data, config.model.vocab_size
    words = given_tokenizer(config)
    reads = embedded_reads(config, words)

    def work() -> dict[str, Any]:
        return build_data(
            embedded_documents(),
            out,
            vocab_size=vocab_size,
            val_share=data.val_share,
            shard_tokens=_SHARD_TOKENS,
            tokenizer=words,
            case_ops=data.case_ops and not words,
            provenance={"corpus": "embedded", "versions": reads["versions"]},
            replace=True,
        )

    embedded(reads, work)
    return DataFolder.open(out)
