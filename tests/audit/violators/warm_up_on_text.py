"""Warms its optimiser up on the first chunk of the text, and keeps what it learned (#1530's pattern
without the reset)."""

from audit.honest import Charges, Ids, Plain, frozen, nats

PROBE = "P3 future flip"


class Violator(Plain):
    def score(self, ids: Ids) -> Charges:
        model = frozen()
        model.learn_all(ids[:9], 0.5)
        for t in range(1, len(ids)):
            yield t, nats(model.row(ids[t - 1])[ids[t]])
            model.learn(ids[t - 1], ids[t])
