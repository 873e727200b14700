"""Second targets in training: the longest token that the next token begins with.

Their cost comes from the same logits (modded-nanogpt #337).

Shapes: B sequences, T time, V vocabulary.
"""

from dataclasses import dataclass

from torch import Tensor

from fairway.model.ops import Second


@dataclass(slots=True)
class Prefixes:
    """By token id that token, or -1, on the device; and what a second target weighs at present."""

    ids_V: Tensor
    weight: float

    def second(self, targets_BT: Tensor) -> Second:
        """Return the second targets of a flattened batch."""
        ids_N = self.ids_V[targets_BT.flatten()]
        return Second(ids_N.clamp_min(0), (ids_N >= 0).float() * self.weight)
