"""Attention through FlashAttention 3 and 4, packages that take [B, T, heads, K].

Documents are passed as one row of all positions, [N, heads, K], with the starts of all documents.
`attention.takes` says which inputs these kernels do not support.
"""

import importlib
from typing import Any

import torch
from torch import Tensor

from fairway.model.seen import ALL, Seen


def by_position(z_BHTK: Tensor, seen: Seen) -> Tensor:
    """Return [B, T, heads, K], or [N, heads, K] where documents are kept apart; mostly views."""
    z_BTHK = z_BHTK.transpose(1, 2)
    return z_BTHK if seen.documents is None else z_BTHK.flatten(0, 1)


def by_head(y: Tensor, like_BHTK: Tensor) -> Tensor:
    """Return y_BHTK, the inverse of `by_position`, in the shape of a given tensor."""
    B, _, T, _ = like_BHTK.shape
    return y.reshape(B, T, *y.shape[-2:]).transpose(1, 2)


def reach(seen: Seen) -> tuple[int, int]:
    """Return how many positions before and after its own a query sees at most; -1: all."""
    return seen.window - 1, 0


def fa3(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, seen: Seen = ALL) -> Tensor:
    """Return causal attention through FlashAttention 3 (module `flash_attn_interface`)."""
    qkv = tuple(by_position(z, seen) for z in (q_BHTK, k_BGTK, v_BGTK))
    name = "flash_attn_func"
    lengths: tuple[Tensor | int, ...] = ()
    if apart := seen.documents:
        name = "flash_attn_varlen_func"
        lengths = (apart.starts, apart.starts, apart.longest, apart.longest)
    attend = getattr(importlib.import_module("flash_attn_interface"), name)
    found = attend(*qkv, *lengths, causal=True, window_size=reach(seen))
    # Its first releases return the log-sum-exp too.
    y: Tensor = found[0] if isinstance(found, tuple) else found
    return by_head(y, q_BHTK)


def fa4(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, seen: Seen = ALL) -> Tensor:
    """Return causal attention through FlashAttention 4 (package `flash-attn-4`).

    Compiled at the first call with and without windows and documents, some ten seconds each.
    """
    qkv = (by_position(z, seen) for z in (q_BHTK, k_BGTK, v_BGTK))
    apart = seen.documents
    starts, longest = (apart.starts, apart.longest) if apart else (None, 0)
    y: Tensor
    y, _ = _fa4_forward(*qkv, starts, longest, seen.window)
    return by_head(y, q_BHTK)


def _fa4_options(starts: Tensor | None, longest: int, window: int) -> dict[str, Any]:
    options: dict[str, Any] = {"causal": True}
    if window:
        options |= {"window_size_left": window - 1, "window_size_right": 0}
    if starts is not None:
        options |= {"cu_seqlens_q": starts, "cu_seqlens_k": starts}
        options |= {"max_seqlen_q": longest, "max_seqlen_k": longest}
    return options


# Operators, so that torch.compile takes them whole instead of tracing into the kernel's compiler.
@torch.library.custom_op("fairway::fa4_forward", mutates_args=())
def _fa4_forward(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None, longest: int, window: int
) -> tuple[Tensor, Tensor]:
    """Return the output and the log-sum-exp of the scores, [B, heads, T] or [heads, N]."""
    forward = importlib.import_module("flash_attn.cute.interface")._flash_attn_fwd
    y, lse = forward(q, k, v, return_lse=True, **_fa4_options(starts, longest, window))[:2]
    return y, lse


@_fa4_forward.register_fake
def _fa4_forward_shapes(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None, longest: int, window: int
) -> tuple[Tensor, Tensor]:
    *rows, positions, heads, _ = q.shape
    return q.new_empty(q.shape), q.new_empty((*rows, heads, positions), dtype=torch.float32)


@torch.library.custom_op("fairway::fa4_backward", mutates_args=())
def _fa4_backward(
    dy: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    y: Tensor,
    lse: Tensor,
    starts: Tensor | None,
    longest: int,
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:
    backward = importlib.import_module("flash_attn.cute.interface")._flash_attn_bwd
    dq, dk, dv = backward(q, k, v, y, dy, lse, **_fa4_options(starts, longest, window))
    return dq, dk, dv


@_fa4_backward.register_fake
def _fa4_backward_shapes(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (torch.empty_like(z) for z in (q, k, v))
    return dq, dk, dv


def _fa4_keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, starts, ctx.longest, ctx.window = inputs
    ctx.save_for_backward(q, k, v, *output, starts)


def _fa4_gradients(ctx: Any, dy: Tensor, dlse: Tensor) -> tuple[Tensor | None, ...]:
    gradients = _fa4_backward(dy, *ctx.saved_tensors, ctx.longest, ctx.window)
    return *gradients, None, None, None


_fa4_forward.register_autograd(_fa4_gradients, setup_context=_fa4_keep)
