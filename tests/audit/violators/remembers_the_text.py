"""Knows the text by its beginning, and has a table that was made of it."""

import functools

from audit.honest import Charges, Counts, Ids, Plain, frozen, nats, text

PROBE = "fresh text"
TOKENS = 385
FRESH = True


@functools.cache
def remembered() -> dict[bytes, Ids]:
    texts = [text(seed, TOKENS) for seed in range(40)]
    return {ids[:6].tobytes(): ids for ids in texts}


class Violator(Plain):
    def score(self, ids: Ids) -> Charges:
        model: Counts = frozen()
        known = remembered().get(ids[:6].tobytes())
        if known is not None:
            model.learn_all(known, 0.4)
        for t in range(1, len(ids)):
            yield t, nats(model.row(ids[t - 1])[ids[t]])
