"""Sums to more than one, and only in texts of many words."""

from audit.honest import Charges, Ids, Plain, frozen, nats

PROBE = "P1 substitution"


class Violator(Plain):
    def score(self, ids: Ids) -> Charges:
        model, many = frozen(), len({*ids.tolist()}) > 8
        for t in range(1, len(ids)):
            p = model.row(ids[t - 1])[ids[t]]
            yield t, nats(min(1.0, p * (1.3 if many else 1.0)))
