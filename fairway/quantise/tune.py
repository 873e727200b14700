"""A short fine-tune of what an artifact keeps as float16: gains, mixes, skips, small matrices.

They are stored anyway, so that learning them anew around the quantised matrices costs no bytes;
codes and steps stay as they are. The lesson is the unquantised model's own distribution over the
next token (Hinton et al. 2015, arXiv 1503.02531): its noise vanishes with the damage that is left,
which a label's does not.

Shapes: B batch, T time, N positions, V vocabulary.
"""

import copy
import math
from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from fairway.base.progress import progress
from fairway.config.settings import TUNE_TOKENS, QuantConfig
from fairway.model.gpt import GPT
from fairway.quantise.calibrate import calibrating
from fairway.quantise.gptq import QuantisedModel, as_half, dequantise

# AdamW's rate at first (0.0003 and 0.003 learn less, docs/LOG.md), and its other constants.
RATE = 0.001
_BETAS, _EPS = (0.9, 0.99), 1e-8


def tuned(
    model: GPT, quantised: QuantisedModel, batches: Iterable[Tensor], config: QuantConfig
) -> QuantisedModel:
    """Return a quantised model whose float16 tensors have learned from the unquantised `model`.

    `batches` yields token ids [B, T] on the model's device, training text alone; it may end before
    the steps that quant.tune_steps asks for. AdamW without decay, its rate falling to 0 along a
    cosine. Nothing is drawn at random.
    """
    with calibrating(model), torch.enable_grad():
        learner = _learner(model, quantised)
        kept = {n: w for n, w in learner.named_parameters() if isinstance(quantised[n], Tensor)}
        for weight in kept.values():
            weight.requires_grad_(True)
        optimiser = torch.optim.AdamW(kept.values(), RATE, betas=_BETAS, eps=_EPS, weight_decay=0.0)
        with progress("tune", config.tune_steps) as advance:
            for step, ids_BT in zip(range(config.tune_steps), _rows(batches), strict=False):
                for group in optimiser.param_groups:
                    group["lr"] = RATE * _share(step / config.tune_steps)
                optimiser.zero_grad()
                divergence(model, learner, ids_BT).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                advance(1)
    return quantised | {name: as_half(name, weight) for name, weight in kept.items()}


def divergence(model: GPT, learner: GPT, ids_BT: Tensor) -> Tensor:
    """Return what a position costs more if priced by `learner` where `model` is right, in nats."""
    with torch.no_grad():
        taught_NV = model.logits(model.hidden(ids_BT)).flatten(0, 1).log_softmax(-1)
    learned_NV = learner.logits(learner.hidden(ids_BT)).flatten(0, 1).log_softmax(-1)
    return F.kl_div(learned_NV, taught_NV, reduction="batchmean", log_target=True)


def _learner(model: GPT, quantised: QuantisedModel) -> GPT:
    """Return a copy of the model as an artifact restores it, nothing of which learns yet."""
    learner = copy.deepcopy(model).requires_grad_(False)
    restored = dequantise(quantised)
    with torch.no_grad():
        for name, weight in learner.named_parameters():
            weight.copy_(restored[name])
    return learner


def _rows(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield the rows of batches, as many at a time as a step takes."""
    for ids_BT in batches:
        yield from torch.split(ids_BT, max(1, TUNE_TOKENS // ids_BT.shape[1]))


def _share(progress: float) -> float:
    return (1 + math.cos(math.pi * progress)) / 2
