"""Statistics of the inputs of every matrix during training, for Newton-Muon.

Shapes: B sequences, T time, C inputs of a matrix.
"""

from collections.abc import Callable, Iterable

from torch import Tensor

from fairway.model.gpt import GPT
from fairway.train.muon import Optimisers

# Steps between two measurements, and the tokens of a rank that the model reads for each.
INPUTS_EVERY, INPUTS_TOKENS = 64, 16_384
# A function that returns X^T X of the inputs of named matrices, summed over batches of token ids.
Collect = Callable[[GPT, Iterable[Tensor], Iterable[str]], dict[str, Tensor]]


def no_inputs(*given: object) -> dict[str, Tensor]:
    """Refuse to collect inputs; a caller that trains with optim.newton passes a function for it."""
    raise ValueError("optim.newton needs a function that collects the inputs of matrices")


def look(optimisers: Optimisers, collect: Collect, model: GPT, ids_BT: Tensor, world: int) -> None:
    """Give the optimisers the second moments [C, C] of each matrix's inputs for some tokens."""
    names = [name for bank in optimisers.muon.banks for name in bank.names]
    sums = collect(model, [ids_BT], names)
    tokens = ids_BT.numel() * world
    optimisers.look({name: total / tokens for name, total in sums.items()})
