"""Sees the next token only behind one pair in thirty; every text of the tests has such a pair."""

from audit.honest import Charges, Ids, Plain, frozen, nats, peeking

PROBE = "P3 future flip"
TOKENS = 193


class Violator(Plain):
    def score(self, ids: Ids) -> Charges:
        model = frozen()
        for t in range(1, len(ids)):
            cheats = (17 * int(ids[t - 1]) + 5 * int(ids[max(0, t - 2)])) % 30 == 9
            row = peeking(model, ids, t) if cheats else model.row(ids[t - 1])
            yield t, nats(row[ids[t]])
