"""Declaration of settings, and values that several settings share."""

from dataclasses import field
from typing import Any

# The value of a setting that Fairway determines: from the machine, or by measuring.
AUTO = "auto"
# The value of a seed that is equal to the seed of the initial weights.
OWN_SEED = "seed"
MOST_SEED = 2**32 - 1
# The limit of the challenge for artifact and code together.
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
    """Declare a setting: its default, its help, and its inclusive bounds or choices."""
    return field(default=default, metadata={"help": text, "lo": lo, "hi": hi, "choices": choices})
