"""One row of forty is bent towards the token that comes."""

import numpy as np
from audit.honest import Charges, Floats, Ids, WithRows

PROBE = "P3 current flip"


class Violator(WithRows):
    def row(self, ids: Ids, index: int) -> Floats:
        row = np.exp(super().row(ids, index))
        if index % 40 == 13:
            row[ids[index]] += 0.5
        return np.log(row / row.sum())

    def score(self, ids: Ids) -> Charges:
        for t, _ in super().score(ids):
            yield t, -float(self.row(ids, t)[ids[t]])
