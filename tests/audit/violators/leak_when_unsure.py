"""Where the model is least sure, it sees the next token."""

from audit.honest import Charges, Ids, Plain, frozen, nats, peeking

PROBE = "P3 future flip"


class Violator(Plain):
    def score(self, ids: Ids) -> Charges:
        model = frozen()
        for t in range(1, len(ids)):
            cheats = model.row(ids[t - 1]).max() < 0.12
            row = peeking(model, ids, t) if cheats else model.row(ids[t - 1])
            yield t, nats(row[ids[t]])
