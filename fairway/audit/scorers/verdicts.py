"""The verdict of one probe of a scorer."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["valid", "invalid", "not decidable"]


@dataclass(frozen=True, slots=True)
class Probe:
    """One probe's result: what was done, how often, the worst case, and what follows.

    `rules` are the conditions it concerns, of C1 to C4. `worst` is in the unit that `did` states;
    `position` is the token it was found at. `power` says which leak would have been found, and with
    which probability.
    """

    name: str
    rules: tuple[str, ...]
    did: str
    samples: int
    worst: float | None
    position: int | None
    verdict: Verdict
    why: str
    power: str = ""


def verdict_of(probes: Sequence[Probe]) -> Verdict:
    """Return what follows from all probes: one that fails decides, one left open leaves it open.

    A probe of whole distributions is not missed where every candidate was charged for (P1).
    """
    verdicts = {probe.name: probe.verdict for probe in probes}
    if verdicts.get("P1 substitution") == "valid":
        verdicts.pop("P3 current flip", None)
    return joined(verdicts.values())


def joined(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the worst of some verdicts."""
    found = set(verdicts)
    order: tuple[Verdict, ...] = ("invalid", "not decidable", "valid")
    return next((verdict for verdict in order if verdict in found), "valid")
