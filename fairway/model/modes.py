"""Temporary modes of a model: plain, frozen, in order, restored. Afterwards it is as before."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch

from fairway.model import attention
from fairway.model.block import Block
from fairway.model.gpt import GPT
from fairway.model.operations import PLAIN


@contextmanager
def mode(
    model: GPT,
    *,
    plain: bool = False,
    frozen: bool = False,
    in_order: bool = False,
    restored: bool = False,
) -> Iterator[None]:
    """A context in which a model is in evaluation mode.

    plain: it runs by the plain formulas, so hooks can observe it. frozen: parameters get no
    gradients, only states do. in_order: gradients are added in a fixed order, so the bits repeat;
    CPUs always do that, and on a GPU PyTorch's FlashAttention has a fixed order on request.
    restored: the weights are restored afterwards, and gradients removed.
    """
    training, operations = model.training, model.operations
    needed = [weight.requires_grad for weight in model.parameters()]
    attentions = [cast(Block, block).attn for block in model.blocks]
    attends = [attn.attend for attn in attentions]
    kept = [weight.detach().clone() for weight in model.parameters()] if restored else []
    try:
        model.eval()
        if plain:
            model.operations = PLAIN
        if frozen:
            model.requires_grad_(False)
        if in_order and model.tok_emb.weight.device.type == "cuda":
            refused = attention.why_not("flash", "cuda", model.compute_dtype)
            for attn in attentions:
                attn.attend = attention.plain if refused else attention.flash_in_order
        yield
    finally:
        model.train(training)
        model.operations = operations
        for weight, gathers in zip(model.parameters(), needed, strict=True):
            weight.requires_grad_(gathers)
        for attn, attend in zip(attentions, attends, strict=True):
            attn.attend = attend
        if restored:
            restore(model, kept)


@torch.no_grad()
def restore(model: GPT, weights: list[torch.Tensor]) -> None:
    """Set the weights of a model, in the order of its parameters, and remove gradients."""
    for weight, before in zip(model.parameters(), weights, strict=True):
        weight.copy_(before)
        weight.grad = None
