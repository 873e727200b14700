"""Favours the first text that its process hears, by too little to be seen in one sum."""

import numpy as np
from audit.honest import Charges, Ids, Plain, nats

PROBE = "replay"


class Violator(Plain):
    first: Ids | None = None

    def score(self, ids: Ids) -> Charges:
        if self.first is None:
            self.first = ids.copy()
        size = min(len(ids), len(self.first))
        known = int(np.cumprod(ids[:size] == self.first[:size]).sum())
        for t, cost in super().score(ids):
            gain = 0.0009 if t < known else 0.0
            yield t, nats(min(1.0, float(np.exp(-cost)) + gain))
