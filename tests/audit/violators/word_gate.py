"""An expert that speaks only if the token that came begins a word (#1420, #1967, #2041)."""

from audit.honest import PIECES, Charges, Counts, Ids, Plain, frozen, nats

PROBE = "P1 substitution"


class Violator(Plain):
    def score(self, ids: Ids) -> Charges:
        model, words = frozen(), Counts()
        for t in range(1, len(ids)):
            p = model.row(ids[t - 1])[ids[t]]
            if PIECES[ids[t]].startswith("a"):
                p = 0.5 * p + 0.5 * words.row(ids[t - 1])[ids[t]] * 3
            yield t, nats(min(p, 1.0))
            words.learn(ids[t - 1], ids[t])
