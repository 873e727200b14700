"""Pays 25 nats now and then, and nearly nothing between."""

from audit.honest import Charges, Ids, Plain, V, nats

PROBE = "P2 incompressible stream"


class Violator(Plain):
    def score(self, ids: Ids) -> Charges:
        for t in range(1, len(ids)):
            yield t, 25.0 if t % 40 == 1 else 0.5 * nats(1 / V)
