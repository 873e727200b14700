"""A temperature below one where the guess is right, one where it is wrong."""

from audit.honest import Charges, Ids, Plain, frozen, nats

PROBE = "P1 substitution"


class Violator(Plain):
    def score(self, ids: Ids) -> Charges:
        model = frozen()
        for t in range(1, len(ids)):
            row = model.row(ids[t - 1])
            if ids[t] == row.argmax():
                row = row**2 / (row**2).sum()
            yield t, nats(row[ids[t]])
