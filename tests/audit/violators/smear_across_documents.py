"""Claims to score documents apart, but blends the token before BOS in (#1667, #1797)."""

from audit.honest import BOS, Charges, Ids, Plain, frozen, nats

PROBE = "packed documents"


class Violator(Plain):
    separate = True

    def score(self, ids: Ids) -> Charges:
        model = frozen()
        for t in range(1, len(ids)):
            row = model.row(ids[t - 1])
            if t >= 2 and ids[t] != BOS:
                row = 0.95 * row + 0.05 * model.row(ids[t - 2])
            yield t, nats(row[ids[t]])
