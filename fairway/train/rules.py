"""Muon's update of a stack of matrices: the plain formulas, and the choice of their implementation.

Shapes: L matrices of one shape, K those of one rank, R rows, C columns, M running means.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fairway.config.settings import OptimConfig

Triple = tuple[float, float, float]
NEWTON_SCHULZ: Triple = (3.4445, -4.7750, 2.0315)
# Amsel et al. 2025 (arXiv 2505.16932), without their safety factor: one triple per step.
POLAR_EXPRESS: tuple[Triple, ...] = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


def coefficients(config: OptimConfig) -> Sequence[Triple]:
    """Return (a, b, c) of every step of the orthogonalisation."""
    if config.newton_schulz == "polar_express":
        return POLAR_EXPRESS
    return (NEWTON_SCHULZ,) * len(POLAR_EXPRESS)


def orthogonalise(u_LRC: Tensor, triples: Sequence[Triple]) -> Tensor:
    """Return the nearly orthogonal factor of each matrix by a quintic Newton-Schulz iteration.

    X <- a X + (b A + c A^2) X with A = X X^T, in the dtype given, on the wide orientation. The
    fixed coefficients raise small singular values quickly and end between about 0.7 and 1.2.
    """
    x_LRC: Tensor = u_LRC / (u_LRC.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    tall = x_LRC.shape[-2] > x_LRC.shape[-1]
    if tall:
        x_LRC = x_LRC.mT
    for a, b, c in triples:
        gram_LRR = x_LRC @ x_LRC.mT
        poly_LRR = torch.baddbmm(gram_LRR, gram_LRR, gram_LRR, beta=b, alpha=c)
        x_LRC = torch.baddbmm(x_LRC, poly_LRR, x_LRC, beta=a)
    return x_LRC.mT if tall else x_LRC


def nesterov(grad_KRC: Tensor, buffer_KRC: Tensor, scale_1: Tensor, mu: float, out: Tensor) -> None:
    """Advance the momentum in place by scaled gradients; write the matrices to orthogonalise.

    `out` [K, R, C] gets Nesterov momentum, with rows divided by their norms. The gradients are
    overwritten.
    """
    grad_KRC.mul_(scale_1)
    torch.add(grad_KRC, buffer_KRC, alpha=mu, out=buffer_KRC)
    _write(torch.add(grad_KRC, buffer_KRC, alpha=mu), out)


def decays(mu: float, count: int) -> list[float]:
    """Return the decays of running means whose ages double and have the age of `mu` as their mean.

    The age of a mean with decay d is d / (1 - d) steps.
    """
    first = mu / (1.0 - mu) * count / (2**count - 1)
    return [age / (1.0 + age) for age in (first * 2**m for m in range(count))]


def several(grad_KRC: Tensor, means_KRMC: Tensor, scale_1: Tensor, mu: float, out: Tensor) -> None:
    """Do what `nesterov` does with M running means of gradients, young to old, and their mean.

    Each of them looks one step ahead, as Nesterov momentum does.
    """
    grad_KRC.mul_(scale_1)
    u_KRC, count = torch.zeros_like(grad_KRC), means_KRMC.shape[2]
    for m, decay in enumerate(decays(mu, count)):
        mean_KRC = means_KRMC[:, :, m]
        mean_KRC.mul_(decay).add_(grad_KRC, alpha=1.0 - decay)
        u_KRC.add_(grad_KRC, alpha=1.0 - decay).add_(mean_KRC, alpha=decay)
    _write(u_KRC.div_(count), out)


def _write(u_KRC: Tensor, out: Tensor) -> None:
    norms_KR1 = torch.linalg.vector_norm(u_KRC, dim=-1, keepdim=True).clamp_min(1e-7)
    # Divided in float32 and rounded on output, so that the quotient is not stored twice.
    torch.div(u_KRC, norms_KR1, out=out)


def move(
    weights_LRC: Tensor,
    updates_LRC: Tensor,
    lr: float,
    decay: float,
    cautious: bool = False,
) -> None:
    """Decay the weights, then subtract the updates.

    Cautious decay applies only to weights that the update makes smaller.
    """
    if cautious:
        shrinks_LRC = (weights_LRC * updates_LRC > 0).to(weights_LRC.dtype)
        weights_LRC.mul_(1.0 - lr * decay * shrinks_LRC)
    else:
        weights_LRC.mul_(1.0 - lr * decay)
    weights_LRC.sub_(updates_LRC, alpha=lr)


def muon_update(
    grad_KRC: Tensor,
    buffer_KRC: Tensor,
    scale_1: Tensor,
    mu: float,
    config: OptimConfig,
    out: Tensor,
    rows: Callable[..., None] = nesterov,
    squares: Tensor | None = None,
) -> None:
    """Write the updates into `out` [K, R, C]: orthogonal, times sqrt(max(1, R / C)).

    All products are in its dtype. The momentum advances in place; `rows` is `nesterov`, its GPU
    kernel or its loop. With `row_beta` the mean squares of `balance` advance too.
    """
    rows(grad_KRC, buffer_KRC, scale_1, mu, out)
    x_KRC = orthogonalise(out, coefficients(config))
    factor: Tensor | float = math.sqrt(max(1.0, out.shape[1] / out.shape[2]))
    if squares is not None:
        factor = factor * balance(x_KRC, squares, config.row_beta)
    torch.mul(x_KRC, factor, out=out)


def inverses(moments_KCC: Tensor, damping: float) -> Tensor:
    """Return the inverse of each second moment plus a share of its mean, times that mean.

    For zero moments the result is zero. Nothing here waits for the device.
    """
    mean_K11 = moments_KCC.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
    eye_CC = torch.eye(moments_KCC.shape[-1], dtype=moments_KCC.dtype, device=moments_KCC.device)
    damped_KCC = moments_KCC + (damping * mean_K11 + 1e-30) * eye_CC
    factors_KCC, _ = torch.linalg.cholesky_ex(damped_KCC)
    found_KCC: Tensor = torch.cholesky_inverse(factors_KCC).mul_(mean_K11)
    return found_KCC


def neurons(shape: torch.Size) -> tuple[int, ...]:
    """Return the shape of one number per neuron: a row of a tall matrix, a column of a wide one.

    Neurons are on the longer side, because the shorter side of an orthogonal matrix already has
    equal norms.
    """
    *before, R, C = shape
    return (*before, R, 1) if R >= C else (*before, 1, C)


def balance(x_KRC: Tensor, squares: Tensor, beta: float) -> Tensor:
    """Advance running mean squares of neurons; return the factors that make them equal (NorMuon).

    Each matrix keeps its norm. `squares` has the shape `neurons`, and so has what is returned.
    """
    over = -1 if squares.shape[-1] == 1 else -2
    norms = torch.linalg.vector_norm(x_KRC, dim=over, keepdim=True, dtype=squares.dtype)
    now = norms.square() / x_KRC.shape[over]
    squares.lerp_(now, 1.0 - beta)
    inverse = squares.clamp_min(1e-12).reciprocal()
    before_K11, after_K11 = (x.sum((-2, -1), keepdim=True) for x in (now, now * inverse))
    factors: Tensor = (inverse * before_K11 / after_K11.clamp_min(1e-30)).sqrt()
    return factors
