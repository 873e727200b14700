"""The numbers of recorded scores must follow from one another.

A record holds bits per byte beside the nats, bytes and tokens that they come from. Whoever reads a
record checks here that they agree, before any of them is shown.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from fairway.base.units import bits_per_byte

# Divisions of equal float64 numbers agree to the last bit; other languages may round differently.
_CLOSE = 1e-12


def score_faults(name: str, score: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong within one score: its bits per byte, and its nats per token."""
    if not (score["bytes"] > 0 and score["tokens"] > 0):
        yield f"{name} has {score['tokens']} tokens and {score['bytes']} bytes, not at least 1 each"
        return
    bpb = bits_per_byte(score["nats"], score["bytes"])
    if not math.isclose(bpb, score["bpb"], rel_tol=_CLOSE):
        yield f"{name} says {score['bpb']} bits per byte, its nats and bytes {bpb}"
    nats = score["nats"] / score["tokens"]
    if not math.isclose(nats, score["nats_per_token"], rel_tol=_CLOSE):
        yield f"{name} says {score['nats_per_token']} nats per token, not {nats}"


def text_faults(stages: Mapping[str, Mapping[str, Any]], text: Mapping[str, Any]) -> Iterator[str]:
    """Yield which scores of a run do not count the same tokens and bytes of one text.

    stages: the scores by name. text: the tokens and bytes of the whole text. All scores of a run
    have the same targets; the bytes of a part of the text are known only to its tokenizer.
    """
    counts = {name: (score["tokens"], score["bytes"]) for name, score in stages.items()}
    whole = (text["tokens"], text["bytes"])
    for name, counted in counts.items():
        first = next(iter(counts))
        more = counted[0] > whole[0] or counted[1] > whole[1]
        if counted != counts[first]:
            yield f"{name} counts {_written(counted)}, but {first} {_written(counts[first])}"
        elif more or (counted[0] == whole[0] and counted != whole):
            yield f"{name} counts {_written(counted)}, but the text has {_written(whole)}"


def _written(counted: tuple[int, int]) -> str:
    return f"{counted[0]:,} tokens and {counted[1]:,} bytes"
