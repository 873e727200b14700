"""MuonEq-R for the block matrices, AdamW for everything else, as in #1493.

Muon: Jordan et al. 2024. Row normalisation before orthogonalising: MuonEq-R, pull request #1217.
Matrices of one shape form a bank, so that a step needs only a few kernels per shape. With several
ranks a bank is divided: each rank receives the summed gradients of its share, keeps the momentum of
only this share, orthogonalises it and sends the updates to all (algorithms.md 3.3). A shape then
has several banks, from late to early layers, so the sums begin during the backward pass. No
function here waits for the device.

Shapes: L matrices of one shape, P the same padded to a multiple of the ranks, K = P / ranks those
of one rank, R rows, C columns, N elements in a row.
"""

import importlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fairway.base.floats import fit, widest
from fairway.base.optimisers import without_compiler
from fairway.config.settings import OptimConfig
from fairway.machine.ranks import Ranks, Wait
from fairway.model import kinds
from fairway.model.gpt import GPT
from fairway.train.cpu_muon import loop_nesterov
from fairway.train.rules import inverses, move, muon_update, nesterov, neurons, several
from fairway.train.schedule import momentum

# AdamW as in #1493: the decay of its first moment, the number added to the root of the second, and
# the decays of weights.
_BETA1, _EPS, EMBED_WD, SCALAR_WD = 0.9, 1e-8, 0.085, 0.02
_AdamW = without_compiler(torch.optim.AdamW)
# Banks per shape with several ranks: with more banks, more is sent during the backward pass, by
# more kernels.
STAGES = 3
# The weight of a new measurement in the second moments of inputs.
INPUTS_NEW = 0.25


def kernels(
    fused: bool, weights_LRC: Tensor, means: int
) -> tuple[Callable[..., None], Callable[..., None]]:
    """Return the functions for rows and for moves: plain, one GPU kernel each, or a loop on a CPU.

    Several running means have no loop, since their passes take little time compared with a CPU's
    products.
    """
    if fused:
        # Imported here, because it needs Triton, which only GPU builds of PyTorch include.
        rows = importlib.import_module("fairway.train.fused_muon")
        return rows.fused_several if means > 1 else rows.fused_nesterov, rows.fused_move
    if means > 1:
        return several, move
    return loop_nesterov if fit(weights_LRC) else nesterov, move


def _gradients(weights: Iterable[nn.Parameter]) -> list[Tensor]:
    """Return the gradients and remove them from their weights.

    So the next backward pass makes new tensors, which are passed without cost; adding into existing
    ones costs a pass over them.

    """
    grads = []
    for weight in weights:
        assert weight.grad is not None, "a parameter received no gradient"
        grads.append(weight.grad)
        weight.grad = None
    return grads


