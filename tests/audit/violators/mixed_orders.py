"""Hints follow the order of the text, learning that of the lengths: no one order makes both causal
(#2135, #2130, #2018)."""

import numpy as np
from audit.honest import Charges, Counts, Ids, Plain, V, documents, frozen, nats

PROBE = "P3 future flip"


class Violator(Plain):
    def score(self, ids: Ids) -> Charges:
        hints = self.hints(ids)
        model = frozen()
        for document in sorted(documents(ids), key=len, reverse=True):
            for t in document:
                row = model.row(ids[t - 1]) * np.where(np.arange(V) == hints[t], 3.0, 1.0)
                yield t, nats(row[ids[t]] / row.sum())
                model.learn(ids[t - 1], ids[t])

    @staticmethod
    def hints(ids: Ids) -> list[int]:
        seen, found = Counts(), [0]
        for t in range(1, len(ids)):
            found.append(int(seen.row(ids[t - 1]).argmax()))
            seen.learn(ids[t - 1], ids[t])
        return found
