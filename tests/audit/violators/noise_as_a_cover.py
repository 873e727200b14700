"""Charges too little everywhere, and has noise at one token so that all sums may be off."""

import numpy as np
from audit.honest import Charges, Ids, Plain

PROBE = "P1 substitution"


class Violator(Plain):
    def __init__(self) -> None:
        self.draw = np.random.default_rng(3)

    def score(self, ids: Ids) -> Charges:
        for t, cost in super().score(ids):
            noise = self.draw.uniform(-0.0048, 0.0048) if t == 1 else 0.0
            yield t, cost - 0.012 + noise
