"""Sensitivity of the loss to errors in the weights: second moments of its gradients.

An error E of a matrix raises the loss by about tr(G E H E^T) / 2. H is the second moment of its
inputs (`calibrate`), G the second moment of the loss's gradient at its outputs. Labels are drawn
from the model itself, so that G H is the Fisher information in the Kronecker form of Martens and
Grosse 2015, arXiv 1503.05671. Both are per position; a matrix that is visited several times has the
sum of its visits' G and the mean of their H.

Shapes: B batch, T time, N positions, R rows (outputs), C columns (inputs), V vocabulary.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fairway.base.memory import free_bytes
from fairway.model.gpt import GPT
from fairway.model.need import sensitivity_bytes, together, way_of
from fairway.quantise.calibrate import EMBEDDING, calibrating, gram

# The number of positions in one forward and backward pass; they fit easily on a GPU.
AT_ONCE = 16_384


@dataclass(frozen=True, slots=True, eq=False)
class Curvature:
    """The cost of an error of a matrix: inputs_CC, and outputs_RR or, if rows never mix, rows_R."""

    inputs: Tensor
    outputs: Tensor | None
    rows: Tensor


@dataclass(slots=True, eq=False)
class _Sums:
    """Sums over positions: by matrix, and for the embedding as input and as head."""

    outputs: dict[str, Tensor] = field(default_factory=dict)
    entering: Tensor | None = None
    chosen: Tensor | None = None
    read: Tensor | None = None
    positions: int = 0

    def add(self, name: str, grad: Tensor) -> None:
        product_RR = gram(grad.flatten(0, -2))
        self.outputs[name] = self.outputs[name] + product_RR if name in self.outputs else product_RR

    def enter(self, grad: Tensor) -> None:
        product_CC = gram(grad.flatten(0, -2))
        self.entering = product_CC if self.entering is None else self.entering + product_CC

    def choose(self, chosen_V: Tensor, read_V: Tensor) -> None:
        self.chosen = chosen_V if self.chosen is None else self.chosen + chosen_V
        self.read = read_V if self.read is None else self.read + read_V


def curvatures(
    model: GPT, batches: Iterable[Tensor], hessians: Mapping[str, Tensor], positions: int
) -> dict[str, Curvature]:
    """Return the curvature of every matrix in `hessians`.

    `batches` yields token ids [B, T] on the model's device; `hessians` are those of `calibrate`,
    summed over so many positions, in the model's present looping state. Raises ValueError if there
    is no batch.
    """
    sums = _Sums()
    inner = [name for name in hessians if name != EMBEDDING]
    generator = torch.Generator(model.tok_emb.weight.device).manual_seed(0)
    reading = calibrating(model, plain=False, frozen=True)
    with reading, torch.enable_grad(), _hooked(model, inner, sums):
        for ids_BT in batches:
            for rows_BT in torch.split(ids_BT, _at_once(model, ids_BT)):
                _read(model, rows_BT, sums, generator)
    if not sums.positions:
        raise ValueError("sensitivities need at least one batch")
    found = {}
    # Matrices that read one tensor still share one Hessian.
    means: dict[int, Tensor] = {}
    for name in inner:
        outputs_RR = sums.outputs[name] / sums.positions
        hessian_CC = hessians[name]
        if id(hessian_CC) not in means:
            means[id(hessian_CC)] = hessian_CC / (positions * _visits(model, name))
        inputs_CC = means[id(hessian_CC)]
        found[name] = Curvature(inputs_CC, outputs_RR, outputs_RR.diagonal().clone())
    if EMBEDDING in hessians:
        found[EMBEDDING] = _embedding(hessians[EMBEDDING] / positions, sums)
    return found


def _at_once(model: GPT, ids_BT: Tensor) -> int:
    """Return how many rows are read together; the free memory of a GPU may reduce them."""
    T = ids_BT.shape[1]
    each = T * sensitivity_bytes(model.config, way_of(model), model.looping, T)
    return together(each, free_bytes(ids_BT.device), max(1, AT_ONCE // T))


def _visits(model: GPT, name: str) -> int:
    return [*model.encoder_visits, *model.decoder_visits].count(int(name.split(".")[1]))


def _read(model: GPT, ids_BT: Tensor, sums: _Sums, generator: torch.Generator) -> None:
    """Read some rows, draw a label at every position, and propagate the sum of the costs back."""
    logits_NV = model.logits(model.hidden(ids_BT)).flatten(0, 1)
    labels_N1 = _drawn(model, logits_NV.detach(), ids_BT, sums, generator)
    costs_N1 = logits_NV.logsumexp(-1, keepdim=True) - logits_NV.gather(1, labels_N1)
    torch.autograd.backward(costs_N1.sum())
    sums.positions += ids_BT.numel()


def _drawn(
    model: GPT, logits_NV: Tensor, ids_BT: Tensor, sums: _Sums, generator: torch.Generator
) -> Tensor:
    """Return labels [N, 1] drawn by the model, and add what the logits tell about its embedding.

    Its tables end here, before the backward pass: for 16,384 tokens and 12,288 words each has
    0.8 GB.
    """
    shares_NV = logits_NV.softmax(-1)
    labels_N1 = torch.multinomial(shares_NV, 1, generator=generator)
    variance_NV = (1 - shares_NV).mul_(shares_NV)
    variance_NV.mul_(model.cap_slope(logits_NV).square_())
    chosen_V = variance_NV.sum(0)
    seen_V = torch.bincount(ids_BT.flatten(), minlength=len(chosen_V))
    # Tokens in the text give no estimate for rare tokens; the expected tokens do.
    sums.choose(chosen_V, (shares_NV.sum(0) + seen_V) / 2)
    return labels_N1


def _embedding(final_CC: Tensor, sums: _Sums) -> Curvature:
    """Return the curvature of the embedding, which is the head as well.

    The cost of a row as input comes from the gradient of its token's state, its cost in the head
    from the gradient of its logit. Both parts of a row are as frequent as its token, so they share
    a sum.
    """
    assert sums.entering is not None and sums.chosen is not None and sums.read is not None
    entering_CC = sums.entering / sums.positions
    chosen_V, read_V = sums.chosen / sums.positions, sums.read / sums.positions
    both_CC = final_CC + read_V.sum() / chosen_V.sum() * entering_CC
    rows_V = chosen_V * final_CC.trace() + read_V * entering_CC.trace()
    return Curvature(both_CC, None, rows_V / both_CC.trace())


@contextmanager
def _hooked(model: GPT, names: list[str], sums: _Sums) -> Iterator[None]:
    """Pass the gradients of the outputs of matrices to sums, from their layers or from kernels."""
    modules = dict(model.named_modules())
    layers = {modules[name.removesuffix(".weight")]: name for name in names}

    def tell(layer: nn.Module, grad: Tensor) -> None:
        if layer in layers:
            sums.add(layers[layer], grad)

    steps, handles = model.operations, []
    try:
        handles.append(model.tok_emb.register_forward_hook(_opened(sums.enter)))
        for layer in layers:
            handles.append(layer.register_forward_hook(_watched(tell)))
        model.operations = steps.watched_back(tell)
        yield
    finally:
        model.operations = steps
        for handle in handles:
            handle.remove()


def _opened(add: Callable[[Tensor], None]) -> Callable[[nn.Module, object, Tensor], Tensor]:
    def after(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        output = output.detach().requires_grad_(True)
        output.register_hook(add)  # type: ignore[no-untyped-call]
        return output

    return after


def _watched(tell: Callable[[nn.Module, Tensor], None]) -> Callable[..., None]:
    def after(layer: nn.Module, inputs: object, output: Tensor) -> None:
        output.register_hook(lambda grad: tell(layer, grad))  # type: ignore[no-untyped-call]

    return after
