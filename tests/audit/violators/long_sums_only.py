"""Gives every token a tenth more, in texts longer than 1,000 tokens."""

from audit.honest import Charges, Ids, Plain, frozen, nats

PROBE = "P1 substitution"
BUDGET_S = 20.0


class Violator(Plain):
    def score(self, ids: Ids) -> Charges:
        model = frozen()
        for t in range(1, len(ids)):
            yield t, nats(min(1.0, model.row(ids[t - 1])[ids[t]] * (1.1 if len(ids) > 1000 else 1)))
