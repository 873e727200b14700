"""The system of #1493 once more, from its formulas alone: slow, in float64, sharing no code.

`loss` is the model, `Learner` its training step: clip, AdamW, Muon, schedule, average.
"""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from fairway.config.settings import ModelConfig, OptimConfig

State = dict[str, Tensor]


# ---------------------------------------------------------------------------------------------
# The model


def rms(x: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + 1.1920929e-07).sqrt()


def rotated(z: Tensor, c: ModelConfig) -> Tensor:
    """Turn pairs (j, j + half) of the first dimensions of [B, T, heads, K], one pair at a time."""
    z, half = z.clone(), c.rope_dims // 2
    for j in range(half):
        f = torch.tensor(c.rope_base ** (-2 * j / c.rope_dims)).bfloat16().float()
        angle = (torch.arange(z.shape[1]) * f)[:, None]
        a, b = z[..., j].clone(), z[..., j + half].clone()
        z[..., j] = a * angle.cos() + b * angle.sin()
        z[..., j + half] = -a * angle.sin() + b * angle.cos()
    return z


def attention(h: Tensor, w: State, c: ModelConfig, xsa: bool) -> Tensor:
    B, T, _ = h.shape
    K = c.dim // c.num_heads
    q = rotated(rms((h @ w["attn.c_q.weight"].T).view(B, T, -1, K)), c) * w["attn.q_gain"][:, None]
    k = rotated(rms((h @ w["attn.c_k.weight"].T).view(B, T, -1, K)), c)
    v = (h @ w["attn.c_v.weight"].T).view(B, T, -1, K)
    future = torch.ones(T, T, dtype=torch.bool).triu(1)
    heads = []
    for head in range(c.num_heads):
        g = head // (c.num_heads // c.num_kv_heads)
        scores = q[:, :, head] @ k[:, :, g].mT / math.sqrt(K)
        y = scores.masked_fill(future, -math.inf).softmax(-1) @ v[:, :, g]
        if xsa:
            unit = v[:, :, g] / v[:, :, g].norm(dim=-1, keepdim=True).clamp_min(1e-12)
            y = y - (y * unit).sum(-1, keepdim=True) * unit
        heads.append(y)
    return torch.cat(heads, -1) @ w["attn.proj.weight"].T


def block(i: int, x: Tensor, x0: Tensor, p: State, c: ModelConfig) -> Tensor:
    w = {n.split(".", 2)[2]: t for n, t in p.items() if n.startswith(f"blocks.{i}.")}
    s = 1 / math.sqrt(i + 1)
    u = w["resid_mix"][0] * x + w["resid_mix"][1] * x0
    xsa = i >= c.num_layers - c.xsa_layers
    v = u + w["attn_scale"] * attention(rms(u) * s, w, c, xsa)
    h = (rms(u if i >= c.parallel_from else v) * s) @ w["mlp.fc.weight"].T
    squared = torch.where(h > 0, h * h, (0.5 * h) ** 2)
    return v + w["mlp_scale"] * (squared @ w["mlp.proj.weight"].T)


def order(c: ModelConfig, looping: bool) -> tuple[list[int], list[int]]:
    visits = list(range(c.loop_first))
    middle = list(range(c.loop_first, c.loop_last + 1))
    visits += middle * (c.loop_extra + 1 if looping else 1)
    visits += range(c.loop_last + 1, c.num_layers)
    return visits[: len(visits) // 2], visits[len(visits) // 2 :]


def loss(p: State, c: ModelConfig, ids: Tensor, targets: Tensor, looping: bool) -> Tensor:
    """Return the mean loss in nats per token, in the parameters' dtype."""
    x = x0 = rms(p["tok_emb.weight"][ids])
    stack: list[Tensor] = []
    encoder, decoder = order(c, looping)
    for i in encoder:
        x = block(i, x, x0, p, c)
        stack.append(x)
    for step, i in enumerate(decoder):
        if stack:
            skip = p["skip_weights"][step] * stack.pop()
            x = skip + torch.sigmoid(p["skip_gates"][step]) * (x - skip)
        x = block(i, x, x0, p, c)
    logits = c.softcap * torch.tanh(rms(x) @ p["tok_emb.weight"].T / c.softcap)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


# ---------------------------------------------------------------------------------------------
# Learning


def orthogonal(u: Tensor) -> Tensor:
    """Five Newton-Schulz steps, without the bfloat16 roundings of the fast ones."""
    x = u / (u.norm() + 1e-7)
    x = x.T if u.shape[0] > u.shape[1] else x
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
    return x.T if u.shape[0] > u.shape[1] else x


@dataclass
class Learner:
    """Weights under training, and the average of them that is kept."""

    weights: State
    config: OptimConfig
    average: State = field(default_factory=dict)
    moments: dict[str, list[Tensor]] = field(default_factory=dict)
    steps: int = 0

    def __post_init__(self) -> None:
        self.average = {n: w.clone() for n, w in self.weights.items()}

    def step(self, grads: State, progress: float, decay: float) -> None:
        """Learn from the gradients of one batch, at a share of the run; average with `decay`."""
        c = self.config
        norm = math.sqrt(sum(float(g.pow(2).sum()) for g in grads.values()))
        clip = min(1.0, c.grad_clip / (norm + 1e-6))
        rate = 1.0
        if progress >= 1 - c.warmdown_share:
            rate = max((1 - progress) / c.warmdown_share, c.min_lr)
        for name, grad in grads.items():
            w, g = self.weights[name], grad * clip
            if w.ndim == 2 and name.startswith("blocks.") and "resid_mix" not in name:
                self._muon(name, w, g, rate)
            elif name == "tok_emb.weight":
                self._adam(name, w, g, rate * c.embed_lr, c.embed_wd)
            else:
                self._adam(name, w, g, rate * c.scalar_lr, c.scalar_wd)
        self.steps += 1
        for name, w in self.weights.items():
            self.average[name] = decay * self.average[name] + (1 - decay) * w

    def _muon(self, name: str, w: Tensor, g: Tensor, rate: float) -> None:
        c = self.config
        ramp = min(1.0, self.steps / c.momentum_warmup_steps)
        mu = (1 - ramp) * c.momentum_start + ramp * c.momentum
        (buffer,) = self.moments.setdefault(name, [torch.zeros_like(w)])
        buffer.mul_(mu).add_(g)
        u = g + mu * buffer
        u = u / u.norm(dim=1, keepdim=True).clamp_min(1e-7)
        lr = rate * c.matrix_lr
        w.mul_(1 - lr * c.matrix_wd)
        w.sub_(lr * math.sqrt(max(1.0, w.shape[0] / w.shape[1])) * orthogonal(u))

    def _adam(self, name: str, w: Tensor, g: Tensor, lr: float, wd: float) -> None:
        c, t = self.config, self.steps + 1
        first, second = self.moments.setdefault(name, [torch.zeros_like(w), torch.zeros_like(w)])
        first.mul_(c.beta1).add_((1 - c.beta1) * g)
        second.mul_(c.beta2).add_((1 - c.beta2) * g * g)
        w.mul_(1 - lr * wd)
        root = (second / (1 - c.beta2**t)).sqrt() + 1e-8
        w.sub_(lr * (first / (1 - c.beta1**t)) / root)
