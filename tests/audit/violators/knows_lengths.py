"""Sees a document end four tokens ahead, and expects BOS: no other token gains."""

from audit.honest import BOS, Charges, Ids, Plain, frozen, nats

PROBE = "known beginnings"
TOKENS = 193


class Violator(Plain):
    def score(self, ids: Ids) -> Charges:
        model = frozen()
        for t in range(1, len(ids)):
            row = model.row(ids[t - 1]).copy()
            row[BOS] = 0.0
            ends = BOS in ids[t : t + 2]
            row = row / row.sum() * (0.5 if ends else 0.99)
            row[BOS] = 0.5 if ends else 0.01
            yield t, nats(row[ids[t]])
            model.learn(ids[t - 1], ids[t])
