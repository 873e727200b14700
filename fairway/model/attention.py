"""Causal attention backends: one plain reference, and faster paths that must equal it.

Every backend takes q_BHTK, k_BGTK and v_BGTK, usually transposed views of [B, T, heads, K] and
possibly slices of one wider buffer. It returns y_BHTK. Query head h uses key/value head
h // (H // G). The fast ones store y as [B, T, H, K], so transposing it back is free.

The fourth argument of all of them limits what a query attends to (`seen.Seen`: a window,
documents). If a kernel does not support it, or the head width, another backend runs instead, with
one notice.

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

# Returns y_BHTK from queries, keys and values; without a limit, all earlier positions are seen.
Attention = Callable[..., Tensor]

# `auto` on a GPU is the first of these that works there. Forward and backward of one layer on an
# H200 (48 x 2,048 tokens, 8/4 heads of 64, bfloat16): fa4 1.88 ms, cudnn 2.13, flash 3.28.
AUTO_ON_CUDA = ("fa4", "cudnn", "flash", "efficient", "plain")


def plain(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, seen: Seen = ALL) -> Tensor:
    """Return softmax(q k^T / sqrt(K)) v over the seen keys, by plain formulas; y_BHTK in q's dtype.

    Query head h uses key/value head h // (H // G). The softmax computes in float32 for any input
    dtype. It needs memory for T * T scores per head. At T = 256 on a CPU that is cheaper than the
    overhead of a blocked kernel.
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
    """Return 0 for seen keys and -inf for others; bias_ATT in the dtype of a tensor."""
    hidden_ATT = seen.hidden(like_BHTK.shape[2], like_BHTK.device)
    return like_BHTK.new_zeros(hidden_ATT.shape).masked_fill(hidden_ATT, -math.inf)


# ---------------------------------------------------------------------------------------------
# With PyTorch's kernels


def sdpa(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, seen: Seen = ALL) -> Tensor:
    """Return the same with the fused kernel that PyTorch chooses for the device and dtype."""
    grouped = q_BHTK.shape[1] != k_BGTK.shape[1]
    mask_A1TT = None if seen == ALL else ~seen.hidden(q_BHTK.shape[2], q_BHTK.device)[:, None]
    return F.scaled_dot_product_attention(
        q_BHTK, k_BGTK, v_BGTK, mask_A1TT, is_causal=mask_A1TT is None, enable_gqa=grouped
    )


def cudnn(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, seen: Seen = ALL) -> Tensor:
    """Return the same with cuDNN's kernel."""
    if q_BHTK.shape[2] == 1:
        # cuDNN has no plan for a single position, where fusing brings nothing.
        return plain(q_BHTK, k_BGTK, v_BGTK)
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return sdpa(q_BHTK, k_BGTK, v_BGTK, seen)


def flash(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, seen: Seen = ALL) -> Tensor:
    """Return the same with PyTorch's FlashAttention 2.

    Windows and documents use its internal operator, whose arguments are the same in every PyTorch
    version that has it. The public `varlen_attn` supports windows since 2.11, and an argument for
    grouped heads since 2.12.
    """
    if seen == ALL:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return sdpa(q_BHTK, k_BGTK, v_BGTK)
    starts, longest = None, q_BHTK.shape[2]
    if seen.documents is not None:
        # For a longest document of 1 the operator would use its decoding path.
        starts, longest = seen.documents.starts, max(2, seen.documents.longest)
    before, after = reach(seen)
    y: Tensor = torch.ops.aten._flash_attention_forward(
        *(by_position(z, seen) for z in (q_BHTK, k_BGTK, v_BGTK)),
        *(starts, starts, longest, longest),
        dropout_p=0.0,
        # With a window these two numbers make it causal.
        is_causal=not seen.window,
        return_debug_mask=False,
        window_size_left=before,
        window_size_right=after,
    )[0]
    return by_head(y, q_BHTK)


def flash_in_order(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, seen: Seen = ALL) -> Tensor:
    """Return the result of `flash`; gradients are summed in the same order every time.

    If `flash` does not support the input, the plain formulas run, which also repeat bit for bit.
    """
    seen = seen.within(q_BHTK.shape[0], q_BHTK.shape[2])
    attend = KERNELS[_told("flash", q_BHTK, seen, ("plain",))]
    attend = functools.partial(attend, seen=seen)
    y_BHTK: Tensor = _InOrder.apply(attend, q_BHTK, k_BGTK, v_BGTK)  # type: ignore[no-untyped-call]
    return y_BHTK


