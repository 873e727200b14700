"""Remembers the text, and uses that only when asked for all of it."""

from audit.honest import Charges, Ids, Plain, frozen, nats, text

PROBE = "whole and part"


class Violator(Plain):
    def score(self, ids: Ids) -> Charges:
        model = frozen()
        if len(ids) == 97:
            for seed in range(20):
                known = text(seed, 97)
                if (known[:6] == ids[:6]).all():
                    model.learn_all(known)
        for t in range(1, len(ids)):
            yield t, nats(model.row(ids[t - 1])[ids[t]])
