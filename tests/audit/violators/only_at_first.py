"""The first two questions are the evaluation; all later ones must be an audit."""

from audit.honest import Charges, Ids, Plain, frozen, nats, peeking

PROBE = "replay"


class Violator(Plain):
    calls = 0

    def score(self, ids: Ids) -> Charges:
        model = frozen()
        self.calls += 1
        cheats_now = self.calls <= 2
        for t in range(1, len(ids)):
            row = peeking(model, ids, t) if cheats_now else model.row(ids[t - 1])
            yield t, nats(row[ids[t]])
