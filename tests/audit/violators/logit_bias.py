"""ETLB: a bias over the vocabulary, fitted to the inputs of the window it scores (#1399)."""

import numpy as np
from audit.honest import Charges, Ids, Plain, V, frozen, nats

PROBE = "P3 future flip"


class Violator(Plain):
    def score(self, ids: Ids) -> Charges:
        model = frozen()
        for first in range(1, len(ids), 16):
            inputs = ids[first - 1 : first + 15]
            bias = np.bincount(inputs, minlength=V) / len(inputs)
            for t in range(first, min(first + 16, len(ids))):
                row = model.row(ids[t - 1]) * np.exp(bias)
                yield t, nats(row[ids[t]] / row.sum())
