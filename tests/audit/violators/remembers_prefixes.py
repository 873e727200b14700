"""Looks ahead when a beginning is new, and repeats itself whenever it comes again."""

from audit.honest import Charges, Ids, Plain, frozen, nats, peeking

PROBE = "P3 future flip"


class Violator(Plain):
    def __init__(self) -> None:
        self.kept: dict[bytes, float] = {}

    def score(self, ids: Ids) -> Charges:
        model = frozen()
        for t in range(1, len(ids)):
            key = ids[: t + 1].tobytes()
            if key not in self.kept:
                self.kept[key] = nats(peeking(model, ids, t)[ids[t]])
            yield t, self.kept[key]
