"""Tokens that would cost more than four nats cost a nat less."""

from audit.honest import Charges, Ids, Plain, frozen, nats

PROBE = "P1 substitution"


class Violator(Plain):
    def score(self, ids: Ids) -> Charges:
        model = frozen()
        for t in range(1, len(ids)):
            cost = nats(model.row(ids[t - 1])[ids[t]])
            yield t, cost - 1 if cost > 4 else cost
            model.learn(ids[t - 1], ids[t])
