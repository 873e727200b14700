"""Remembers the text from one evaluation to the next."""

from audit.honest import Charges, Ids, Plain, frozen, nats

PROBE = "replay"


class Violator(Plain):
    def __init__(self) -> None:
        self.model = frozen()

    def score(self, ids: Ids) -> Charges:
        for t in range(1, len(ids)):
            yield t, nats(self.model.row(ids[t - 1])[ids[t]])
            self.model.learn(ids[t - 1], ids[t])
