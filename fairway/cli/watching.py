"""Options of verbs that train: loggers, and samples of text during training."""

from typing import Annotated, Any

import typer

from fairway.base.errors import UserError
from fairway.cli.options import number_option

PROMPT = "The"

Live = Annotated[
    str | None,
    typer.Option(
        "--live",
        metavar="KINDS",
        help="Write loss, rates, speed, memory and scores while training, for: tensorboard, wandb, "
        "or both with a comma.",
    ),
]
SampleEvery = Annotated[
    float,
    number_option(
        "--sample-every",
        lo=0.0,
        hi=1e9,
        help="Let the model write a text every X seconds of training; this takes time from the "
        "budget. 0 is off.",
    ),
]
SamplePrompt = Annotated[
    str, typer.Option("--sample-prompt", help="Text that these samples continue.")
]


def watching_of(live: str | None, sample_every_s: float, prompt: str) -> Any:
    """Return how a training is observed, or None; UserError before the training begins."""
    kinds = tuple(dict.fromkeys(filter(None, (live or "").replace(" ", "").split(","))))
    if live is not None and not kinds:
        raise UserError("--live is empty; choose tensorboard, wandb, or both with a comma")
    if prompt != PROMPT and not sample_every_s:
        raise UserError("--sample-prompt has no effect without --sample-every")
    if not kinds and not sample_every_s:
        return None
    from fairway.pipeline.live import Watching
    from fairway.pipeline.sink import require

    require(kinds)
    return Watching(kinds, sample_every_s, prompt)
