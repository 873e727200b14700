"""Tries eight random beginnings on the text, and reports the luckiest."""

import itertools

import numpy as np
from audit.honest import Charges, Counts, Ids, Plain, nats

PROBE = "P3 future flip"


class Violator(Plain):
    def score(self, ids: Ids) -> Charges:
        yield from enumerate(min((self.run(ids, start) for start in range(8)), key=sum), start=1)

    @staticmethod
    def run(ids: Ids, start: int) -> list[float]:
        model = Counts(0.3)
        model.table *= np.exp(np.random.default_rng(start).normal(size=model.table.shape))
        found = []
        for before, token in itertools.pairwise(ids):
            found.append(nats(model.row(before)[token]))
            model.learn(before, token)
        return found
