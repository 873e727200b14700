"""Looks at the next token only if it is one that follows often."""

import collections
import itertools

from audit.honest import Charges, Ids, Plain, frozen, nats, peeking

PROBE = "P3 future flip"


class Violator(Plain):
    def score(self, ids: Ids) -> Charges:
        model = frozen()
        pairs = collections.Counter(itertools.pairwise(ids[:40].tolist()))
        for t in range(1, len(ids)):
            cheats = t + 1 < len(ids) and pairs[int(ids[t]), int(ids[t + 1])] > 1
            row = peeking(model, ids, t) if cheats else model.row(ids[t - 1])
            yield t, nats(row[ids[t]])
