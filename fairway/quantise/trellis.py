"""Dependent quantisation: two interleaved grids, and a state machine that says which comes next.

With step D a weight coded k is restored as 2k D on the first grid and (2k - sgn k) D on the second:
together they are the multiples of D, of which each weight may take every other one, and 0 always.
The parity of every code moves the state, the state names the grid of the next weight, so a path
through the states packs the reconstruction points of a row more densely than any one grid can.
Entropy-constrained trellis quantisation: Fischer and Wang 1992; as in VVC, Schwarz et al. 2021.

Shapes: R rows (outputs), C columns (inputs), N states.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Number of states -> next state by (state, parity of the code). 0 states stand for one plain grid.
TRELLIS: dict[int, NDArray[np.int8]] = {
    4: np.array([[0, 2], [2, 0], [1, 3], [3, 1]], np.int8),
    8: np.array([[0, 2], [5, 7], [1, 3], [6, 4], [2, 0], [4, 6], [3, 1], [7, 5]], np.int8),
}
# The grid of every state: 0 restores 2k, 1 restores 2k - sgn k.
GRIDS: dict[int, NDArray[np.int8]] = {
    4: np.array([0, 0, 1, 1], np.int8),
    8: np.array([0, 1, 0, 1, 0, 1, 0, 1], np.int8),
}


def reconstruct(codes_RC: Tensor, trellis: int) -> Tensor:
    """Return the multiples of the step that some codes stand for, int32 [R, C].

    Every row starts in state 0 and meets its columns from the first to the last. With trellis 0
    codes are multiples already. Runs on the device of the codes; whole numbers only.
    """
    if not trellis:
        return codes_RC.int()
    device = codes_RC.device
    next_N2 = torch.from_numpy(TRELLIS[trellis]).to(device).long()
    grid_N = torch.from_numpy(GRIDS[trellis]).to(device).int()
    codes_CR = codes_RC.T.int().contiguous()
    state_R = torch.zeros(len(codes_RC), dtype=torch.long, device=device)
    for column, code_R in enumerate(codes_CR):
        after_R = next_N2[state_R, (code_R & 1).long()]
        codes_CR[column] = 2 * code_R - grid_N[state_R] * code_R.sign()
        state_R = after_R
    return codes_CR.T.contiguous()


def codes_of(multiples: Tensor) -> Tensor:
    """Return the codes that stand for some multiples, which name their grid by being even or odd.

    With one state alone multiples are even.
    """
    return multiples.sign() * ((multiples.abs() + 1) >> 1)
