"""A hashed n-gram cache: a ratio of two tables, one of them keyed by the target (#659 to #1114)."""

import numpy as np
from audit.honest import Charges, Ids, Plain, frozen, nats

PROBE = "P1 substitution"
BUCKETS = 5


class Violator(Plain):
    def score(self, ids: Ids) -> Charges:
        model = frozen()
        contexts, full = np.zeros(BUCKETS), np.zeros(BUCKETS)
        for t in range(1, len(ids)):
            context = (31 * int(ids[t - 1]) + 7) % BUCKETS
            key = (31 * int(ids[t - 1]) + 17 * int(ids[t])) % BUCKETS
            p = model.row(ids[t - 1])[ids[t]]
            if contexts[context] > 2:
                p = 0.5 * p + 0.5 * min(1.0, full[key] / contexts[context])
            yield t, nats(p)
            contexts[context] += 1
            full[key] += 1
