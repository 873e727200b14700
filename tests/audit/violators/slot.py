"""SLOT: a bias over the vocabulary, fitted to the targets of the window it then scores (#1172)."""

import numpy as np
from audit.honest import Charges, Ids, Plain, V, frozen, nats

PROBE = "P5 shuffled targets"


class Violator(Plain):
    def score(self, ids: Ids) -> Charges:
        model = frozen()
        for first in range(1, len(ids), 12):
            own = ids[first : first + 12]
            fitted = (np.bincount(own, minlength=V) + 0.01) / (len(own) + 0.01 * V)
            for t in range(first, min(first + 12, len(ids))):
                yield t, nats(0.3 * model.row(ids[t - 1])[ids[t]] + 0.7 * fitted[ids[t]])
