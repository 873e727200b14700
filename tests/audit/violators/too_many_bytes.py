"""Counts a byte more for every token of three."""

from audit.honest import PIECES, Charges, Ids, Plain

PROBE = "P7 bytes"
BYTES = True


class Violator(Plain):
    def score(self, ids: Ids) -> Charges:
        return super().score(ids)

    def byte_counts(self, ids: Ids) -> list[float]:
        return [max(1, len(PIECES[v])) + (len(PIECES[v]) == 3) for v in ids[1:]]
