"""Causal attention backends: one plain reference, and faster paths that must equal it.

Every backend takes q_BHTK, k_BGTK and v_BGTK, usually transposed views of [B, T, heads, K] and
possibly slices of one wider buffer, and returns y_BHTK; query head h reads key/value head
h // (H // G). The fast ones lay y out as [B, T, H, K] underneath, so transposing it back is free.

Shapes: B batch, H query heads, G key/value heads, T time, K head width.
"""

import functools
import importlib.util
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from fairway.base.errors import UserError

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]

# What `auto` takes on a GPU: the first that works there. Forward and backward of one layer on an
# H200 (48 x 2,048 tokens, 8/4 heads of 64, bfloat16): fa4 1.88 ms, cudnn 2.13, flash 3.28.
AUTO_ON_CUDA = ("fa4", "cudnn", "flash", "efficient", "plain")


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


# ---------------------------------------------------------------------------------------------
# Through PyTorch


def sdpa(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor) -> Tensor:
    """Return the same through whichever fused kernel PyTorch picks for the device and dtype."""
    grouped = q_BHTK.shape[1] != k_BGTK.shape[1]
    return F.scaled_dot_product_attention(
        q_BHTK, k_BGTK, v_BGTK, is_causal=True, enable_gqa=grouped
    )


def cudnn(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor) -> Tensor:
    """Return the same through cuDNN's kernel. Raises UserError for a head width it refuses."""
    _check_width("cudnn", q_BHTK, 128)
    if q_BHTK.shape[2] == 1:
        # cuDNN has no plan for a single position, where there is nothing to fuse anyway.
        return plain(q_BHTK, k_BGTK, v_BGTK)
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return sdpa(q_BHTK, k_BGTK, v_BGTK)


def flash(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor) -> Tensor:
    """Return the same through PyTorch's FlashAttention 2. Raises UserError like `cudnn`."""
    _check_width("flash", q_BHTK, 256)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return sdpa(q_BHTK, k_BGTK, v_BGTK)


def flash_in_order(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor) -> Tensor:
    """Return what `flash` returns; its gradients are added up in the same order every time."""
    y_BHTK: Tensor = _InOrder.apply(flash, q_BHTK, k_BGTK, v_BGTK)  # type: ignore[no-untyped-call]
    return y_BHTK


class _InOrder(torch.autograd.Function):
    """Attention whose way back alone runs under PyTorch's demand for repeatable results.

    As a demand on the whole model it would refuse operations that repeat their bits anyway.
    """

    @staticmethod
    def forward(ctx: Any, attend: Attention, *qkv: Tensor) -> Tensor:
        inputs = tuple(z.detach().requires_grad_() for z in qkv)
        with torch.enable_grad():
            y_BHTK = attend(*inputs)
        ctx.inputs, ctx.output = inputs, y_BHTK
        return y_BHTK.detach()

    @staticmethod
    def backward(ctx: Any, dy_BHTK: Tensor) -> tuple[Tensor | None, ...]:
        with _demanding_order():
            gradients = torch.autograd.grad(ctx.output, ctx.inputs, dy_BHTK)
        return None, *gradients


# A module whose setting is an attribute added at run time.
_DETERMINISTIC: Any = torch.utils.deterministic


@contextmanager
def _demanding_order() -> Iterator[None]:
    """While this lasts, PyTorch takes operations that repeat their bits.

    Without filling what it allocates, as it otherwise does then: 8 launches a layer.
    """
    asked = torch.are_deterministic_algorithms_enabled()
    only_warned = torch.is_deterministic_algorithms_warn_only_enabled()
    filled = _DETERMINISTIC.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    _DETERMINISTIC.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(asked, warn_only=only_warned)
        _DETERMINISTIC.fill_uninitialized_memory = filled


def efficient(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor) -> Tensor:
    """Return the same through the one fused GPU kernel that also takes float32.

    It knows no grouped heads: keys and values are copied once per query head.
    """
    k_BHTK, v_BHTK = (_per_query_head(z, q_BHTK) for z in (k_BGTK, v_BGTK))
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
        return sdpa(q_BHTK, k_BHTK, v_BHTK)


