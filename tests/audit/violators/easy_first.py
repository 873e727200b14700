"""Scores documents in the order of how well they are predicted: the order gives them away."""

from audit.honest import Charges, Ids, Plain, documents, frozen, nats

PROBE = "P3 future flip"


class Violator(Plain):
    def score(self, ids: Ids) -> Charges:
        model = frozen()
        costs = {t: nats(model.row(ids[t - 1])[ids[t]]) for t in range(1, len(ids))}
        found = documents(ids)
        for document in sorted(found, key=lambda d: sum(costs[t] for t in d) / len(d)):
            yield from ((t, costs[t]) for t in document)
