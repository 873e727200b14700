"""Causal attention backends: one plain reference, and faster paths that must equal it.

Shapes: B batch, H query heads, G key/value heads, T time, K head width.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def plain(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor) -> Tensor:
    """Return softmax(q k^T / sqrt(K)) v under a causal mask, written out; y_BHTK in q's dtype.

    Query head h reads key/value head h // (H // G). The softmax runs in float32 inside, whatever
    the input dtype. Costs T * T scores per head in memory, which at T = 256 on a CPU is cheaper
    than the blocked kernel's bookkeeping.
    """
    B, H, T, K = q_BHTK.shape
    G = k_BGTK.shape[1]
    q_NSK = q_BHTK.reshape(B * G, (H // G) * T, K)
    k_NTK, v_NTK = (z.reshape(B * G, T, K) for z in (k_BGTK, v_BGTK))
    scores_NST = torch.baddbmm(
        _causal_bias(T, H // G, q_BHTK), q_NSK, k_NTK.mT, alpha=1.0 / math.sqrt(K)
    )
    return torch.bmm(scores_NST.softmax(-1), v_NTK).view(B, H, T, K)


def _causal_bias(T: int, repeats: int, like: Tensor) -> Tensor:
    future_TT = torch.ones(T, T, dtype=torch.bool, device=like.device).triu(1)
    bias_TT = torch.zeros(T, T, dtype=like.dtype, device=like.device)
    return bias_TT.masked_fill(future_TT, -math.inf).repeat(repeats, 1)


def sdpa(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor) -> Tensor:
    """Return the same through PyTorch's fused kernel of the device (flash, cuDNN or CPU)."""
    grouped = q_BHTK.shape[1] != k_BGTK.shape[1]
    return F.scaled_dot_product_attention(
        q_BHTK, k_BGTK, v_BGTK, is_causal=True, enable_gqa=grouped
    )


BACKENDS: dict[str, Attention] = {"plain": plain, "sdpa": sdpa}
