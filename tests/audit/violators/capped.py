"""No token costs more than three nats."""

from audit.honest import Charges, Ids, Plain, frozen, nats

PROBE = "P1 substitution"


class Violator(Plain):
    def score(self, ids: Ids) -> Charges:
        model = frozen()
        for t in range(1, len(ids)):
            yield t, min(3.0, nats(model.row(ids[t - 1])[ids[t]]))
