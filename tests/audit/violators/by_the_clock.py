"""Looks ahead for half a second, then never again."""

import time

from audit.honest import Charges, Ids, Plain, frozen, nats, peeking

PROBE = "replay"
# What finds it depends on the pace of the machine.
BY_TIME = True


class Violator(Plain):
    begun_s = 0.0

    def score(self, ids: Ids) -> Charges:
        model = frozen()
        self.begun_s = self.begun_s or time.monotonic()
        cheats_now = time.monotonic() < self.begun_s + 0.5
        for t in range(1, len(ids)):
            row = peeking(model, ids, t) if cheats_now else model.row(ids[t - 1])
            yield t, nats(row[ids[t]])
