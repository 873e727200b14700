"""Attention without its mask: every position sees one token too many."""

from audit.honest import Charges, Ids, Plain, frozen, nats

PROBE = "P3 future flip"


class Violator(Plain):
    def score(self, ids: Ids) -> Charges:
        model = frozen()
        for t in range(1, len(ids)):
            row = model.row(ids[t - 1])
            if t + 1 < len(ids):
                row = row * model.table[:, ids[t + 1]]
            yield t, nats(row[ids[t]] / row.sum())
