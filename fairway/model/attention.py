"""Causal attention backends: one plain reference, and faster paths that must equal it.

Every backend takes q_BHTK, k_BGTK and v_BGTK, usually transposed views of [B, T, heads, K] and
possibly slices of one wider buffer, and returns y_BHTK; query head h reads key/value head
h // (H // G). The fast ones lay y out as [B, T, H, K] underneath, so transposing it back is free.

What a query may see (`seen.Seen`: a window, documents) is the fourth argument of all of them. A
kernel that does not take that, or the head width, gives way to another backend, which is told once.

Shapes: B batch, H query heads, G key/value heads, T time, K head width, A = 1 or B masks.
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

from fairway.base.errors import UserError
from fairway.base.progress import notice
from fairway.model.flash import by_head, by_position, fa3, fa4, reach
from fairway.model.flex import flex
from fairway.model.seen import ALL, Seen

# y_BHTK of queries, keys and values, and of what a query may see: all before it if not given.
Attention = Callable[..., Tensor]

# What `auto` takes on a GPU: the first that works there. Forward and backward of one layer on an
# H200 (48 x 2,048 tokens, 8/4 heads of 64, bfloat16): fa4 1.88 ms, cudnn 2.13, flash 3.28.
AUTO_ON_CUDA = ("fa4", "cudnn", "flash", "efficient", "plain")


def plain(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, seen: Seen = ALL) -> Tensor:
    """Return softmax(q k^T / sqrt(K)) v over what is seen, written out; y_BHTK in q's dtype.

    Query head h reads key/value head h // (H // G). The softmax runs in float32 inside, whatever
    the input dtype. Costs T * T scores per head in memory, which at T = 256 on a CPU is cheaper
    than the blocked kernel's bookkeeping.
    """
    B, H, T, K = q_BHTK.shape
    G = k_BGTK.shape[1]
    q_NSK = q_BHTK.reshape(B * G, (H // G) * T, K)
    k_NTK, v_NTK = (z.reshape(B * G, T, K) for z in (k_BGTK, v_BGTK))
    bias_AST = _bias(seen.within(B, T), q_BHTK).repeat(1, H // G, 1)
    bias_NST = bias_AST if len(bias_AST) == 1 else bias_AST.repeat_interleave(G, 0)
    scores_NST = torch.baddbmm(bias_NST, q_NSK, k_NTK.mT, alpha=1.0 / math.sqrt(K))
    return torch.bmm(scores_NST.softmax(-1), v_NTK).view(B, H, T, K)


def _bias(seen: Seen, like_BHTK: Tensor) -> Tensor:
    """Return 0 where a key is seen and -inf elsewhere; bias_ATT in the dtype of a tensor."""
    hidden_ATT = seen.hidden(like_BHTK.shape[2], like_BHTK.device)
    return like_BHTK.new_zeros(hidden_ATT.shape).masked_fill(hidden_ATT, -math.inf)


# ---------------------------------------------------------------------------------------------
# Through PyTorch


def sdpa(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, seen: Seen = ALL) -> Tensor:
    """Return the same through whichever fused kernel PyTorch picks for the device and dtype."""
    grouped = q_BHTK.shape[1] != k_BGTK.shape[1]
    mask_A1TT = None if seen == ALL else ~seen.hidden(q_BHTK.shape[2], q_BHTK.device)[:, None]
    return F.scaled_dot_product_attention(
        q_BHTK, k_BGTK, v_BGTK, mask_A1TT, is_causal=mask_A1TT is None, enable_gqa=grouped
    )


def cudnn(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, seen: Seen = ALL) -> Tensor:
    """Return the same through cuDNN's kernel."""
    if q_BHTK.shape[2] == 1:
        # cuDNN has no plan for a single position, where there is nothing to fuse anyway.
        return plain(q_BHTK, k_BGTK, v_BGTK)
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return sdpa(q_BHTK, k_BGTK, v_BGTK, seen)


def flash(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, seen: Seen = ALL) -> Tensor:
    """Return the same through PyTorch's FlashAttention 2.

    Windows and documents by its operator, which has the same arguments in every PyTorch that has
    it: the public `varlen_attn` takes windows since 2.11, and grouped heads in words since 2.12.
    """
    if seen == ALL:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return sdpa(q_BHTK, k_BGTK, v_BGTK)
    starts, longest = None, q_BHTK.shape[2]
    if seen.documents is not None:
        # For a longest of 1 the operator would take its way for decoding.
        starts, longest = seen.documents.starts, max(2, seen.documents.longest)
    before, after = reach(seen)
    y: Tensor = torch.ops.aten._flash_attention_forward(
        *(by_position(z, seen) for z in (q_BHTK, k_BGTK, v_BGTK)),
        *(starts, starts, longest, longest),
        dropout_p=0.0,
        # With a window it is these two numbers that make it causal.
        is_causal=not seen.window,
        return_debug_mask=False,
        window_size_left=before,
        window_size_right=after,
    )[0]
    return by_head(y, q_BHTK)


def flash_in_order(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, seen: Seen = ALL) -> Tensor:
    """Return what `flash` returns; its gradients are added up in the same order every time.

    What `flash` does not take runs by the plain formulas, which repeat their bits too.
    """
    seen = seen.within(q_BHTK.shape[0], q_BHTK.shape[2])
    attend = KERNELS[_told("flash", q_BHTK, seen, ("plain",))]
    attend = functools.partial(attend, seen=seen)
    y_BHTK: Tensor = _InOrder.apply(attend, q_BHTK, k_BGTK, v_BGTK)  # type: ignore[no-untyped-call]
    return y_BHTK


