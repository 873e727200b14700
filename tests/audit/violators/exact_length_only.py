"""Looks ahead in texts of one length, that of the text, and at one place of ten."""

from audit.honest import Charges, Ids, Plain, frozen, nats, peeking

PROBE = "P3 future flip"


class Violator(Plain):
    def score(self, ids: Ids) -> Charges:
        model = frozen()
        for t in range(1, len(ids)):
            cheats = len(ids) == 97 and t % 10 == 4
            row = peeking(model, ids, t) if cheats else model.row(ids[t - 1])
            yield t, nats(row[ids[t]])
