"""What Muon does to a stack of matrices: the plain formulas, and who computes them.

Shapes: L matrices of one shape, K those of one rank, R rows, C columns.
"""

import importlib
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fairway.base.floats import fit
from fairway.config.settings import OptimConfig
from fairway.train.cpu_muon import loop_nesterov

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
    fixed coefficients push small singular values up fast and leave them between about 0.7 and 1.2.
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


def nesterov(
    grad_KRC: Tensor, buffer_KRC: Tensor, scale_1: Tensor, mu: float, normalise: bool, out: Tensor
) -> None:
    """Advance the momentum in place by scaled gradients; write what is to be orthogonalised.

    `out` [K, R, C] gets Nesterov momentum, rows divided by their norms if asked to. The gradients
    become scratch.
    """
    grad_KRC.mul_(scale_1)
    torch.add(grad_KRC, buffer_KRC, alpha=mu, out=buffer_KRC)
    u_KRC = torch.add(grad_KRC, buffer_KRC, alpha=mu)
    if not normalise:
        out.copy_(u_KRC)
        return
    norms_KR1 = torch.linalg.vector_norm(u_KRC, dim=-1, keepdim=True).clamp_min(1e-7)
    # Divided in float32, rounded on the way out: the quotient is not stored twice.
    torch.div(u_KRC, norms_KR1, out=out)


def move(weights_LRC: Tensor, updates_LRC: Tensor, lr: float, decay: float) -> None:
    """Decay the weights, then subtract the updates."""
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
) -> None:
    """Write the updates into `out` [K, R, C]: orthogonal, times sqrt(max(1, R / C)).

    All products are in its dtype. The momentum advances in place; `rows` is `nesterov`, its GPU
    kernel or its loop.
    """
    rows(grad_KRC, buffer_KRC, scale_1, mu, config.row_normalise, out)
    x_KRC = orthogonalise(out, coefficients(config))
    torch.mul(x_KRC, math.sqrt(max(1.0, out.shape[1] / out.shape[2])), out=out)


def kernels(fused: bool, weights_LRC: Tensor) -> tuple[Callable[..., None], Callable[..., None]]:
    """Return `nesterov` and `move`: as they stand here, one GPU kernel each, or a loop on a CPU."""
    if fused:
        # Imported here: it needs Triton, which comes with GPU builds of PyTorch alone.
        rows = importlib.import_module("fairway.train.fused_muon")
        return rows.fused_nesterov, rows.fused_move
    return loop_nesterov if fit(weights_LRC) else nesterov, move
