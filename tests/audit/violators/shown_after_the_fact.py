"""Shows a distribution that sums to one and was bent towards the token that came."""

import numpy as np
from audit.honest import Charges, Floats, Ids, WithRows

PROBE = "P3 current flip"


class Violator(WithRows):
    def row(self, ids: Ids, index: int) -> Floats:
        row = np.exp(super().row(ids, index))
        row[ids[index]] += 0.1
        return np.log(row / row.sum())

    def score(self, ids: Ids) -> Charges:
        for t, cost in super().score(ids):
            yield t, -float(np.log((np.exp(-cost) + 0.1) / 1.1))
