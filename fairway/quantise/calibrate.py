"""Calibration: statistics of every matrix's inputs on training text (#1493).

Shapes: B batch, T time, N = B * T positions, C inputs of a matrix, D width.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fairway.base.memory import free_bytes
from fairway.model.gpt import GPT
from fairway.model.modes import mode
from fairway.model.need import passing_bytes, together, way_of
from fairway.model.ops import product_f32

# The matrix that is both the embedding and the head.
EMBEDDING = "tok_emb.weight"


class _Collector:
    """Adds up X^T X by name. Matrices that read the same tensor share one sum.

    Query, key and value read one tensor, and a parallel MLP reads the same one. One sum saves about
    half of the products of that width, and of GPTQ's factorisations.
    """

    def __init__(self) -> None:
        self.hessians: dict[str, Tensor] = {}
        self._first_of: dict[str, str] = {}
        # The last two tensors seen, with the name that came first with each: the output projection
        # of attention comes between q, k, v and a parallel MLP, which read the same tensor.
        self._recent: deque[tuple[Tensor, str]] = deque(maxlen=2)

    def add(self, name: str, x: Tensor) -> None:
        """Add the outer products of all positions of x to the matrix's Hessian, in float32."""
        first = next((known for seen, known in self._recent if seen is x), "")
        if first:
            self.hessians.setdefault(name, self.hessians[first])
        else:
            first = name
            self._recent.append((x, name))
            product_CC = gram(x.detach().flatten(0, -2))
            if name in self.hessians:
                self.hessians[name] += product_CC
            else:
                self.hessians[name] = product_CC
        usual = self._first_of.setdefault(name, first)
        assert first == usual, f"{name} shares its input with {usual} on some visits only"


def gram(x_NC: Tensor) -> Tensor:
    """Return X^T X in float32. A GPU uses 16-bit inputs directly."""
    if x_NC.is_cuda and x_NC.element_size() == 2:
        return product_f32(x_NC.T, x_NC)
    x_NC = x_NC.float()
    return x_NC.T @ x_NC


def collect_hessians(
    model: GPT, batches: Iterable[Tensor], names: Iterable[str]
) -> dict[str, Tensor]:
    """Return X^T X [C, C] in float32 for each named weight, X being all of its inputs.

    `batches` yields token ids [B, T] on the model's device. The model reads them in evaluation
    mode, without gradients or autocast, in its present looping state: a block that is visited
    several times adds every visit. Matrices that read one tensor get one Hessian, the same object.
    The embedding, which is the head, reads the normalised final states. GPTQ does not depend on
    the scale of a Hessian, so the sums are not divided by the number of positions. Raises
    ValueError if there is no batch, KeyError for a name that is no matrix of the model.
    """
    collector = _Collector()
    names = list(names)
    inner = [name for name in names if name != EMBEDDING]
    with calibrating(model, plain=False), _hooked(model, inner, collector):
        for ids_BT in _pieces(model, batches):
            x_BTD = model.hidden(ids_BT)
            if EMBEDDING in names:
                collector.add(EMBEDDING, x_BTD)
    if not collector.hessians:
        raise ValueError("calibration needs at least one batch and one matrix")
    return collector.hessians


def _pieces(model: GPT, batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield the rows of batches, as many together as fit into the free memory of a GPU."""
    for ids_BT in batches:
        T = ids_BT.shape[1]
        each = T * passing_bytes(model.config, way_of(model), model.looping, T)
        yield from torch.split(ids_BT, together(each, free_bytes(ids_BT.device)))


@contextmanager
def _hooked(model: GPT, names: list[str], collector: _Collector) -> Iterator[None]:
    """Pass the inputs of matrices to a collector, from their layers or from kernels."""
    modules = dict(model.named_modules())
    layers = {modules[name.removesuffix(".weight")]: name for name in names}

    def tell(layer: nn.Module, x: Tensor) -> None:
        if layer in layers:
            collector.add(layers[layer], x)

    steps, handles = model.operations, []
    try:
        for layer in layers:
            handles.append(layer.register_forward_pre_hook(lambda layer, x: tell(layer, x[0])))
        model.operations = steps.watched(tell)
        yield
    finally:
        model.operations = steps
        for handle in handles:
            handle.remove()


@contextmanager
def calibrating(model: GPT, plain: bool = True, frozen: bool = False) -> Iterator[None]:
    """Read inside in evaluation mode without gradients or autocast, by plain formulas if asked."""
    device = model.tok_emb.weight.device.type
    reading = mode(model, plain=plain, frozen=frozen)
    with reading, torch.no_grad(), torch.autocast(device, enabled=False):
        yield
