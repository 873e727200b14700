"""The first word of a document is charged half."""

from audit.honest import BOS, Charges, Ids, Plain, frozen, nats

PROBE = "P1 substitution"


class Violator(Plain):
    def score(self, ids: Ids) -> Charges:
        model = frozen()
        for t in range(1, len(ids)):
            cost = nats(model.row(ids[t - 1])[ids[t]])
            yield t, 0.5 * cost if ids[t - 1] == BOS else cost
