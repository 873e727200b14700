"""MuonEq-R for the block matrices, AdamW for everything else, as in #1493.

Muon: Jordan et al. 2024. Row normalisation before orthogonalising: MuonEq-R, pull request #1217.
Shapes: L matrices of one shape stacked, R rows, C columns.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fairway.config import OptimConfig
from fairway.optim.schedule import momentum

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalise(u_LRC: Tensor, steps: int) -> Tensor:
    """Return the nearly orthogonal factor of each matrix by a quintic Newton-Schulz iteration.

    X <- a X + (b A + c A^2) X with A = X X^T, in bfloat16, on the wide orientation. The
    coefficients push small singular values up fast and leave them between about 0.7 and 1.2.
    """
    a, b, c = NEWTON_SCHULZ
    x_LRC = u_LRC.bfloat16()
    x_LRC = x_LRC / (x_LRC.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    tall = x_LRC.shape[-2] > x_LRC.shape[-1]
    if tall:
        x_LRC = x_LRC.mT
    for _ in range(steps):
        gram_LRR = x_LRC @ x_LRC.mT
        poly_LRR = torch.baddbmm(gram_LRR, gram_LRR, gram_LRR, beta=b, alpha=c)
        x_LRC = torch.baddbmm(x_LRC, poly_LRR, x_LRC, beta=a)
    return x_LRC.mT if tall else x_LRC


def muon_update(grad: Tensor, buffer: Tensor, mu: float, config: OptimConfig) -> Tensor:
    """Advance the momentum buffers [L, R, C] in place and return the updates, bfloat16.

    Nesterov momentum, rows divided by their norms (float32), orthogonalised, scaled by
    sqrt(max(1, R / C)).
    """
    buffer.mul_(mu).add_(grad)
    u_LRC = grad + mu * buffer
    if config.row_normalise:
        u_LRC = u_LRC / u_LRC.norm(dim=-1, keepdim=True).clamp_min(1e-7)
    rows, columns = u_LRC.shape[-2:]
    return orthogonalise(u_LRC, config.newton_schulz_steps) * math.sqrt(max(1.0, rows / columns))


class Muon:
    """Muon over matrices, stacked by shape so that each shape costs one batched iteration."""

    def __init__(self, matrices: Iterable[tuple[str, nn.Parameter]], config: OptimConfig) -> None:
        self.config = config
        self.shapes: dict[torch.Size, list[tuple[str, nn.Parameter]]] = {}
        for name, weight in matrices:
            self.shapes.setdefault(weight.shape, []).append((name, weight))
        self.buffers = {
            shape: torch.zeros(len(group), *shape, device=group[0][1].device)
            for shape, group in self.shapes.items()
        }

    @torch.no_grad()
    def step(self, lr: float, mu: float) -> None:
        """Decay each matrix, then subtract its update; a matrix without gradient is an error."""
        for shape, group in self.shapes.items():
            weights: list[Tensor] = [weight for _, weight in group]
            grads = [weight.grad for weight in weights]
            stacked = torch.stack([grad.float() for grad in grads if grad is not None])
            assert len(stacked) == len(group), "a block matrix received no gradient"
            updates = muon_update(stacked, self.buffers[shape], mu, self.config).unbind()
            torch._foreach_mul_(weights, 1.0 - lr * self.config.matrix_wd)
            torch._foreach_sub_(weights, [u.float() for u in updates], alpha=lr)

    def named_state(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, momentum buffer) per matrix: views, so loading into them restores."""
        for shape, group in self.shapes.items():
            for (name, _), buffer in zip(group, self.buffers[shape], strict=True):
                yield name, buffer


class Optimisers:
    """Both learning rules over one model, each parameter in exactly one group."""

    def __init__(self, model: nn.Module, config: OptimConfig) -> None:
        self.config = config
        named = dict(model.named_parameters())
        embed = [name for name in named if name == "tok_emb.weight"]
        head = [name for name in named if name == "head.weight"]
        matrices = [
            n
            for n, w in named.items()
            if n.startswith("blocks.") and w.ndim == 2 and not n.endswith("resid_mix")
        ]
        matrices += [n for n in named if n in ("embed_proj.weight", "head_proj.weight")]
        taken = {*embed, *head, *matrices}
        scalars = [name for name in named if name not in taken]
        assert all(named[n].numel() for n in matrices)
        groups = [
            (embed, config.embed_lr, config.embed_wd),
            (head, config.head_lr, 0.0),
            (scalars, config.scalar_lr, config.scalar_wd),
        ]
        self.muon = Muon([(name, named[name]) for name in matrices], config)
        self.adam = torch.optim.AdamW(
            [
                {"params": [named[n] for n in names], "lr": lr, "base_lr": lr, "weight_decay": wd}
                for names, lr, wd in groups
                if names
            ],
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            fused=True,
        )
        self.adam_names = [name for names, _, _ in groups for name in names]
        self.parameters = list(named.values())
        assert sorted(matrices + self.adam_names) == sorted(named), "parameters not covered once"

    def step(self, multiplier: float, step: int) -> float:
        """Clip, update every parameter, clear gradients; return the gradient norm before the clip.

        `multiplier` scales all learning rates, `step` sets the momentum.
        """
        bound = self.config.grad_clip or math.inf
        grad_norm = float(nn.utils.clip_grad_norm_(self.parameters, bound))
        for group in self.adam.param_groups:
            group["lr"] = group["base_lr"] * multiplier
        self.adam.step()
        self.muon.step(self.config.matrix_lr * multiplier, momentum(step, self.config))
        self.clear()
        return grad_norm

    def clear(self) -> None:
        """Drop all gradients."""
        for weight in self.parameters:
            weight.grad = None

    def state(self) -> dict[str, Tensor]:
        """Return every state tensor by name; empty AdamW state (before a first step) is absent."""
        tensors = {f"muon.{name}": buffer for name, buffer in self.muon.named_state()}
        parameters = [p for group in self.adam.param_groups for p in group["params"]]
        for name, weight in zip(self.adam_names, parameters, strict=True):
            for key, value in self.adam.state[weight].items():
                tensors[f"adam.{key}.{name}"] = value
        return tensors

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `state` returned."""
        for name, buffer in self.muon.named_state():
            buffer.copy_(tensors[f"muon.{name}"])
        parameters = [p for group in self.adam.param_groups for p in group["params"]]
        for name, weight in zip(self.adam_names, parameters, strict=True):
            slots: dict[str, Any] = {}
            for key in ("step", "exp_avg", "exp_avg_sq"):
                value = tensors.get(f"adam.{key}.{name}")
                if value is not None:
                    slots[key] = value.clone()
            self.adam.state[weight] = slots
