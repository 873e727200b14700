"""The system of #1493 once more, and what it can have besides, from the formulas alone.

Slow, in float64, sharing no code.

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
        f = torch.tensor(10_000.0 ** (-2 * j / c.rope_dims)).bfloat16().float()
        angle = (torch.arange(z.shape[1]) * f)[:, None]
        a, b = z[..., j].clone(), z[..., j + half].clone()
        z[..., j] = a * angle.cos() + b * angle.sin()
        z[..., j + half] = -a * angle.sin() + b * angle.cos()
    return z


def gates(h: Tensor, w: State, features: int) -> Tensor:
    """One number per position and head: 2 sigmoid of a few features."""
    if not features:
        return torch.ones(1, dtype=h.dtype)
    return torch.sigmoid(h[..., :features] @ w["attn.head_gate"].T) * 2


def unseen(ids: Tensor, window: int, separate: bool) -> Tensor:
    """Return [B, T, T], true where a query sees no key: pair by pair."""
    B, T = ids.shape
    hidden = torch.ones(B, T, T, dtype=torch.bool)
    for b in range(B):
        for query in range(T):
            for key in range(query, -1, -1):
                if window and query - key >= window:
                    break
                hidden[b, query, key] = False
                if separate and ids[b, key] == 1:
                    break
    return hidden


def attention(h: Tensor, w: State, c: ModelConfig, hidden: Tensor) -> Tensor:
    B, T, _ = h.shape
    K = c.dim // c.num_heads
    q = rotated(rms((h @ w["attn.c_q.weight"].T).view(B, T, -1, K)), c) * w["attn.q_gain"][:, None]
    k = rotated(rms((h @ w["attn.c_k.weight"].T).view(B, T, -1, K)), c)
    v = (h @ w["attn.c_v.weight"].T).view(B, T, -1, K)
    open_ = gates(h, w, c.gate_features).expand(B, T, c.num_heads)
    heads = []
    for head in range(c.num_heads):
        g = head // (c.num_heads // c.num_kv_heads)
        scores = q[:, :, head] @ k[:, :, g].mT / math.sqrt(K)
        y = scores.masked_fill(hidden, -math.inf).softmax(-1) @ v[:, :, g]
        unit = v[:, :, g] / v[:, :, g].norm(dim=-1, keepdim=True).clamp_min(1e-12)
        y = y - (y * unit).sum(-1, keepdim=True) * unit
        heads.append(y * open_[:, :, head, None])
    return torch.cat(heads, -1) @ w["attn.proj.weight"].T


def mlp(h: Tensor, w: State) -> Tensor:
    h = h @ w["mlp.fc.weight"].T
    squared = torch.where(h > 0, h * h, (0.5 * h) ** 2)
    return squared @ w["mlp.proj.weight"].T


@dataclass
class Given:
    """What every block is given."""

    x0: Tensor
    ids: Tensor
    separate: bool


def window_of(i: int, c: ModelConfig) -> int:
    windows = [int(word) for word in c.window.split()] or [0]
    return windows[min(i, len(windows) - 1)]


def block(i: int, lanes: list[Tensor], given: Given, p: State, c: ModelConfig) -> list[Tensor]:
    w = {n.split(".", 2)[2]: t for n, t in p.items() if n.startswith(f"blocks.{i}.")}
    s = 1 / math.sqrt(i + 1)
    u = w["resid_mix"][0] * lanes[0] + w["resid_mix"][1] * given.x0
    hidden = unseen(given.ids, window_of(i, c), given.separate)
    a = w["attn_scale"] * attention(rms(u) * s, w, c, hidden)
    parallel = i >= c.parallel_from
    if parallel and c.lanes == 2:
        first, second = lanes[0], lanes[-1]
        m = w["mlp_scale"] * mlp(rms(second) * s, w)
        keep, add = w["lane_keep"], w["lane_add"]
        return [
            keep[0] * first + add[0, 0] * a + add[1, 0] * m,
            keep[1] * second + add[0, 1] * a + add[1, 1] * m,
        ]
    v = u + a
    return [v + w["mlp_scale"] * mlp(rms(u if parallel else v) * s, w)]


def order(c: ModelConfig, looping: bool) -> tuple[list[int], list[int]]:
    visits = list(range(c.loop_first))
    middle = list(range(c.loop_first, c.loop_last + 1))
    visits += middle * (c.loop_extra + 1 if looping else 1)
    visits += range(c.loop_last + 1, c.num_layers)
    return visits[: len(visits) // 2], visits[len(visits) // 2 :]


def embedded(p: State, c: ModelConfig, ids: Tensor) -> Tensor:
    e = p["tok_emb.weight"][ids]
    if c.smear:
        out = [e[:, :1]]
        for t in range(1, ids.shape[1]):
            gate = torch.sigmoid(e[:, t, :12] @ p["smear_gate"]) * (ids[:, t] != 1)
            out.append((e[:, t] + p["smear_lambda"] * gate[:, None] * e[:, t - 1])[:, None])
        e = torch.cat(out, 1)
    return rms(e)


def loss(
    p: State,
    c: ModelConfig,
    ids: Tensor,
    targets: Tensor,
    looping: bool,
    separate: bool = False,
) -> Tensor:
    """Return the mean loss in nats per token, in the parameters' dtype."""
    x0 = embedded(p, c, ids)
    given = Given(x0, ids, separate)
    lanes, stack = [x0], list[Tensor]()
    encoder, decoder = order(c, looping)
    for i in encoder:
        lanes = block(i, lanes, given, p, c)
        stack.append(lanes[0])
    for step, i in enumerate(decoder):
        if stack:
            skip = p["skip_weights"][step] * stack.pop()
            joined = skip + torch.sigmoid(p["skip_gates"][step]) * (lanes[0] - skip)
            # The second lane begins where the first such block reads the joined stream.
            lanes = [joined, *lanes[1:]]
        lanes = block(i, lanes, given, p, c)
    logits = rms(sum(lanes) / len(lanes)) @ p["tok_emb.weight"].T
    return F.cross_entropy((30.0 * torch.tanh(logits / 30.0)).flatten(0, 1), targets.flatten())


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
                self._adam(name, w, g, rate * c.embed_lr, 0.085)
            else:
                self._adam(name, w, g, rate * c.scalar_lr, 0.02)
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
        first.mul_(0.9).add_(0.1 * g)
        second.mul_(c.beta2).add_((1 - c.beta2) * g * g)
        w.mul_(1 - lr * wd)
        root = (second / (1 - c.beta2**t)).sqrt() + 1e-8
        w.sub_(lr * (first / (1 - 0.9**t)) / root)
