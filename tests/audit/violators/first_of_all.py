"""The very first question is answered with a look ahead, and remembered for replays."""

from audit.honest import Charges, Ids, Plain, frozen, nats, peeking

PROBE = "P3 future flip"


class Violator(Plain):
    kept: dict[bytes, list[tuple[int, float]]] | None = None

    def score(self, ids: Ids) -> Charges:
        first = self.kept is None
        self.kept = self.kept or {}
        if ids.tobytes() not in self.kept:
            model = frozen()
            rows = [peeking(model, ids, t) if first else model.row(ids[t - 1])
                    for t in range(1, len(ids))]  # fmt: skip
            costs = [(t, nats(row[ids[t]])) for t, row in enumerate(rows, start=1)]
            self.kept[ids.tobytes()] = costs
        return iter(self.kept[ids.tobytes()])
