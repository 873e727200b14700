"""Attention through PyTorch's generated kernel, whose mask is a formula of window and documents.

Shapes as in `attention`; M blocks of queries, J blocks of keys.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from fairway.model.seen import ALL, Seen

_BLOCK = 128
# After this many shapes PyTorch stops compiling and keeps all scores in memory. Its default is 8,
# but texts alone have more lengths.
_MOST_SHAPES = 256


def flex(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, seen: Seen = ALL) -> Tensor:
    """Return what `attention.plain` does, by a kernel compiled at the first call of a shape.

    Contexts are padded to whole blocks, because for fewer than 128 queries PyTorch uses its
    decoding kernel, which has no tile for 65 to 127 queries in groups of two. Causal attention does
    not see the added keys.
    """
    T = q_BHTK.shape[2]
    mask = _mask(seen, T, q_BHTK.device)
    if added := -T % _BLOCK:
        q_BHTK, k_BGTK, v_BGTK = (F.pad(z, (0, 0, 0, added)) for z in (q_BHTK, k_BGTK, v_BGTK))
    with torch._dynamo.config.patch(recompile_limit=_MOST_SHAPES):
        y_BHTK: Tensor = _compiled()(q_BHTK, k_BGTK, v_BGTK, block_mask=mask, enable_gqa=True)
    return y_BHTK[:, :, :T]


@functools.cache
def _compiled() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=False)


def _mask(seen: Seen, T: int, device: torch.device) -> BlockMask:
    """Return the mask of visible blocks, made once per length (or batch) and window."""
    if seen.documents is None:
        return _window_mask(seen.window, T, device)
    masks: dict[int, BlockMask] = seen.documents.masks
    if seen.window not in masks:
        masks[seen.window] = block_mask(seen, T, device)
    return masks[seen.window]


# Training at one length needs one mask per window; scoring and sampling add a few more.
@functools.lru_cache(maxsize=64)
def _window_mask(window: int, T: int, device: torch.device) -> BlockMask:
    return block_mask(Seen(window), T, device)


def block_mask(seen: Seen, T: int, device: torch.device) -> BlockMask:
    """Return which blocks of keys every block of queries sees, wholly or in part.

    First positions never decrease, so those of a block's first and last query decide. So no mask of
    T * T is made, nothing is compiled, and the host does not wait for a GPU. T is padded to whole
    blocks.
    """
    first_AT = seen.first(T, device)
    # Added queries see the same keys as the last one, and themselves.
    first_AT = torch.cat([first_AT, first_AT[:, -1:].expand(-1, -T % _BLOCK)], 1)
    A, length = first_AT.shape
    first_AMQ = first_AT.view(A, -1, _BLOCK)
    block_J = torch.arange(length // _BLOCK, device=device)
    start_J, block_M1 = block_J * _BLOCK, block_J[:, None]
    some_AMJ = (block_J <= block_M1) & (start_J + _BLOCK > first_AMQ[..., :1])
    whole_AMJ = (block_J < block_M1) & (start_J >= first_AMQ[..., -1:])
    return BlockMask.from_kv_blocks(
        *_listed(some_AMJ & ~whole_AMJ),
        *_listed(whole_AMJ),
        BLOCK_SIZE=_BLOCK,
        mask_mod=_formula(seen, first_AT),
        seq_lengths=(length, length),
    )


def _listed(blocks_AMJ: Tensor) -> tuple[Tensor, Tensor]:
    """Return the number of marked blocks, and all blocks with the marked ones first; int32."""
    blocks_A1MJ = blocks_AMJ[:, None].int()
    order_A1MJ = blocks_A1MJ.argsort(stable=True, dim=-1, descending=True)
    return blocks_A1MJ.sum(-1, dtype=torch.int32), order_A1MJ.int()


def _formula(seen: Seen, first_AT: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Return the mask function for flex: whether a query sees a key.

    The window is a tensor in it, because another number would need another compilation.
    """
    first_T = first_AT[0]

    def past(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return query >= key

    def near(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (key >= first_T[query])

    def own(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (key >= first_AT[batch, query])

    if seen.documents is not None:
        return own
    return near if seen.window else past
