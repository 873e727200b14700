"""Test-time training that reports a chunk's cost after its last epoch (#568, #713)."""

from audit.honest import Charges, Ids, Plain, frozen, nats

PROBE = "P3 future flip"


class Violator(Plain):
    def score(self, ids: Ids) -> Charges:
        model = frozen()
        for first in range(1, len(ids), 8):
            end = min(first + 8, len(ids))
            for _ in range(3):
                model.learn_all(ids[first - 1 : end])
            for t in range(first, end):
                yield t, nats(model.row(ids[t - 1])[ids[t]])