def _per_query_head(z_BGTK: Tensor, q_BHTK: Tensor) -> Tensor:
    repeats = q_BHTK.shape[1] // z_BGTK.shape[1]
    return z_BGTK if repeats == 1 else z_BGTK.repeat_interleave(repeats, 1)


_FLEX_BLOCK = 128


def flex(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor) -> Tensor:
    """Return the same through PyTorch's generated kernel, compiled at the first call of a shape.

    Contexts grow to whole blocks: for fewer than 128 queries PyTorch takes its decoding kernel,
    which has no tile for 65 to 127 of them in groups of two. Causality hides the added keys.
    """
    T = q_BHTK.shape[2]
    added = -T % _FLEX_BLOCK
    mask = _causal_blocks(T + added, q_BHTK.device)
    if added:
        q_BHTK, k_BGTK, v_BGTK = (F.pad(z, (0, 0, 0, added)) for z in (q_BHTK, k_BGTK, v_BGTK))
    y_BHTK: Tensor = _compiled_flex()(q_BHTK, k_BGTK, v_BGTK, block_mask=mask, enable_gqa=True)
    return y_BHTK[:, :, :T]


@functools.cache
def _compiled_flex() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=False)


# Runs of one length ask for one mask; scoring and sampling add a few more.
@functools.lru_cache(maxsize=16)
def _causal_blocks(T: int, device: torch.device) -> BlockMask:
    return create_block_mask(_not_after, None, None, T, T, device=device, BLOCK_SIZE=_FLEX_BLOCK)


