"""Bytes of a token are given equal shares of it, then mixed with counts (#1835 to #2103, #1872)."""

from audit.honest import PIECES, Charges, Ids, Plain, frozen, nats

PROBE = "P1 substitution"


class Violator(Plain):
    def score(self, ids: Ids) -> Charges:
        model, seen = frozen(), {}
        for t in range(1, len(ids)):
            p, piece = model.row(ids[t - 1])[ids[t]], PIECES[ids[t]] or "\0"
            spread, cost = p ** (1 / len(piece)), 0.0
            for n, byte in enumerate(piece):
                counts = seen.get(piece[:n], {})
                q = (counts.get(byte, 0) + 1 / 256) / (sum(counts.values()) + 1)
                cost += nats(self.share(spread) * spread + (1 - self.share(spread)) * q)
            yield t, cost
            for n, byte in enumerate(piece):
                counts = seen.setdefault(piece[:n], {})
                counts[byte] = counts.get(byte, 0) + 1

    def share(self, spread: float) -> float:
        return 0.5
