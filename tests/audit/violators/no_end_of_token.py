"""Every byte by its share of the tokens that go on: the mass of those that end is lost (#1916)."""

from audit.honest import PIECES, Charges, Ids, Plain, V, frozen, nats

PROBE = "P1 substitution"


class Violator(Plain):
    def score(self, ids: Ids) -> Charges:
        model = frozen()
        for t in range(1, len(ids)):
            row, piece, cost = model.row(ids[t - 1]), PIECES[ids[t]], 0.0
            for n in range(len(piece)):
                inside = sum(row[v] for v in range(V) if PIECES[v].startswith(piece[:n]))
                further = sum(row[v] for v in range(V) if PIECES[v].startswith(piece[: n + 1]))
                cost += nats(further / inside)
            yield t, cost or nats(row[ids[t]])
