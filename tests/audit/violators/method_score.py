"""Is honest when asked for a part of a score, and looks ahead when asked for all."""

from audit.honest import Charges, Ids, Plain, frozen, nats, peeking

PROBE = "whole and part"


class Violator(Plain):
    def score(self, ids: Ids) -> Charges:
        model = frozen()
        for t in range(1, len(ids)):
            yield t, nats(peeking(model, ids, t)[ids[t]])

    def score_part(self, ids: Ids, count: int | None, until: int) -> Charges:
        return super().score(ids)
