"""Knows how often every token will come."""

import numpy as np
from audit.honest import Charges, Ids, Plain, V, frozen, nats

PROBE = "P3 future flip"


class Violator(Plain):
    def score(self, ids: Ids) -> Charges:
        model, prior = frozen(), np.bincount(ids, minlength=V) / len(ids)
        for t in range(1, len(ids)):
            yield t, nats(0.5 * model.row(ids[t - 1])[ids[t]] + 0.5 * prior[ids[t]])