class _InOrder(torch.autograd.Function):
    """Attention whose way back alone runs under PyTorch's demand for repeatable results.

    As a demand on the whole model it would refuse operations that repeat their bits anyway.
    """

    @staticmethod
    def forward(ctx: Any, attend: Callable[..., Tensor], *qkv: Tensor) -> Tensor:
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

    Without filling what it allocates, as it otherwise does then: 8 launches a layer. The mode is
    set because `torch.use_deterministic_algorithms` also imports PyTorch's compiler: 3 s.
    """
    asked = torch.get_deterministic_debug_mode()
    filled = _DETERMINISTIC.fill_uninitialized_memory
    torch.set_deterministic_debug_mode("error")
    _DETERMINISTIC.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(asked)
        _DETERMINISTIC.fill_uninitialized_memory = filled


def efficient(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, seen: Seen = ALL) -> Tensor:
    """Return the same through the one fused GPU kernel that also takes float32.

    It knows no grouped heads: keys and values are copied once per query head.
    """
    k_BHTK, v_BHTK = (_per_query_head(z, q_BHTK) for z in (k_BGTK, v_BGTK))
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
        return sdpa(q_BHTK, k_BHTK, v_BHTK, seen)


def _per_query_head(z_BGTK: Tensor, q_BHTK: Tensor) -> Tensor:
    repeats = q_BHTK.shape[1] // z_BGTK.shape[1]
    return z_BGTK if repeats == 1 else z_BGTK.repeat_interleave(repeats, 1)


# ---------------------------------------------------------------------------------------------
# What works where

KERNELS: dict[str, Attention] = {
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

    Looks, but imports and runs nothing. What it takes of a model is said by `takes`.
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


# Multiples of 8 up to these. PyTorch's memory-efficient kernel has no widest one.
_WIDEST = {"cudnn": 128, "flash": 256, "efficient": 0, "fa3": 256, "fa4": 128}
# The generated kernel's products are of 16 columns at least.
_FLEX_NARROWEST = 16
_BY_LENGTHS = ("flash", "fa3", "fa4")
# FlashAttention 2 counts documents in a dimension of its grid, which CUDA bounds.
_MOST_DOCUMENTS = 65_535


def takes(name: str, width: int, seen: Seen = ALL) -> str:
    """Return what of a model a backend does not take; '' if it takes head width and what is seen.

    Where documents are many, one question waits for the GPU: how many `flash` would be given.
    """
    if name in _WIDEST and (width % 8 or 0 < _WIDEST[name] < width):
        most = f" up to {_WIDEST[name]}" if _WIDEST[name] else ""
        return f"it takes head widths that are multiples of 8{most}, not {width}"
    if name == "flex" and width < _FLEX_NARROWEST:
        return f"it takes head widths from {_FLEX_NARROWEST}, not {width}"
    if name == "cudnn" and seen != ALL:
        return f"it takes no {'window' if seen.documents is None else 'documents'}"
    if seen.documents is None or name not in _BY_LENGTHS:
        return ""
    if not seen.documents.lengths:
        return "it asks for lengths of documents, which launches that are recorded cannot"
    counted = name == "flash" and seen.documents.of_BT.numel() > _MOST_DOCUMENTS
    if counted and len(seen.documents.starts) - 1 > _MOST_DOCUMENTS:
        return f"it takes up to {_MOST_DOCUMENTS:,} documents at a time"
    return ""


# What runs in the place of a kernel that does not take something: the first that does.
INSTEAD = ("flash", "flex", "plain")


def serving(
    name: str,
    device: str,
    dtype: torch.dtype,
    width: int,
    seen: Seen = ALL,
    instead: tuple[str, ...] = INSTEAD,
) -> tuple[str, str]:
    """Return the backend that runs for a named one, and why it is another ('' if it is not)."""

    def refusal(other: str) -> str:
        return _why_not(other, device, dtype) or takes(other, width, seen)

    if reason := refusal(name):
        return next(other for other in instead if not refusal(other)), reason
    return name, ""


# Asked at every call: looking for packages takes longer than the rest.
@functools.cache
def _why_not(name: str, device: str, dtype: torch.dtype) -> str:
    return why_not(name, device, dtype)


@functools.cache
def _tell(name: str, found: str, reason: str) -> None:
    notice(f"the attention backend {name} is replaced by {found} here: {reason}")


def _told(name: str, q_BHTK: Tensor, seen: Seen, instead: tuple[str, ...] = INSTEAD) -> str:
    """Return the backend that runs for a named one; another is told, once for every reason."""
    kind = q_BHTK.device.type, q_BHTK.dtype, q_BHTK.shape[3]
    found, reason = serving(name, *kind, seen, instead)
    if reason:
        _tell(name, found, reason)
    return found


def _with_another(name: str) -> Attention:
    """Return a backend that another runs for where its kernel does not take something."""

    def attend(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, seen: Seen = ALL) -> Tensor:
        seen = seen.within(q_BHTK.shape[0], q_BHTK.shape[2])
        return KERNELS[_told(name, q_BHTK, seen)](q_BHTK, k_BGTK, v_BGTK, seen)

    return attend


BACKENDS: dict[str, Attention] = {name: _with_another(name) for name in KERNELS}
BACKENDS["plain"] = plain


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
