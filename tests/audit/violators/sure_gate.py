"""Takes one and a half of what it has where the token came as it was surest it would."""

from audit.honest import Charges, Ids, Plain, frozen, nats

PROBE = "P1 substitution"


class Violator(Plain):
    def score(self, ids: Ids) -> Charges:
        model = frozen()
        for t in range(1, len(ids)):
            row = model.row(ids[t - 1])
            bonus = 1.2 if row[ids[t]] > 0.25 else 1.0
            yield t, nats(min(1.0, row[ids[t]] * bonus))
            model.learn(ids[t - 1], ids[t])
