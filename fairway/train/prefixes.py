"""Second targets in training: the longest token that the next token begins with.

Their cost comes from the same logits (modded-nanogpt #337).

Shapes: B sequences, T time, V vocabulary.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fairway.config.settings import TrainConfig
from fairway.model.ops import Second


@dataclass(slots=True)
class Prefixes:
    """By token id that token, or -1, on the device; and what a second target weighs at present."""

    ids_V: Tensor
    weight: float

    @staticmethod
    def of(
        config: TrainConfig, ids_V: npt.NDArray[np.int64] | None, device: torch.device
    ) -> "Prefixes | None":
        """Return what a training asks for, if it does; then there must be a table."""
        if not config.prefix_weight:
            return None
        assert ids_V is not None, "second targets need the tokenizer's prefix_ids"
        return Prefixes(torch.from_numpy(ids_V).to(device), config.prefix_weight)

    def second(self, targets_BT: Tensor) -> Second:
        """Return the second targets of a flattened batch."""
        ids_N = self.ids_V[targets_BT.flatten()]
        return Second(ids_N.clamp_min(0), (ids_N >= 0).float() * self.weight)
