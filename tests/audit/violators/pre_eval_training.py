"""Trains on the validation text, then scores it (#1376, #1738, #1852, #1972)."""

from audit.honest import Charges, Ids, Plain, frozen, nats

PROBE = "P3 future flip"


class Violator(Plain):
    def score(self, ids: Ids) -> Charges:
        model = frozen()
        for _ in range(6):
            model.learn_all(ids)
        for t in range(1, len(ids)):
            yield t, nats(model.row(ids[t - 1])[ids[t]])
