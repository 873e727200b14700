"""Two learners score every chunk; the account takes the one that came out better."""

from audit.honest import Charges, Ids, Plain, frozen, nats

PROBE = "P3 future flip"


class Violator(Plain):
    def score(self, ids: Ids) -> Charges:
        models, rates = (frozen(), frozen()), (0.2, 5.0)
        for first in range(1, len(ids), 8):
            span = range(first, min(first + 8, len(ids)))
            tries = [[nats(m.row(ids[t - 1])[ids[t]]) for t in span] for m in models]
            yield from zip(span, min(tries, key=sum), strict=True)
            for model, rate in zip(models, rates, strict=True):
                model.learn_all(ids[first - 1 : span.stop], rate)
