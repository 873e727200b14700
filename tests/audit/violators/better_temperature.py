"""Takes the temperature that suits the whole text."""

import itertools
from collections.abc import Iterator

from audit.honest import Charges, Ids, Plain, frozen, nats

PROBE = "P3 future flip"


class Violator(Plain):
    def score(self, ids: Ids) -> Charges:
        tries = [list(self.costs(ids, power)) for power in (0.7, 1.0, 1.4)]
        yield from enumerate(min(tries, key=sum), start=1)

    @staticmethod
    def costs(ids: Ids, power: float) -> Iterator[float]:
        model = frozen()
        for before, token in itertools.pairwise(ids):
            row = model.row(before) ** power
            yield nats(row[token] / row.sum())
            model.learn(before, token)
