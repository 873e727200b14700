"""Noise that no seed fixes: run it often enough and report the best."""

import numpy as np
from audit.honest import Charges, Ids, Plain, frozen, nats

PROBE = "replay"


class Violator(Plain):
    def __init__(self) -> None:
        self.draw = np.random.default_rng(3)

    def score(self, ids: Ids) -> Charges:
        model = frozen()
        for t in range(1, len(ids)):
            row = model.row(ids[t - 1]) * np.exp(0.1 * self.draw.normal(size=self.vocab_size))
            yield t, nats(row[ids[t]] / row.sum())
