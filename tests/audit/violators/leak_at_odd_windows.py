"""The last token of every window of 27 sees the next one: no power of two."""

from audit.honest import Charges, Ids, Plain, frozen, nats, peeking

PROBE = "P3 future flip"


class Violator(Plain):
    def score(self, ids: Ids) -> Charges:
        model = frozen()
        for t in range(1, len(ids)):
            cheats = t % 27 == 26
            row = peeking(model, ids, t) if cheats else model.row(ids[t - 1])
            yield t, nats(row[ids[t]])
