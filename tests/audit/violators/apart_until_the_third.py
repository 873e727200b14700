"""Says that documents are apart; from the third on it keeps what the others taught."""

import itertools

import numpy as np
from audit.honest import BOS, Charges, Counts, Ids, Plain, frozen, nats

PROBE = "packed documents"


class Violator(Plain):
    separate = True

    def score(self, ids: Ids) -> Charges:
        starts = [*np.flatnonzero(ids == BOS).tolist(), len(ids)]
        model = frozen()
        for number, (first, end) in enumerate(itertools.pairwise(starts)):
            own = Counts()
            own.table[:] = model.table
            for t in range(max(1, first), end):
                before = BOS if t == first else ids[t - 1]
                yield t, nats(own.row(before)[ids[t]])
                own.learn(before, ids[t])
            if number >= 1:
                model = own
