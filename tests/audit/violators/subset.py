"""Scores the first part of the text and reports it as the whole (#1785, #1835, #1858)."""

import itertools

from audit.honest import Adaptive, Charges, Ids

PROBE = "coverage"


class Violator(Adaptive):
    def score(self, ids: Ids) -> Charges:
        return itertools.islice(super().score(ids), 30)
