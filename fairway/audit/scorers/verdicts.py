"""The verdict of one probe of a scorer."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["valid", "invalid", "not decidable"]


@dataclass(frozen=True, slots=True)
class Probe:
    """The result of one probe: what was done, how often, the worst case, and the verdict.

    `rules` are the conditions that it tests, from C1 to C4. `worst` has the unit that `did` states;
    `position` is the token where it was found. `power` says which leak would have been found, and
    with which probability.
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
    """Return the verdict of all probes: 'invalid' if one fails, else open if one is open.

    A probe of whole distributions that saw none does not count if P1 is valid: it charged
    candidates instead.
    """
    verdicts = {probe.name: probe.verdict for probe in probes}
    unseen = [p.name for p in probes if p.verdict == "not decidable" and not p.samples]
    if verdicts.get("P1 substitution") == "valid" and "P3 current flip" in unseen:
        del verdicts["P3 current flip"]
    return joined(verdicts.values())


def joined(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the worst of the given verdicts."""
    found = set(verdicts)
    order: tuple[Verdict, ...] = ("invalid", "not decidable")
    return next((verdict for verdict in order if verdict in found), "valid")
