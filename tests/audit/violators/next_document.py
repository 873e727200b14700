"""The last token of a document sees how the next document begins."""

from audit.honest import BOS, Charges, Ids, Plain, frozen, nats, peeking

PROBE = "P3 future flip"


class Violator(Plain):
    def score(self, ids: Ids) -> Charges:
        model = frozen()
        for t in range(1, len(ids)):
            cheats = t + 1 < len(ids) and ids[t + 1] == BOS
            row = peeking(model, ids, t, 2) if cheats else model.row(ids[t - 1])
            yield t, nats(row[ids[t]])
