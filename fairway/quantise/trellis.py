"""Dependent quantisation: two interleaved grids, and a state machine that selects the next grid.

With step D the code k is restored as 2k D on the first grid and (2k - 1) D on the second. Together
the grids have all multiples of D, of which each weight can take every other one. The parity of each
code changes the state, and the state selects the grid of the next weight. So the possible values of
a row are denser than on any single grid. Trellis-coded quantisation: Marcellin and Fischer 1990;
entropy-constrained: Fischer and Wang 1992; the codes are Ungerboeck's of 1982. (A second grid that
also contains 0, as in VVC, is worse: docs/LOG.md.)

Shapes: R rows (outputs), C columns (inputs), N states.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Number of states -> parity check polynomials of the code, without their constant terms.
_CHECKS = {4: (0b10, 0b01), 8: (0b101, 0b010), 16: (0b1001, 0b0010), 32: (0b10010, 0b00100)}


def _moves(states: int) -> NDArray[np.int8]:
    of_grid, of_parity = _CHECKS[states]
    state_N1, parity_2 = np.arange(states)[:, None], np.arange(2)
    return (state_N1 >> 1 ^ (state_N1 & 1) * of_grid ^ parity_2 * of_parity).astype(np.int8)


# Number of states -> next state by (state, parity of the code). 0 states mean one plain grid.
TRELLIS: dict[int, NDArray[np.int8]] = {states: _moves(states) for states in _CHECKS}
# The grid of every state: 0 restores 2k, 1 restores 2k - 1.
GRIDS: dict[int, NDArray[np.int8]] = {
    states: (np.arange(states) & 1).astype(np.int8) for states in _CHECKS
}


def reconstruct(codes_RC: Tensor, trellis: int) -> Tensor:
    """Return the multiples of the step for some codes, int32 [R, C].

    Every row starts in state 0 and goes through its columns from the first to the last. With
    trellis 0 codes are multiples already. This runs on the device of the codes, in whole numbers
    only.
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
        codes_CR[column] = 2 * code_R - grid_N[state_R]
        state_R = after_R
    return codes_CR.T.contiguous()


def codes_of(multiples: Tensor) -> Tensor:
    """Return the codes of some multiples; even and odd multiples belong to different grids.

    With only one state all multiples are even.
    """
    return (multiples + 1) >> 1
