"""Scores the text, learns it, and scores it again (#846, #870, #888)."""

from audit.honest import Charges, Ids, Plain, frozen, nats

PROBE = "coverage"


class Violator(Plain):
    def score(self, ids: Ids) -> Charges:
        model = frozen()
        for _ in range(2):
            for t in range(1, len(ids)):
                yield t, nats(model.row(ids[t - 1])[ids[t]])
            model.learn_all(ids)
