"""Learning that gives the same bits every time: what a decoder that learns along depends on."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from fairway.model import attention
from fairway.model.gpt import GPT, Block


@contextmanager
def repeatable(model: GPT) -> Iterator[None]:
    """While this lasts, gradients of a model are added up in a fixed order.

    CPUs need nothing. On a GPU fast attention adds up the gradient of the queries in whatever order
    its programs finish; PyTorch's FlashAttention has a fixed order for those who ask.
    """
    attentions = [cast(Block, block).attn for block in model.blocks]
    before = [attn.attend for attn in attentions]
    if model.tok_emb.weight.device.type == "cuda":
        refused = attention.why_not("flash", "cuda", model.compute_dtype)
        for attn in attentions:
            attn.attend = attention.plain if refused else attention.flash_in_order
    try:
        yield
    finally:
        for attn, attend in zip(attentions, before, strict=True):
            attn.attend = attend
