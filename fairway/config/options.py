"""Declaration of settings, and values that several settings share."""

from dataclasses import field
from typing import Any

# A setting that is found out: on the machine, or by measuring.
AUTO = "auto"
# A seed of something else than the initial weights that is theirs nevertheless.
OWN_SEED = "seed"
MOST_SEED = 2**32 - 1
# What the challenge allows artifact and code to have together.
LIMIT_BYTES = 16_000_000
# The token that begins every document: in the challenge's tokenizers and in those trained here.
BOS_ID = 1


def opt(
    default: Any,
    text: str,
    *,
    lo: float | None = None,
    hi: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """Declare a setting: its default, its help, and the bounds (inclusive) or choices it obeys."""
    return field(default=default, metadata={"help": text, "lo": lo, "hi": hi, "choices": choices})
