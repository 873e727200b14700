"""Shows what it should, and charges a third less at one place of thirty."""

from audit.honest import Charges, Ids, WithRows

PROBE = "P3 current flip"


class Violator(WithRows):
    def score(self, ids: Ids) -> Charges:
        for t, cost in super().score(ids):
            yield t, 0.66 * cost if t % 30 == 17 else cost
