"""The model's elementwise mathematics: plain formulas, each with a lean path that must equal it.

A small model on a CPU spends more time moving activations than multiplying matrices. Each lean path
is an autograd function with a hand-written backward. It reads and writes every activation once or
twice instead of five to ten times, saves one tensor instead of several, and equals its plain
formula (tests/model/test_ops.py). It has two forms: `loops` for CPUs, and tensor operations for all
other cases. Both compute in float32 and round once, to the activations' dtype.
benchmarks/README.md has the measured gains.

Shapes: B batch, T time, H query heads, G key/value heads, P = H / G, K head width, R rotated pairs,
N rows of a flattened batch, V vocabulary; [...] anything.
"""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fairway.base.floats import fit, widest
from fairway.model import loops, stream_loops

# The float32 machine epsilon, also for bfloat16 input: the meaning of eps=None in the records.
NORM_EPS = 1.1920929e-07
# The rows of logits that tensor operations process at a time.
LOSS_ROWS = 256


class _NoWayBack:
    """The context of a call without gradients: nothing is kept."""

    def save_for_backward(self, *tensors: Tensor) -> None:
        """Drop what only a way back needs."""


class _Function(torch.autograd.Function):
    """An autograd function with a typed `run`; contexts are Any, because torch's are untyped."""

    @classmethod
    def run(cls, *args: Any) -> Tensor:
        """Return the result; without gradients in one plain call, a tenth of a small walk less."""
        apply: Any = cls.apply
        if not torch.is_grad_enabled():
            apply = functools.partial(cls.forward, _NoWayBack())
        result: Tensor = apply(*args)
        return result


def _wide(x: Tensor) -> Tensor:
    """Return a tensor in float32, or unchanged if it is float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _squares(x: Tensor) -> Tensor:
    """Return the sums of squares over the last dimension, kept as size 1, at least in float32."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    norms: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype)
    return norms.square()


# ---------------------------------------------------------------------------------------------
# RMS norm


def norm_plain(x: Tensor, scale: float = 1.0) -> Tensor:
    """Return scale * x / rms(x) over the last dimension: float32 inside, x's dtype outside.

    F.rms_norm is not used: its output dtype under autocast changed between torch 2.11 and 2.13.
    """
    wide = x.float()
    mean_square = wide.square().mean(-1, keepdim=True)
    return (wide * (scale * torch.rsqrt(mean_square + NORM_EPS))).to(x.dtype)


class _Norm(_Function):
    # With r = 1 / rms(x): dx = scale r (g - x r^2 mean(g x)).
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        if fit(x):
            y, inverse = loops.norm(x, scale, NORM_EPS)
        else:
            inverse = _inverse_rms(x)
            y = _rounded_product(x, scale * inverse)
        ctx.save_for_backward(x, inverse)
        ctx.scale = scale
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        x, inverse = ctx.saved_tensors
        if fit(x, grad):
            return loops.norm_back(x, grad, inverse, ctx.scale), None
        along = (_wide(grad) * x).sum(-1, keepdim=True)
        share = along * inverse.square() / -x.shape[-1]
        return (torch.addcmul(grad, x, share) * (ctx.scale * inverse)).to(x.dtype), None


def _rounded_product(x: Tensor, factor: Tensor) -> Tensor:
    """Return x times a wider factor, written directly in x's dtype: one pass on a GPU."""
    return torch.mul(x, factor, out=torch.empty_like(x))


def _inverse_rms(x: Tensor) -> Tensor:
    return torch.rsqrt(_squares(x) / x.shape[-1] + NORM_EPS)


def norm(x: Tensor, scale: float = 1.0) -> Tensor:
    """Return the result of `norm_plain`, with one pass over x in each direction."""
    return _Norm.run(x, scale)


# ---------------------------------------------------------------------------------------------
# The residual stream: the input of a block, and the addition of a branch