def _not_after(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return query >= key


def _check_width(name: str, q_BHTK: Tensor, most: int) -> None:
    width = q_BHTK.shape[3]
    if width % 8 or width > most:
        raise UserError(
            f"attention backend {name} needs a head width that is a multiple of 8 up to {most}, "
            f"not {width}; set runtime.attention=plain"
        )


# ---------------------------------------------------------------------------------------------
# Through other packages, which take [B, T, heads, K]


def fa3(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor) -> Tensor:
    """Return the same through FlashAttention 3 (module `flash_attn_interface`)."""
    attend = importlib.import_module("flash_attn_interface").flash_attn_func
    found = attend(*(z.transpose(1, 2) for z in (q_BHTK, k_BGTK, v_BGTK)), causal=True)
    # Its first releases return the log-sum-exp too.
    y_BTHK: Tensor = found[0] if isinstance(found, tuple) else found
    return y_BTHK.transpose(1, 2)


def fa4(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor) -> Tensor:
    """Return the same through FlashAttention 4 (package `flash-attn-4`).

    Compiled at the first call, some ten seconds. Raises UserError for a head width it refuses.
    """
    _check_width("fa4", q_BHTK, 128)
    y_BTHK: Tensor
    y_BTHK, _ = _fa4_forward(*(z.transpose(1, 2) for z in (q_BHTK, k_BGTK, v_BGTK)))
    return y_BTHK.transpose(1, 2)


# Operators, so that torch.compile takes them whole instead of tracing into the kernel's compiler.
@torch.library.custom_op("fairway::fa4_forward", mutates_args=())
def _fa4_forward(q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor) -> tuple[Tensor, Tensor]:
    """Return the output and the log-sum-exp_BHT of the scores."""
    forward = importlib.import_module("flash_attn.cute.interface")._flash_attn_fwd
    y_BTHK, lse_BHT = forward(q_BTHK, k_BTGK, v_BTGK, causal=True, return_lse=True)[:2]
    return y_BTHK, lse_BHT


@_fa4_forward.register_fake
def _fa4_forward_shapes(q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor) -> tuple[Tensor, Tensor]:
    B, T, H, _ = q_BTHK.shape
    return q_BTHK.new_empty(q_BTHK.shape), q_BTHK.new_empty((B, H, T), dtype=torch.float32)


@torch.library.custom_op("fairway::fa4_backward", mutates_args=())
def _fa4_backward(
    dy_BTHK: Tensor, q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, y_BTHK: Tensor, lse_BHT: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    backward = importlib.import_module("flash_attn.cute.interface")._flash_attn_bwd
    dq, dk, dv = backward(q_BTHK, k_BTGK, v_BTGK, y_BTHK, dy_BTHK, lse_BHT, causal=True)
    return dq, dk, dv


@_fa4_backward.register_fake
def _fa4_backward_shapes(
    dy_BTHK: Tensor, q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, y_BTHK: Tensor, lse_BHT: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (torch.empty_like(z) for z in (q_BTHK, k_BTGK, v_BTGK))
    return dq, dk, dv


def _fa4_keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _fa4_gradients(ctx: Any, dy_BTHK: Tensor, dlse_BHT: Tensor) -> tuple[Tensor, ...]:
    gradients: tuple[Tensor, ...] = _fa4_backward(dy_BTHK, *ctx.saved_tensors)
    return gradients


_fa4_forward.register_autograd(_fa4_gradients, setup_context=_fa4_keep)


# ---------------------------------------------------------------------------------------------
# What works where

BACKENDS: dict[str, Attention] = {
    "plain": plain,
    "sdpa": sdpa,
    "cudnn": cudnn,
    "flash": flash,
    "efficient": efficient,
    "flex": flex,
    "fa3": fa3,
    "fa4": fa4,
}


def why_not(name: str, device: str, dtype: torch.dtype) -> str:
    """Return why a backend does not run on this kind of device and dtype; '' if it does.

    Looks, but imports and runs nothing. Head widths are checked at the call.
    """
    if name in ("plain", "sdpa"):
        return ""
    if device != "cuda":
        return "it runs on CUDA GPUs only"
    if name == "flex":
        return "" if importlib.util.find_spec("triton") else "it needs the package triton"
    if name == "efficient":
        return ""
    if dtype not in (torch.bfloat16, torch.float16):
        return f"it takes 16-bit activations, not {str(dtype).removeprefix('torch.')}"
    generation, _ = torch.cuda.get_device_capability()
    if generation < (oldest := _OLDEST_GENERATION[name]):
        return f"it needs compute capability {oldest}.0, this GPU has {generation}"
    return _MISSING[name]()


_OLDEST_GENERATION = {"cudnn": 8, "flash": 8, "fa3": 9, "fa4": 9}


def _missing_cudnn() -> str:
    version: Callable[[], int | None] = torch.backends.cudnn.version
    return "" if version() else "this PyTorch has no cuDNN"


def _missing_flash() -> str:
    built = torch.backends.cuda.is_flash_attention_available()
    return "" if built else "this PyTorch was built without it"


def _missing_fa3() -> str:
    found = importlib.util.find_spec("flash_attn_interface")
    return "" if found else "the module flash_attn_interface (FlashAttention 3) is not installed"


def _missing_fa4() -> str:
    # FlashAttention 2 installs a package of the same name, but nothing called cute inside it.
    found = importlib.util.find_spec("flash_attn")
    folders = found.submodule_search_locations if found else None
    if not any((Path(folder) / "cute").is_dir() for folder in folders or ()):
        return "the package flash-attn-4 is not installed"
    compiler = importlib.util.find_spec("cutlass")
    return "" if compiler else "flash-attn-4 needs the package nvidia-cutlass-dsl"


_MISSING: dict[str, Callable[[], str]] = {
    "cudnn": _missing_cudnn,
    "flash": _missing_flash,
    "fa3": _missing_fa3,
    "fa4": _missing_fa4,
}


def choose(name: str, device: str, dtype: torch.dtype) -> str:
    """Return the backend that 'auto' or a name stands for on this kind of device and dtype.

    Short contexts on a CPU: the plain path's three batched products beat the blocked kernel.
    Raises UserError, with the reason, for a backend that does not run here.
    """
    if name == "auto":
        order = AUTO_ON_CUDA if device == "cuda" else ("plain",)
        return next(backend for backend in order if not why_not(backend, device, dtype))
    if reason := why_not(name, device, dtype):
        raise UserError(f"runtime.attention is {name}, but {reason}; set runtime.attention=auto")
    return name
