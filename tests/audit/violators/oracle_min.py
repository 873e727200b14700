"""The better of two experts, token by token: whoever chooses knows the token."""

from audit.honest import Charges, Counts, Ids, Plain, frozen, nats

PROBE = "P1 substitution"


class Violator(Plain):
    def score(self, ids: Ids) -> Charges:
        one, other = frozen(), Counts()
        for t in range(1, len(ids)):
            yield t, nats(max(model.row(ids[t - 1])[ids[t]] for model in (one, other)))
            other.learn(ids[t - 1], ids[t])
