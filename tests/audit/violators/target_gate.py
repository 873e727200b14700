"""A gate that trusts counts where they predicted the token that came (#1785)."""

from audit.honest import Charges, Counts, Ids, Plain, frozen, nats

PROBE = "P1 substitution"


class Violator(Plain):
    def score(self, ids: Ids) -> Charges:
        model, counts = frozen(), Counts()
        for t in range(1, len(ids)):
            p, q = (table.row(ids[t - 1])[ids[t]] for table in (model, counts))
            share = 0.95 if q > 0.4 else 0.05
            yield t, nats((1 - share) * p + share * q)
            counts.learn(ids[t - 1], ids[t])
