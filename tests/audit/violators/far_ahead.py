"""Sees what comes 30 tokens later."""

from audit.honest import Charges, Ids, Plain, frozen, nats, peeking

PROBE = "P3 future flip"


class Violator(Plain):
    def score(self, ids: Ids) -> Charges:
        model = frozen()
        for t in range(1, len(ids)):
            cheats = t > 5
            row = peeking(model, ids, t, 30) if cheats else model.row(ids[t - 1])
            yield t, nats(row[ids[t]])
