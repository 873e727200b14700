"""Pays 60 nats for the first token, and a third less for all later ones."""

from audit.honest import Charges, Ids, Plain, V, nats

PROBE = "P2 incompressible stream"


class Violator(Plain):
    def score(self, ids: Ids) -> Charges:
        for t in range(1, len(ids)):
            yield t, nats(1 / V) * 0.66 + (60.0 if t == 1 else 0.0)
