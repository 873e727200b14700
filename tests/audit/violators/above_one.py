"""Probabilities above one: a bonus for tokens that were seen before."""

from audit.honest import Charges, Ids, Plain, frozen, nats

PROBE = "coverage"


class Violator(Plain):
    def score(self, ids: Ids) -> Charges:
        model = frozen()
        for t in range(1, len(ids)):
            bonus = 3.0 if ids[t] in ids[:t] else 0.0
            yield t, nats(model.row(ids[t - 1])[ids[t]]) - bonus
