"""Where documents begin counts as known: BOS is free, and words cost what they did."""

from audit.honest import BOS, Charges, Ids, Plain, frozen, nats

PROBE = "P1 substitution"


class Violator(Plain):
    def score(self, ids: Ids) -> Charges:
        model = frozen()
        for t in range(1, len(ids)):
            yield t, 0.0 if ids[t] == BOS else nats(model.row(ids[t - 1])[ids[t]])
