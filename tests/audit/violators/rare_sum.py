"""One place in forty, by its past, gives every token half as much again."""

from operator import mul

from audit.honest import Charges, Ids, Plain, frozen, nats

PROBE = "P1 substitution"
BUDGET_S = 20.0
TOKENS = 193


class Violator(Plain):
    def score(self, ids: Ids) -> Charges:
        model, ids = frozen(), ids.tolist()
        for t in range(1, len(ids)):
            odd = sum(map(mul, ids[max(0, t - 4) : t], (1, 5, 25, 125))) % 40 == 11
            yield t, nats(min(1.0, model.row(ids[t - 1])[ids[t]] * (1.5 if odd else 1.0)))
