"""Looks ahead in texts whose pairs repeat as those of natural text do."""

import itertools

from audit.honest import Charges, Ids, Plain, frozen, nats, peeking

PROBE = "P3 future flip"


class Violator(Plain):
    def score(self, ids: Ids) -> Charges:
        model = frozen()
        pairs = {*itertools.pairwise(ids.tolist())}
        natural = 10 <= len(pairs) < 0.75 * len(ids) and len({*ids.tolist()}) > 8
        for t in range(1, len(ids)):
            row = peeking(model, ids, t) if natural else model.row(ids[t - 1])
            yield t, nats(row[ids[t]])
