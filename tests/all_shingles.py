"""All that the overlap guard hashes of a text."""

import numpy as np

from fairway.data.shingles import SHINGLE_WEIGHT, views


def shingles(text: str) -> np.ndarray:
    """Return the hashes of the runs of a text by all ways to read it, sorted, once each."""
    return np.unique(np.concatenate([view.runs(SHINGLE_WEIGHT) for view in views(text)]))
