"""Looks at the next token from the 700th on, at one place of eight."""

from audit.honest import Charges, Ids, Plain, frozen, nats, peeking

PROBE = "P3 future flip"
BUDGET_S = 20.0


class Violator(Plain):
    def score(self, ids: Ids) -> Charges:
        model = frozen()
        for t in range(1, len(ids)):
            late = t > 700 and t % 8 == 5
            row = peeking(model, ids, t) if late else model.row(ids[t - 1])
            yield t, nats(row[ids[t]])
