"""The verb that fine-tunes: tune."""

from pathlib import Path
from typing import Annotated, Any

from fairway.base.errors import UserError
from fairway.base.outputs import require_file
from fairway.cli.base import (
    Json,
    RunOrArtifact,
    Set,
    TokenizerFile,
    emit,
    require_inputs,
    say_to,
    settings_of,
)
from fairway.cli.options import file_option, path_argument, whole_option
from fairway.config.settings import MOST_SEED

# Settings of test-time training that say what adapters are and how they learn.
_TAKEN = ("lora_targets", "lora_rank", "lora_alpha", "lora_lr", "lora_wd")


def tune(
    path: RunOrArtifact,
    texts: Annotated[
        list[Path], path_argument("TEXT...", "Text files to learn, or folders of them.")
    ],
    out: Annotated[Path, file_option("--out", help="Adapter file to write (safetensors).")],
    epochs: Annotated[
        int, whole_option("--epochs", lo=1, hi=10_000, help="Number of times to read the text.")
    ] = 3,
    seed: Annotated[
        int,
        whole_option(
            "--seed", lo=0, hi=MOST_SEED, help="Seed of the initial adapters and of the order."
        ),
    ] = 0,
    tokenizer: TokenizerFile = None,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Fine-tune LoRA adapters on a text; the model itself does not change."""
    from fairway.data.documents import LeftOut, told
    from fairway.data.sources import read_documents
    from fairway.tuning.tune import TUNING, tune

    inputs = {"artifact": path, "tokenizer": tokenizer}
    inputs |= {f"text {text}": text for text in texts}
    require_file(out, inputs, _is_adapter)
    require_inputs(path, tokenizer, *texts)
    _check_taken(overrides)
    config = settings_of(overrides, ("runtime", "ttt"), TUNING)
    left_out = LeftOut()
    documents = [document.text for document in read_documents(texts, left_out)]
    facts = tune(
        path,
        documents,
        out,
        config.ttt,
        epochs=epochs,
        seed=seed,
        tokenizer=tokenizer,
        runtime=config.runtime,
        say=say_to(as_json),
    )
    lines = [*_lines(facts["results"]), f"{out}: {facts['bytes']:,} bytes"]
    emit(as_json, {**facts, "left_out": dict(left_out)}, *lines, *filter(None, [told(left_out)]))


def _check_taken(overrides: list[str] | None) -> None:
    for text in overrides or []:
        section, _, rest = text.strip().partition(".")
        name = rest.partition("=")[0].strip()
        if section == "ttt" and name.startswith("lora_") and name not in _TAKEN:
            raise UserError(
                f"--set {text} has no effect on fine-tuning, which takes "
                f"{', '.join(f'ttt.{name}' for name in _TAKEN)}"
            )


def _lines(results: dict[str, Any]) -> list[str]:
    names = {"learned": "text that was learned", "held_out": "text that was not learned"}
    return [
        f"{names[part]}: {before:.4f} -> {results['after'][part]:.4f} bits per byte on "
        f"{results['bytes'][part]:,} bytes"
        for part, before in results["before"].items()
    ]


def _is_adapter(head: bytes) -> bool:
    return (
        head[8:].startswith(b'{"__metadata__":{"digest":"') and b'\\"kind\\": \\"adapter\\"' in head
    )
