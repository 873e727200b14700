"""Shows an honest distribution and charges three hundredths less."""

from audit.honest import Charges, Ids, WithRows

PROBE = "P3 current flip"


class Violator(WithRows):
    def score(self, ids: Ids) -> Charges:
        return ((t, 0.97 * cost) for t, cost in super().score(ids))
