"""Looks ahead from the first second on."""

import time

from audit.honest import Charges, Ids, Plain, frozen, nats, peeking

BY_TIME = True
PROBE = "replay"


class Violator(Plain):
    begun_s = 0.0

    def score(self, ids: Ids) -> Charges:
        model = frozen()
        self.begun_s = self.begun_s or time.monotonic()
        cheats_now = time.monotonic() > self.begun_s + 1
        for t in range(1, len(ids)):
            row = peeking(model, ids, t) if cheats_now else model.row(ids[t - 1])
            yield t, nats(row[ids[t]])
