"""Label smoothing left on in evaluation (#1124): a loss, but of no distribution."""

import numpy as np
from audit.honest import Charges, Ids, Plain, frozen, nats

PROBE = "P1 substitution"


class Violator(Plain):
    def score(self, ids: Ids) -> Charges:
        model = frozen()
        for t in range(1, len(ids)):
            row = model.row(ids[t - 1])
            yield t, 0.9 * nats(row[ids[t]]) + 0.1 * float(-np.log(row).mean())
