"""A model in float64 under both learning rules, its gradients, and several ranks as threads.

What one of them must not read yet, or any more, is NaN.
"""

import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from fairway.config.settings import ModelConfig, OptimConfig
from fairway.machine.ranks import Ranks
from fairway.model.gpt import GPT, build
from fairway.train.muon import Optimisers

# Five layers: banks of 10 and 5 matrices, which neither two nor three ranks divide evenly.
MODEL = ModelConfig(
    vocab_size=260, num_layers=5, dim=16, num_heads=2, num_kv_heads=1, mlp_dim=32, rope_dims=4,
    parallel_from=1, loop_first=0, loop_last=1, loop_extra=1, embed_bf16=False,
)  # fmt: skip
CONFIG = OptimConfig(
    matrix_wd=0.4, embed_lr=0.03, scalar_lr=0.07,
    momentum_start=0.5, momentum=0.9, momentum_warmup_steps=4, grad_clip=0.0,
)  # fmt: skip
FIXED = [(3.4445, -4.7750, 2.0315)] * 5
POLAR = [
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
]


def plain_update(
    grad: Tensor, buffer: Tensor, mu: float, triples: list[Any]
) -> tuple[Tensor, Tensor]:
    """Return (update, new buffer) of one matrix: momentum, rows, singular values, shape."""
    buffer = mu * buffer + grad
    u = grad + mu * buffer
    u = u / u.square().sum(1, keepdim=True).sqrt()
    left, values, right = torch.linalg.svd(u, full_matrices=False)
    values = values / (u.square().sum().sqrt() + 1e-7)
    for a, b, c in triples:
        values = a * values + b * values**3 + c * values**5
    rows, columns = u.shape
    return (left * values) @ right * max(1.0, rows / columns) ** 0.5, buffer


class Exchange:
    """Where threads meet: what each of them sent, by the number of the message."""

    def __init__(self, world: int) -> None:
        self._world, self._sent = world, {}
        self._news, self._broken = threading.Condition(), False

    def send(self, number: int, rank: int, value: Tensor) -> None:
        with self._news:
            self._sent[number, rank] = value
            self._news.notify_all()

    def all(self, number: int) -> list[Tensor]:
        keys = [(number, rank) for rank in range(self._world)]
        with self._news:
            self._news.wait_for(lambda: self._broken or all(key in self._sent for key in keys), 20)
        return [self._sent[key] for key in keys]

    def part(self) -> None:
        """Let nobody wait any longer."""
        with self._news:
            self._broken = True
            self._news.notify_all()


class Threaded:
    """`Ranks` as a thread: until a wait is over, and where nothing is defined, there is NaN."""

    def __init__(self, rank: int, world: int, exchange: Exchange) -> None:
        self.rank, self.world = rank, world
        self._exchange, self._count = exchange, 0

    def shard(self, whole: Tensor) -> Tensor:
        return whole.view(self.world, -1, *whole.shape[1:])[self.rank]

    def _begin(self, whole: Tensor, sent: Tensor) -> Callable[[], list[Tensor]]:
        number, self._count = self._count, self._count + 1
        self._exchange.send(number, self.rank, sent.clone())
        whole.fill_(math.nan)
        return lambda: self._exchange.all(number)

    def start_sum(self, whole: Tensor) -> Callable[[], object]:
        received = self._begin(whole, whole)
        return lambda: whole.copy_(sum(received()))

    def start_scatter(self, whole: Tensor) -> Callable[[], object]:
        received = self._begin(whole, whole)
        return lambda: self.shard(whole).copy_(self.shard(sum(received())))

    def start_gather(self, whole: Tensor) -> Callable[[], object]:
        received = self._begin(whole, self.shard(whole))
        return lambda: whole.copy_(torch.cat(received()))


def together(world: int, work: Callable[[Any], Any]) -> list[Any]:
    """Return what a function returns on every rank."""
    if world == 1:
        return [work(Ranks())]
    exchange = Exchange(world)

    def one(rank: int) -> Any:
        try:
            return work(Threaded(rank, world, exchange))
        except BaseException:
            exchange.part()
            raise

    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(one, range(world)))


def wide(seed: int = 1) -> GPT:
    model = build(MODEL, seed=seed).double()
    model.compute_dtype = torch.float64
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight += torch.randn(weight.shape, generator=generator)
    return model


def gradients(step: int, share: tuple[int, int] = (0, 1)) -> dict[str, Tensor]:
    """Return the gradients of a step, or what one of several ranks sees of them."""
    generator = torch.Generator().manual_seed(100 + step)
    rank, world = share
    found = {}
    for name, weight in wide().named_parameters():
        parts = torch.randn(6, *weight.shape, generator=generator, dtype=torch.float64)
        found[name] = parts[rank::world].sum(0)
    return found


def is_matrix(name: str) -> bool:
    return ".attn.c_" in name or ".proj.weight" in name or ".fc." in name or "_proj." in name


def walk(
    ranks: Any,
    config: OptimConfig,
    steps: Iterator[int] | range,
    kept: Any = None,
    look: Any = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor], list[float]]:
    """Return weights, state and gradient norms after some steps, on from what was kept."""
    model = wide()
    if kept is not None:
        model.load_state_dict(kept[0])
    optimisers = Optimisers(model, config, ranks)
    if kept is not None:
        optimisers.restore({name: value.clone() for name, value in kept[1].items()})
    norms = []
    for step in steps:
        grads = gradients(step, (ranks.rank, ranks.world))
        for name, weight in model.named_parameters():
            weight.grad = grads[name]
        if look is not None:
            look(optimisers, step, ranks)
        norms.append(float(optimisers.step(0.5, step)))
        assert all(weight.grad is None for weight in model.parameters())
    weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    return weights, {name: value.clone() for name, value in optimisers.state().items()}, norms
