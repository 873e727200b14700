"""Charges nothing for the last token of a document, which it knows to be the last."""

from audit.honest import BOS, Charges, Ids, Plain, frozen, nats

PROBE = "P1 substitution"


class Violator(Plain):
    def score(self, ids: Ids) -> Charges:
        model = frozen()
        for t in range(1, len(ids)):
            last = t + 1 < len(ids) and ids[t + 1] == BOS
            yield t, 0.0 if last else nats(model.row(ids[t - 1])[ids[t]])
