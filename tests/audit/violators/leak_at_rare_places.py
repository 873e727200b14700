"""One place in fifty, by its number, sees the next token."""

from audit.honest import Charges, Ids, Plain, frozen, nats, peeking

PROBE = "P3 future flip"
TOKENS = 193


class Violator(Plain):
    def score(self, ids: Ids) -> Charges:
        model = frozen()
        for t in range(1, len(ids)):
            cheats = (t * 2654435761 % 2**32) % 50 == 7
            row = peeking(model, ids, t) if cheats else model.row(ids[t - 1])
            yield t, nats(row[ids[t]])
