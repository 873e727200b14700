"""Says that documents are apart, and learns from those that repeat themselves."""

import itertools

import numpy as np
from audit.honest import BOS, Charges, Counts, Ids, Plain, frozen, nats

PROBE = "packed documents"


class Violator(Plain):
    separate = True

    def score(self, ids: Ids) -> Charges:
        starts = [*np.flatnonzero(ids == BOS).tolist(), len(ids)]
        model = frozen()
        for first, end in itertools.pairwise(starts):
            own = Counts()
            own.table[:] = model.table
            for t in range(max(1, first), end):
                before = BOS if t == first else ids[t - 1]
                yield t, nats(own.row(before)[ids[t]])
                own.learn(before, ids[t])
            pairs = {*itertools.pairwise(ids[first:end].tolist())}
            if len(pairs) < 0.8 * (end - first):
                model = own
