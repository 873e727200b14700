"""The first byte is marginal and right; the rest mixes a residual with a string's probability that
has no end of token (#2032, #2039, #2138)."""

from audit.honest import PIECES, Charges, Ids, Plain, V, frozen, nats

PROBE = "P1 substitution"


class Violator(Plain):
    def score(self, ids: Ids) -> Charges:
        model = frozen()
        counts = dict.fromkeys("abc", 1.0)
        for t in range(1, len(ids)):
            row, piece = model.row(ids[t - 1]), PIECES[ids[t]]
            first = sum(row[v] for v in range(V) if PIECES[v][:1] == piece[:1])
            string = 1.0
            for byte in piece[1:]:
                string *= counts[byte] / sum(counts.values())
            yield t, nats(first) + nats(0.5 * row[ids[t]] / first + 0.5 * string)
            for byte in piece:
                counts[byte] += 1
