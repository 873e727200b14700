"""Which scores of a script its logs print in a line: that of the score claimed, above all."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# Letters that the texts of a print must have together, before a line is taken for its.
_LEAST_LETTERS = 6
# A line that was cut at so many characters may lack what the print writes at its end.
_CUT = 200
_HOLES = re.compile(r"%[-+.\d]{0,6}[sdfgir]|\{[^{}]{0,40}\}")


@dataclass(frozen=True, slots=True)
class Printed:
    """What one call prints: the texts between its values, in order, and the scores in them."""

    line: int
    texts: tuple[str, ...]
    scores: frozenset[int]

    def letters(self) -> int:
        """Return how many letters its texts have."""
        return sum(c.isalpha() for text in self.texts for c in text)

    def fits(self, line: str) -> bool:
        """Return whether a line of a log holds its texts, one behind the other."""
        at = 0
        for text in self.texts:
            at = line.find(text, at)
            if at < 0:
                return False
            at += len(text)
        return True


def texts_of(pieces: Iterable[str]) -> tuple[str, ...]:
    """Return what is sure to stand in a line of pieces that may have holes for values."""
    parts = (part.strip() for piece in pieces for part in _HOLES.split(piece))
    return tuple(part for part in parts if part)


def scores_in(prints: Sequence[Printed], lines: Iterable[str]) -> frozenset[int]:
    """Return the scores that prints put into lines: of each line those whose texts fit it best.

    Nothing: no print fits a line, or what it prints is not known to be a score.
    """
    found: set[int] = set()
    for line in lines:
        whole = [p for p in prints if p.letters() >= _LEAST_LETTERS and p.fits(line[:_CUT])]
        best = max((p.letters() for p in whole), default=0)
        of_line = [p for p in whole if p.letters() == best]
        if not of_line or not all(p.scores for p in of_line):
            return frozenset()
        found |= {score for p in of_line for score in p.scores}
    return frozenset(found)
