"""Learning that gives the same bits every time: what a decoder that learns along depends on."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch

from fairway.model import attention
from fairway.model.gpt import GPT, Block


@contextmanager
def repeatable(model: GPT) -> Iterator[None]:
    """While this lasts, gradients of a model repeat bit for bit on the same machine.

    CPUs need nothing. On a GPU fast attention adds up the gradient of the queries in whatever order
    its programs finish; PyTorch's FlashAttention has a fixed order for those who ask, and does not
    plan anew for every shape of a batch as cuDNN's kernel does, which costs 100 ms each.
    """
    if model.tok_emb.weight.device.type != "cuda":
        yield
        return
    attentions = [cast(Block, block).attn for block in model.blocks]
    before = [attn.attend for attn in attentions]
    asked, fills = (
        torch.are_deterministic_algorithms_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
    )
    name = "plain" if attention.why_not("flash", "cuda", model.compute_dtype) else "flash"
    try:
        for attn in attentions:
            attn.attend = attention.BACKENDS[name]
        # Only warnings: matrix products are checked for a variable of the environment, which
        # matters where several streams share a workspace, and here is one.
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        yield
    finally:
        torch.use_deterministic_algorithms(asked)
        torch.utils.deterministic.fill_uninitialized_memory = fills  # type: ignore[attr-defined]
        for attn, attend in zip(attentions, before, strict=True):
            attn.attend = attend
