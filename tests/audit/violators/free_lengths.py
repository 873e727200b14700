"""Longest documents first; where they end is free, and words share what that leaves."""

from audit.honest import BOS, Charges, Ids, Plain, documents, frozen, nats

PROBE = "known beginnings"


class Violator(Plain):
    def score(self, ids: Ids) -> Charges:
        model = frozen()
        for document in sorted(documents(ids), key=len, reverse=True):
            for t in document:
                row = model.row(ids[t - 1]).copy()
                row[BOS] = 0.0
                yield t, 0.0 if ids[t] == BOS else nats(row[ids[t]] / row.sum())
                model.learn(ids[t - 1], ids[t])