class Bank:
    """Matrices of one shape: stacked weights, gradients and updates, and momentum of our share.

    The weights become views of the stack, so that one kernel decays and moves all of them.
    """

    def __init__(
        self,
        named: Sequence[tuple[str, nn.Parameter]],
        config: OptimConfig,
        ranks: Ranks,
        fused: bool,
        dtype: torch.dtype,
    ) -> None:
        self.config, self.ranks = config, ranks
        self.names, self.weights = [name for name, _ in named], [weight for _, weight in named]
        self.weights_LRC = torch.stack([weight.detach() for weight in self.weights])
        self.nesterov, self.move = kernels(fused, self.weights_LRC, config.momentum_buffers)
        for weight, value_RC in zip(self.weights, self.weights_LRC, strict=True):
            weight.data = value_RC
        count, *shape = self.weights_LRC.shape
        padded = -(-count // ranks.world) * ranks.world
        self.grads_PRC = self.weights_LRC.new_zeros(padded, *shape)
        self.updates_PRC = torch.zeros_like(self.grads_PRC, dtype=dtype)
        self.momentum_KRC = torch.zeros_like(ranks.shard(self.grads_PRC))
        squares = neurons(self.momentum_KRC.shape)
        if config.momentum_buffers > 1:
            # Several running means stand in its place: [K, R, M, C].
            K, R, C = self.momentum_KRC.shape
            self.momentum_KRC = self.momentum_KRC.new_zeros(K, R, config.momentum_buffers, C)
        # The state in a checkpoint, by its name there; `reset` clears it.
        self.own = {"muon": self.momentum_KRC}
        self.squares: Tensor | None = None
        if config.row_beta:
            self.squares = self.momentum_KRC.new_zeros(squares)
            self.own["muon_rows"] = self.squares
        self.inverses_KCC: Tensor | None = None
        if config.newton:
            C = shape[-1]
            self.own["muon_inputs"] = self.grads_PRC.new_zeros(len(self.momentum_KRC), C, C)
            self._invert()
        self.wait: Wait

    def collect(self) -> None:
        """Stack the gradients and begin to sum them over the ranks; each rank gets its share."""
        count = len(self.weights)
        # One kernel for all; torch.stack would copy matrix by matrix.
        torch._foreach_copy_(list(self.grads_PRC[:count]), _gradients(self.weights))
        # Outside our own share the last sum may have left any values.
        self.grads_PRC[count:].zero_()
        self.wait = self.ranks.start_scatter(self.grads_PRC)

    def square(self) -> Tensor:
        """Return the sum of squares of our share of the gradients, a float64 scalar.

        Norms are computed per matrix and added in float64, so the sum does not depend on the number
        of ranks.
        """
        self.wait()
        own_KRC = self.ranks.shard(self.grads_PRC)
        norms_K: Tensor = torch.linalg.vector_norm(own_KRC, dim=(-2, -1))
        return norms_K.to(widest(norms_K)).square().sum()

    def propose(self, scale_1: Tensor, mu: float) -> None:
        """Compute the updates of our share from scaled gradients; begin to send them to all."""
        own_KRC, updates_KRC = map(self.ranks.shard, (self.grads_PRC, self.updates_PRC))
        if self.inverses_KCC is not None:
            own_KRC = own_KRC @ self.inverses_KCC
        muon_update(
            *(own_KRC, self.momentum_KRC, scale_1, mu, self.config, updates_KRC),
            *(self.nesterov, self.squares),
        )
        self.wait = self.ranks.start_gather(self.updates_PRC)

    def apply(self, lr: float) -> None:
        """Decay the weights, then subtract the updates of all ranks."""
        self.wait()
        updates_LRC = self.updates_PRC[: len(self.weights)]
        config = self.config
        self.move(self.weights_LRC, updates_LRC, lr, config.matrix_wd, config.cautious)

    def look(self, moments: Mapping[str, Tensor]) -> None:
        """Move the second moments [C, C] of inputs towards new ones, summed over the ranks."""
        own_KCC = self.own["muon_inputs"]
        whole_PCC = own_KCC.new_zeros(len(self.grads_PRC), *own_KCC.shape[1:])
        for place, name in enumerate(self.names):
            whole_PCC[place] = moments[name]
        self.ranks.start_scatter(whole_PCC)()
        own_KCC.lerp_(self.ranks.shard(whole_PCC), INPUTS_NEW)
        self._invert()

    def _invert(self) -> None:
        self.inverses_KCC = inverses(self.own["muon_inputs"], self.config.newton)

    def whole(self, own: Tensor) -> Tensor:
        """Return the state [L, ...] of all matrices from shares [K, ...]; all ranks call this."""
        whole = own.new_empty(len(self.grads_PRC), *own.shape[1:])
        self.ranks.shard(whole).copy_(own)
        self.ranks.start_gather(whole)()
        return whole[: len(self.weights)]

    def restore(self, name: str, every: Tensor) -> None:
        """Restore our share from a state of all matrices."""
        own = self.own[name]
        whole = own.new_zeros(len(self.grads_PRC), *own.shape[1:])
        whole[: len(self.weights)] = every
        own.copy_(self.ranks.shard(whole))
        if name == "muon_inputs":
            self._invert()


def in_stages(count: int, world: int) -> list[slice]:
    """Divide matrices in the order of the layers into banks, the last layers first.

    The sizes of all banks except the last are multiples of the ranks, so that the padding is not
    more than that of one bank. A single rank sends nothing and has one bank.
    """
    share = -(-count // world)
    size = world * -(-share // (STAGES if world > 1 else 1))
    return [slice(max(0, end - size), end) for end in range(count, 0, -size)]


class Departures:
    """Begins the sum of each bank over the ranks when the backward pass has all its gradients.

    The order, in which a backward pass completes the banks, is the same on every rank.
    """

    def __init__(self, banks: Sequence[Bank]) -> None:
        self.banks = banks
        self.missing: list[int] = []
        self.left = 0
        for number, bank in enumerate(banks):
            if bank.ranks.world == 1:
                continue
            arrived = partial(self._arrived, number)
            for weight in bank.weights:
                weight.register_post_accumulate_grad_hook(arrived)  # type: ignore[no-untyped-call]

    def expect(self) -> None:
        """Let the next backward pass, the last one of the step, begin the sums."""
        self.missing = [len(bank.weights) for bank in self.banks]

    def _arrived(self, number: int, _: Tensor) -> None:
        if not self.missing:
            return
        self.missing[number] -= 1
        while self.left < len(self.banks) and not self.missing[self.left]:
            self._leave()

    def _leave(self) -> None:
        self.banks[self.left].collect()
        self.left += 1

    def finish(self) -> None:
        """Begin the sums that the backward pass has not begun."""
        while self.left < len(self.banks):
            self._leave()
        self.missing, self.left = [], 0


class Muon:
    """Muon over matrices in the order of the layers.

    `banks` has the largest first, so that the longest message overlaps with the most work.
    """

    def __init__(
        self,
        matrices: Iterable[tuple[str, nn.Parameter]],
        config: OptimConfig,
        ranks: Ranks | None = None,
        fused: bool = False,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        ranks = ranks or Ranks()
        shapes: dict[torch.Size, list[tuple[str, nn.Parameter]]] = {}
        places: dict[str, int] = {}
        for place, (name, weight) in enumerate(matrices):
            shapes.setdefault(weight.shape, []).append((name, weight))
            places[name] = place
        banks = [
            Bank(named[part], config, ranks, fused, dtype)
            for named in shapes.values()
            for part in in_stages(len(named), ranks.world)
        ]
        self.banks = sorted(banks, key=lambda bank: -bank.grads_PRC.numel())
        # In the backward pass the matrix of the earliest layer completes a bank.
        self.departures = Departures(sorted(banks, key=lambda bank: -places[bank.names[0]]))

    def propose(self, scale_1: Tensor, mu: float) -> None:
        """Compute all updates; those of one bank are sent while the next is computed."""
        for bank in self.banks:
            bank.propose(scale_1, mu)

    def apply(self, lr: float) -> None:
        """Move all matrices by the updates of `propose`."""
        for bank in self.banks:
            bank.apply(lr)

    def named_state(self) -> Iterator[tuple[str, Tensor]]:
        """Yield ('muon.' + name, momentum) of every matrix, on every rank; all must iterate.

        Mean squares of neurons are called 'muon_rows', moments of inputs 'muon_inputs'.
        """
        for bank in self.banks:
            for kind, own in bank.own.items():
                names = [f"{kind}.{name}" for name in bank.names]
                yield from zip(names, bank.whole(own), strict=True)

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Restore the result of `named_state`."""
        for bank in self.banks:
            for kind in bank.own:
                every = torch.stack([tensors[f"{kind}.{name}"] for name in bank.names])
                bank.restore(kind, every)

    def reset(self) -> None:
        """Clear the momentum and all other state of former steps."""
        for bank in self.banks:
            for own in bank.own.values():
                own.zero_()


# ---------------------------------------------------------------------------------------------
# Everything else


class FlatGradients:
    """The gradients of parameters of one dtype in one row, so that one message sums them."""

    def __init__(self, weights: Sequence[nn.Parameter], ranks: Ranks) -> None:
        self.weights, self.ranks = weights, ranks
        self.row_N = weights[0].new_zeros(sum(weight.numel() for weight in weights))
        parts = torch.split(self.row_N, [weight.numel() for weight in weights])
        self.views = [p.view(w.shape) for p, w in zip(parts, weights, strict=True)]
        self.wait: Wait

    def collect(self) -> None:
        """Move the gradients into the row and begin to sum it over the ranks."""
        torch.cat([grad.flatten() for grad in _gradients(self.weights)], out=self.row_N)
        for weight, view in zip(self.weights, self.views, strict=True):
            weight.grad = view
        self.wait = self.ranks.start_sum(self.row_N)

    def square(self) -> Tensor:
        """Return the sum of squares, a float64 scalar, the same on every rank."""
        self.wait()
        # At least float32, since a norm in bfloat16 would have three digits.
        wide = torch.promote_types(self.row_N.dtype, torch.float32)
        norm: Tensor = torch.linalg.vector_norm(self.row_N, dtype=wide)
        return norm.to(widest(norm)).square()


def _by_dtype(weights: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    groups: dict[torch.dtype, list[nn.Parameter]] = {}
    for weight in weights:
        groups.setdefault(weight.dtype, []).append(weight)
    return list(groups.values())


def products_dtype(model: GPT) -> torch.dtype:
    """Return the dtype of Muon's products: bfloat16, as in #1493, or a CPU model's own.

    On a CPU without bfloat16 products, PyTorch's substitute takes 20 to 40 times as long as
    float32, which was three quarters of a step of the demo.
    """
    on_gpu = any(weight.is_cuda for weight in model.parameters())
    return torch.bfloat16 if on_gpu else model.compute_dtype


class Optimisers:
    """Both learning rules over one model, each parameter in exactly one group.

    With several ranks the losses must already be divided by their number, because gradients are
    summed. Those of matrices are sent during the backward pass that `expect_gradients` announces,
    all others in `step`.
    """

    def __init__(self, model: GPT, config: OptimConfig, ranks: Ranks | None = None) -> None:
        self.config, self.ranks = config, ranks or Ranks()
        self.clip = config.grad_clip or math.inf
        named = dict(model.named_parameters())
        by_group = kinds.by_group(model.declares, named)
        groups = [
            (by_group["embed"], config.embed_lr, EMBED_WD),
            (by_group["scalar"], config.scalar_lr, SCALAR_WD),
        ]
        self.muon = Muon(
            [(name, named[name]) for name in by_group["matrix"]],
            config,
            self.ranks,
            model.operations.fused,
            products_dtype(model),
        )
        self.adam = _AdamW(
            [
                {"params": [named[n] for n in names], "base_lr": lr, "weight_decay": wd}
                for names, lr, wd in groups
            ],
            betas=(_BETA1, config.beta2),
            eps=_EPS,
            fused=True,
        )
        self.adam_names = [name for names, *_ in groups for name in names]
        self.parameters = list(named.values())
        rest = [named[name] for name in self.adam_names]
        self.flats = [FlatGradients(weights, self.ranks) for weights in _by_dtype(rest)]

    @torch.no_grad()
    def look(self, moments: Mapping[str, Tensor]) -> None:
        """Learn second moments [C, C] of the inputs of all matrices, by name, before a step.

        Each rank gives the moments of its own tokens, divided like its losses.
        """
        for bank in self.muon.banks:
            bank.look(moments)

    def expect_gradients(self) -> None:
        """Announce the last backward pass before `step`; every rank must complete it."""
        self.muon.departures.expect()

    @torch.no_grad()
    def step(self, multiplier: float, step: int) -> Tensor:
        """Sum over ranks, clip, update every parameter, clear gradients.

        Returns the norm of the summed gradients before the clip, a float32 scalar on the device.
        `multiplier` scales all learning rates, `step` sets the momentum.
        """
        self.muon.departures.finish()
        for flat in self.flats:
            flat.collect()
        grad_norm = self._grad_norm()
        # It has a dimension, because a scalar would be rounded to the gradients' dtype first.
        scale_1 = (self.clip / (grad_norm + 1e-6)).clamp(max=1.0).reshape(1)
        self.muon.propose(scale_1, momentum(step, self.config))
        self._step_adam(scale_1, multiplier)
        self.muon.apply(self.config.matrix_lr * multiplier)
        # Neither the banks nor fused AdamW change version counters of parameters, but owners of
        # copied weights (the operations) check these.
        torch.autograd.graph.increment_version(self.parameters)
        self.clear()
        return grad_norm

    def _grad_norm(self) -> Tensor:
        first = self.parameters[0]
        zero = torch.zeros((), dtype=widest(first), device=first.device)
        square = sum((bank.square() for bank in self.muon.banks), start=zero)
        self.ranks.start_sum(square)()
        return sum((flat.square() for flat in self.flats), start=square).sqrt().float()

    def _step_adam(self, scale_1: Tensor, multiplier: float) -> None:
        for flat in self.flats:
            flat.row_N.mul_(scale_1)
        for group in self.adam.param_groups:
            group["lr"] = group["base_lr"] * multiplier
        self.adam.step()

    def clear(self) -> None:
        """Drop all gradients."""
        for weight in self.parameters:
            weight.grad = None

    def reset(self) -> None:
        """Clear momentum and moments, as before a first step."""
        self.muon.reset()
        self.adam.state.clear()

    def state(self) -> dict[str, Tensor]:
        """Return every state tensor by name; empty AdamW state (before a first step) is absent.

        With several ranks all must call it, and all get the whole state.
        """
        tensors = dict(self.muon.named_state())
        parameters = [p for group in self.adam.param_groups for p in group["params"]]
        for name, weight in zip(self.adam_names, parameters, strict=True):
            for key, value in self.adam.state[weight].items():
                tensors[f"adam.{key}.{name}"] = value
        return tensors

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Restore the result of `state`."""
        self.muon.restore(tensors)
        parameters = [p for group in self.adam.param_groups for p in group["params"]]
        for name, weight in zip(self.adam_names, parameters, strict=True):
            slots: dict[str, Any] = {}
            for key in ("step", "exp_avg", "exp_avg_sq"):
                value = tensors.get(f"adam.{key}.{name}")
                if value is not None:
                    slots[key] = value.clone()
            self.adam.state[weight] = slots