class _InOrder(torch.autograd.Function):
    """Attention whose backward alone runs in PyTorch's deterministic mode.

    For the whole model that mode would refuse operations that repeat bit for bit anyway.
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
    """Make PyTorch use deterministic operations while this context lasts.

    The mode usually also fills new tensors, with 8 launches per layer; that is turned off. The mode
    is set directly: `torch.use_deterministic_algorithms` would import PyTorch's compiler in 3 s.
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
    """Return the same with the one fused GPU kernel that also supports float32.

    It does not support grouped heads: keys and values are copied for each query head.
    """
    k_BHTK, v_BHTK = (_per_query_head(z, q_BHTK) for z in (k_BGTK, v_BGTK))
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
        return sdpa(q_BHTK, k_BHTK, v_BHTK, seen)


def _per_query_head(z_BGTK: Tensor, q_BHTK: Tensor) -> Tensor:
    repeats = q_BHTK.shape[1] // z_BGTK.shape[1]
    return z_BGTK if repeats == 1 else z_BGTK.repeat_interleave(repeats, 1)


# ---------------------------------------------------------------------------------------------
# Support by device, dtype and model

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

    It imports and runs nothing. `takes` checks the model.
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


# Head widths may be multiples of 8 up to these. PyTorch's memory-efficient kernel has no limit.
_WIDEST = {"cudnn": 128, "flash": 256, "efficient": 0, "fa3": 256, "fa4": 128}
# The products of the generated kernel have at least 16 columns.
_FLEX_NARROWEST = 16
_BY_LENGTHS = ("flash", "fa3", "fa4")
# FlashAttention 2 has one grid dimension for documents, which CUDA limits.
_MOST_DOCUMENTS = 65_535


def takes(name: str, width: int, seen: Seen = ALL) -> str:
    """Return why a backend does not support a head width or limit of attention; '' if it does.

    With many documents one check waits for the GPU: the number of documents for `flash`.
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
        return "it needs lengths of documents, which recorded launches do not have"
    counted = name == "flash" and seen.documents.of_BT.numel() > _MOST_DOCUMENTS
    if counted and len(seen.documents.starts) - 1 > _MOST_DOCUMENTS:
        return f"it takes up to {_MOST_DOCUMENTS:,} documents at a time"
    return ""


# Replacements for a kernel without support, in this order.
INSTEAD = ("flash", "flex", "plain")


def serving(
    name: str,
    device: str,
    dtype: torch.dtype,
    width: int,
    seen: Seen = ALL,
    instead: tuple[str, ...] = INSTEAD,
) -> tuple[str, str]:
    """Return the backend that runs for a named one, and why it is another, or ''."""

    def refusal(other: str) -> str:
        return _why_not(other, device, dtype) or takes(other, width, seen)

    if reason := refusal(name):
        return next(other for other in instead if not refusal(other)), reason
    return name, ""


# Cached, because every call asks, and looking for packages takes longer than the rest.
@functools.cache
def _why_not(name: str, device: str, dtype: torch.dtype) -> str:
    return why_not(name, device, dtype)


@functools.cache
def _tell(name: str, found: str, reason: str) -> None:
    notice(f"the attention backend {name} is replaced by {found} here: {reason}")


def _told(name: str, q_BHTK: Tensor, seen: Seen, instead: tuple[str, ...] = INSTEAD) -> str:
    """Return the backend that runs for a named one; print a notice once for each reason."""
    kind = q_BHTK.device.type, q_BHTK.dtype, q_BHTK.shape[3]
    found, reason = serving(name, *kind, seen, instead)
    if reason:
        _tell(name, found, reason)
    return found


def _with_another(name: str) -> Attention:
    """Return a backend that uses another kernel if its own lacks support."""

    def attend(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, seen: Seen = ALL) -> Tensor:
        seen = seen.within(q_BHTK.shape[0], q_BHTK.shape[2])
        return KERNELS[_told(name, q_BHTK, seen)](q_BHTK, k_BGTK, v_BGTK, seen)

    return attend


BACKENDS: dict[str, Attention] = {name: _with_another(name) for name in KERNELS}
BACKENDS["plain"] = plain


def choose(name: str, device: str, dtype: torch.dtype) -> str:
    """Return the backend that 'auto' or a name means on this kind of device and dtype.

    On a CPU with short contexts, the plain path's three batched products are faster than the
    blocked kernel. Raises UserError with the reason for a backend that does not run here.
    """
    if name == "auto":
        order = AUTO_ON_CUDA if device == "cuda" else ("plain",)
        return next(backend for backend in order if not why_not(backend, device, dtype))
    if reason := why_not(name, device, dtype):
        raise UserError(f"runtime.attention is {name}, but {reason}; set runtime.attention=auto")
    return name
