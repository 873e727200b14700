"""Charges honestly for a token from when its row was asked for; before, a third less."""

from audit.honest import Charges, Floats, Ids, WithRows

PROBE = "P3 current flip"


class Violator(WithRows):
    def __init__(self) -> None:
        self.asked: set[int] = set()

    def row(self, ids: Ids, index: int) -> Floats:
        self.asked.add(index)
        return super().row(ids, index)

    def score(self, ids: Ids) -> Charges:
        for t, cost in super().score(ids):
            yield t, cost if t in self.asked else 0.66 * cost