def entered_plain(
    x: Tensor, x0: Tensor, mix_2D: Tensor, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return (u, h): u = mix[0] x + mix[1] x0, h = scale u / rms(u)."""
    mix_2D = mix_2D.to(x.dtype)
    u = mix_2D[0] * x + mix_2D[1] * x0
    return u, norm_plain(u, scale)


class _Entered(_Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, x0: Tensor, mix_2D: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        u, h, inverse = stream_loops.entered(x, x0, mix_2D, scale, NORM_EPS)
        ctx.save_for_backward(x, x0, mix_2D, u, inverse)
        ctx.scale = scale
        return u, h

    @staticmethod
    def backward(ctx: Any, du: Tensor, dh: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, x0, mix_2D, u, inverse = ctx.saved_tensors
        dx, dx0, dmix = stream_loops.entered_back((x, x0, mix_2D), u, inverse, (du, dh), ctx.scale)
        return dx, dx0, dmix.to(mix_2D.dtype), None


def entered(x: Tensor, x0: Tensor, mix_2D: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return the result of `entered_plain`."""
    if not fit(x, x0):
        mix_2D = mix_2D.to(x.dtype)
        u = torch.addcmul(mix_2D[0] * x, mix_2D[1], x0)
        return u, norm(u, scale)
    both: Any = _Entered.run(x, x0, mix_2D, scale)
    u, h = both
    return u, h


def added_plain(u: Tensor, scale_D: Tensor, out: Tensor) -> Tensor:
    """Return u + scale * out."""
    return u + scale_D.to(u.dtype) * out


class _Added(_Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, scale_D: Tensor, out: Tensor) -> Tensor:
        ctx.save_for_backward(scale_D, out)
        return stream_loops.added(u, scale_D, out)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scale_D, out = ctx.saved_tensors
        grad_D, grad_out = stream_loops.added_back(scale_D, out, grad)
        return grad, grad_D.to(scale_D.dtype), grad_out


def added(u: Tensor, scale_D: Tensor, out: Tensor) -> Tensor:
    """Return the result of `added_plain`."""
    if fit(u, out):
        return _Added.run(u, scale_D, out)
    return torch.addcmul(u, scale_D.to(u.dtype), out)


# ---------------------------------------------------------------------------------------------
# Queries and keys: norm, gain, rotation


def rotate(x_BTHK: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    """Return x with its first 2R dimensions rotated by the position; the others are unchanged.

    Dimension j pairs with j + R. The sign is that of the records, the transpose of the common
    convention. q and k use the same one, so only relative positions matter.
    """
    R = cos_TR.shape[-1]
    a, b, rest = torch.split(x_BTHK, [R, R, x_BTHK.shape[-1] - 2 * R], dim=-1)
    cos, sin = cos_TR[:, None].to(x_BTHK.dtype), sin_TR[:, None].to(x_BTHK.dtype)
    return torch.cat((a * cos + b * sin, b * cos - a * sin, rest), dim=-1)


def position_plain(x_BTHK: Tensor, gain_H: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    """Return queries or keys normalised per head, rotated, and multiplied by a gain per head."""
    return rotate(norm_plain(x_BTHK), cos_TR, sin_TR) * gain_H[:, None].to(x_BTHK.dtype)


class _Position(_Function):
    # The norm's backward of the gradient rotated back; (g x) r summed is the gradient by the gain.
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain_H: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
        if fit(x):
            y, inverse = loops.position(x, gain_H, cos_TR, sin_TR, NORM_EPS)
        else:
            inverse = _inverse_rms(x)
            y = _turned(x, _wide(gain_H)[:, None] * inverse, cos_TR, sin_TR)
        ctx.save_for_backward(x, inverse, gain_H, cos_TR, sin_TR)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, inverse, gain_H, cos_TR, sin_TR = ctx.saved_tensors
        if fit(x, grad):
            grad_x, grad_H = loops.position_back(x, grad, inverse, gain_H, cos_TR, sin_TR)
            return grad_x, grad_H.to(gain_H.dtype), None, None
        back = rotate(_wide(grad), cos_TR, -sin_TR)
        along = (back * x).sum(-1, keepdim=True) * inverse
        share = along * inverse / -x.shape[-1]
        grad_x = torch.addcmul(back, x, share).mul_(_wide(gain_H)[:, None] * inverse)
        return grad_x.to(x.dtype), along.sum((0, 1, 3)).to(gain_H.dtype), None, None


def _turned(x: Tensor, factor: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    y = _rounded_product(x, factor)
    first = slice(2 * cos_TR.shape[-1])
    y[..., first] = rotate(x[..., first] * factor, cos_TR, sin_TR)
    return y


def position(x_BTHK: Tensor, gain_H: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    """Return the result of `position_plain`."""
    return _Position.run(x_BTHK, gain_H, cos_TR, sin_TR)


# ---------------------------------------------------------------------------------------------
# Exclusive self-attention (XSA)


def without_self_plain(y_BTHK: Tensor, v_BTGK: Tensor) -> Tensor:
    """Return y minus its part along the position's own raw value, per query head (XSA)."""
    B, T, G, K = v_BTGK.shape
    unit_BTG1K = F.normalize(v_BTGK.float(), dim=-1, eps=1e-12)[:, :, :, None].to(y_BTHK.dtype)
    y_BTGPK = y_BTHK.reshape(B, T, G, -1, K)
    along = (y_BTGPK * unit_BTG1K).sum(-1, keepdim=True)
    return (y_BTGPK - along * unit_BTG1K).reshape(B, T, -1, K)


class _WithoutSelf(_Function):
    # With s = v.v, c = (y.v)/s and e = (g.v)/s:  out = y - c v,  dy = g - e v,
    # dv = sum over the group's heads of (2 c e v - c g - e y).
    @staticmethod
    def forward(ctx: Any, y_BTHK: Tensor, v_BTGK: Tensor) -> Tensor:
        ctx.save_for_backward(y_BTHK, v_BTGK)
        if fit(y_BTHK, v_BTGK):
            return loops.without_self(y_BTHK, v_BTGK)
        y, v, squares = _by_group(y_BTHK, v_BTGK)
        along = (_wide(y) * v).sum(-1, keepdim=True) / squares
        out = torch.addcmul(y, along, v, value=-1.0, out=torch.empty_like(y))
        return out.reshape(y_BTHK.shape)

    @staticmethod
    def backward(ctx: Any, grad_BTHK: Tensor) -> tuple[Tensor, Tensor]:
        y_BTHK, v_BTGK = ctx.saved_tensors
        if fit(y_BTHK, v_BTGK, grad_BTHK):
            return loops.without_self_back(y_BTHK, v_BTGK, grad_BTHK)
        y, v, squares = _by_group(y_BTHK, v_BTGK)
        g = grad_BTHK.reshape(y.shape)
        along, back = ((_wide(z) * v).sum(-1, keepdim=True) / squares for z in (y, g))
        grad_y = torch.addcmul(g, back, v, value=-1.0).to(y.dtype)
        cross = torch.addcmul(along * g, back, y).sum(3)
        grad_v = torch.addcmul(-cross, v[:, :, :, 0], 2.0 * (along * back).sum(3))
        return grad_y.reshape(grad_BTHK.shape), grad_v.to(v.dtype)


def _by_group(y_BTHK: Tensor, v_BTGK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return y_BTGPK, v_BTG1K and the squared lengths of v."""
    v = v_BTGK[:, :, :, None]
    y = y_BTHK.reshape(*v_BTGK.shape[:3], -1, v_BTGK.shape[-1])
    return y, v, _squares(v).clamp_min(1e-24)


def without_self(y_BTHK: Tensor, v_BTGK: Tensor) -> Tensor:
    """Return the result of `without_self_plain`."""
    return _WithoutSelf.run(y_BTHK, v_BTGK)


# ---------------------------------------------------------------------------------------------
# The MLP's activation


def leaky_square_plain(x: Tensor, leak: float) -> Tensor:
    """Return the square of a leaky ReLU: x^2 above zero, (leak x)^2 below."""
    return F.leaky_relu(x, leak).square()


class _LeakySquare(_Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, leak: float) -> Tensor:
        ctx.leak = leak
        ctx.save_for_backward(x)
        return loops.leaky_square(x, leak) if fit(x) else F.leaky_relu(x, leak).square_()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        if fit(x, grad):
            return loops.leaky_square_back(x, grad, ctx.leak), None
        return F.leaky_relu(x, ctx.leak**2).mul_(grad).mul_(2.0), None


def leaky_square(x: Tensor, leak: float) -> Tensor:
    """Return the result of `leaky_square_plain`; only one tensor is kept for the backward pass."""
    return _LeakySquare.run(x, leak)


# ---------------------------------------------------------------------------------------------
# The head and the loss


def product_f32(a_MN: Tensor, b_NL: Tensor) -> Tensor:
    """Return a b in float32 from 16-bit factors, without a backward pass.

    Their products are exact in float32, and a GPU adds in float32.
    """
    if not a_MN.is_cuda:
        return a_MN.float() @ b_NL.float()
    result: Tensor = torch.mm(a_MN, b_NL, out_dtype=torch.float32)
    return result


class _WideProduct(_Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_VD: Tensor) -> Tensor:
        ctx.save_for_backward(x_ND, weight_VD)
        return product_f32(x_ND, weight_VD.T)

    @staticmethod
    def backward(ctx: Any, grad_NV: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x_ND, weight_VD = ctx.saved_tensors
        rounded_NV, (wants_x, wants_weight) = grad_NV.to(x_ND.dtype), ctx.needs_input_grad
        dx_ND = rounded_NV @ weight_VD if wants_x else None
        return dx_ND, rounded_NV.T @ x_ND if wants_weight else None


def wide_logits(x: Tensor, weight_VD: Tensor) -> Tensor:
    """Return x W^T with every sum in float32, [..., V], not rounded to bfloat16.

    Neighbours in bfloat16 lie 0.125 apart from 16 on. A cost could differ by two such steps, if a
    GPU chose another kernel for a batch of another size (docs/scoring.md).
    """
    if x.dtype != torch.bfloat16:
        return F.linear(x, weight_VD.to(x.dtype))
    if not x.is_cuda:
        return F.linear(x.float(), weight_VD.float())
    logits_NV = _WideProduct.run(x.reshape(-1, x.shape[-1]), weight_VD.to(x.dtype))
    return logits_NV.view(*x.shape[:-1], len(weight_VD))


def softcapped(logits: Tensor, cap: float, factor: float = 1.0) -> Tensor:
    """Return factor * cap * tanh(logits / cap) in float32.

    It is computed as factor * (2 cap sigmoid(2 logits / cap) - cap), which is the same and ten
    times faster on CPUs.
    """
    top = cap * factor
    return (logits.float() * (2.0 / cap)).sigmoid() * (2.0 * top) - top


def mean_loss_plain(logits_NV: Tensor, targets_N: Tensor, cap: float) -> Tensor:
    """Return the mean cross-entropy in nats of capped logits, a float32 scalar."""
    return F.cross_entropy(cap * torch.tanh(logits_NV.float() / cap), targets_N)


class _MeanLoss(_Function):
    # The forward pass computes the gradient, a few rows at a time. So no float32 table of the whole
    # batch ever exists, and the backward pass is at most one multiplication in place.
    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor, cap: float) -> Tensor:
        if fit(logits_NV):
            loss, grad_NV = loops.mean_loss(logits_NV, targets_N, cap)
        else:
            loss, grad_NV = _mean_loss(logits_NV, targets_N, cap)
        ctx.save_for_backward(grad_NV)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (grad_NV,) = ctx.saved_tensors
        # On a CPU the check is free, and saves a pass over memory that would change nothing.
        if not grad.is_cuda and grad == 1.0:
            return grad_NV, None, None
        return grad_NV.mul_(grad.to(grad_NV.dtype)), None, None


def _mean_loss(logits_NV: Tensor, targets_N: Tensor, cap: float) -> tuple[Tensor, Tensor]:
    """Return the mean loss and its gradient, a few rows at a time."""
    grad_NV = torch.empty_like(logits_NV)
    total = torch.zeros((), dtype=widest(logits_NV), device=logits_NV.device)
    count = len(targets_N)
    for first in range(0, count, LOSS_ROWS):
        rows = slice(first, first + LOSS_ROWS)
        total += _loss_rows(logits_NV[rows], targets_N[rows], cap, count, grad_NV[rows])
    return (total / count).float(), grad_NV


def _loss_rows(
    logits_NV: Tensor, targets_N: Tensor, cap: float, count: int, grad_NV: Tensor
) -> Tensor:
    """Write the gradient of some rows' share of a mean over `count`; return their summed loss."""
    z_NV = softcapped(logits_NV, cap)
    soft_NV = z_NV.softmax(1)
    chosen_N1 = targets_N[:, None]
    loss = (z_NV.logsumexp(1, keepdim=True) - z_NV.gather(1, chosen_N1)).to(widest(z_NV)).sum()
    soft_NV.scatter_add_(1, chosen_N1, soft_NV.new_full(chosen_N1.shape, -1.0))
    # The slope of the cap, 1 - (z / cap)^2.
    soft_NV.mul_(z_NV.mul_(1.0 / cap).square_().neg_().add_(1.0))
    grad_NV.copy_(soft_NV.mul_(1.0 / count))
    return loss


def mean_loss(logits_NV: Tensor, targets_N: Tensor, cap: float) -> Tensor:
    """Return the result of `mean_loss_plain`, without its float32 tables."""
    return _MeanLoss.run(logits_NV, targets_N, cap)
