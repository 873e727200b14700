"""Leaves out what costs more than four nats."""

from audit.honest import Adaptive, Charges, Ids

PROBE = "coverage"


class Violator(Adaptive):
    def score(self, ids: Ids) -> Charges:
        return ((t, cost) for t, cost in super().score(ids) if cost < 4 or t == len(ids) - 1)
