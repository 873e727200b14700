"""What an audit of a scorer says of one probe."""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["valid", "invalid", "not decidable"]


@dataclass(frozen=True, slots=True)
class Probe:
    """One probe's result: what was done, how often, the worst case, and what follows.

    `rules` are the conditions it concerns, of C1 to C4. `worst` is in the unit that `did` states;
    `position` is the token it was found at.
    """

    name: str
    rules: tuple[str, ...]
    did: str
    samples: int
    worst: float | None
    position: int | None
    verdict: Verdict
    why: str
