"""A token has more bytes if a long one follows."""

from audit.honest import PIECES, Ids, Plain

PROBE = "P7 bytes"
BYTES = True


class Violator(Plain):
    def byte_counts(self, ids: Ids) -> list[float]:
        sizes = [max(1, len(PIECES[v])) for v in ids]
        return [(a + b) // 2 for a, b in zip(sizes[1:], [*sizes[2:], 1], strict=True)]
