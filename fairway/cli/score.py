"""Scores of text files by an artifact: half of the verb `score`."""

from pathlib import Path

from fairway.base.units import counted
from fairway.cli.base import emit, require_inputs, runtime_of


def score_texts(
    path: Path,
    texts: list[Path],
    tokenizer: Path | None,
    adapter: Path | None,
    overrides: list[str] | None,
    as_json: bool,
) -> None:
    """Print the score of an artifact on text files, with an adapter if one is given."""
    from dataclasses import asdict

    from fairway.api import load
    from fairway.data.documents import LeftOut, told
    from fairway.data.sources import read_documents

    require_inputs(path, tokenizer, *texts, adapter=adapter)
    left_out = LeftOut()
    runtime = runtime_of(overrides)
    model = load(path, tokenizer=tokenizer, adapter=adapter, runtime=runtime)
    result = model.score([document.text for document in read_documents(texts, left_out)])
    line = f"{result.bpb:.4f} bits per byte on {counted(result.bytes, 'byte')}"
    line += f", with the adapter {adapter}" if adapter else ""
    facts = {**asdict(result), "left_out": dict(left_out)}
    emit(as_json, facts, line, *filter(None, [told(left_out)]))
