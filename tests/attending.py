"""Attention one query at a time, and the batches that backends are compared to it on."""

import functools
import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from fairway.config.settings import BOS_ID
from fairway.model.seen import ALL, Seen, documents_of

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 3e-2}
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
Attend = Callable[..., Tensor]
Shape = tuple[int, int, int, int, int]
# Of any T: no document ends; BOS everywhere, first, twice in a row, last, and each at random.
DOCUMENTS = ("", "every", "first", "two", "last", "random")
WINDOWS = (0, 1, 2, 7, 1000)
KINDS = list(itertools.product(WINDOWS, DOCUMENTS))


def fused_views(shape: Shape, scale: float = 2.0) -> list[Tensor]:
    """q, k and v [B, heads, T, K] as the model makes them: strided slices of one float64 buffer."""
    B, H, G, T, K = shape
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(B, T, (H + 2 * G) * K, generator=generator, dtype=torch.float64) * scale
    parts = wide.split([H * K, G * K, G * K], dim=-1)
    return [part.unflatten(-1, (-1, K)).transpose(1, 2) for part in parts]


def token_ids(documents: str, B: int, T: int) -> Tensor:
    """Token ids whose documents lie as named; rows differ from one another."""
    ids_BT = torch.full((B, T), BOS_ID + 1)
    generator = torch.Generator().manual_seed(2)
    for row, ids_T in enumerate(ids_BT):
        middle = min(T - 1, T // 2 + row)
        where = {"every": slice(None), "first": 0, "two": slice(middle - 1, middle + 1), "last": -1}
        if documents == "random":
            ids_T[torch.rand(T, generator=generator) < 0.2] = BOS_ID
        else:
            ids_T[where[documents]] = BOS_ID
    return ids_BT


def seen_of(window: int, documents: str, B: int, T: int, device: str = "cpu") -> Seen:
    """What the model would say of such a batch."""
    ids_BT = token_ids(documents, B, T).to(device) if documents else None
    return Seen(window, None if ids_BT is None else documents_of(ids_BT))


def seen_keys(query: int, window: int, ids: list[int] | None) -> list[int]:
    """The keys that a query sees, read backwards until a window or a document ends."""
    keys: list[int] = []
    for key in range(query, -1, -1):
        keys.append(key)
        if len(keys) == window or (ids is not None and ids[key] == BOS_ID):
            break
    return keys


def by_query(q: Tensor, k: Tensor, v: Tensor, window: int = 0, ids: Tensor | None = None) -> Tensor:
    """Softmax attention, a query at a time over the list of its keys; [B, heads, T, K]."""
    (B, H, T, K), G = q.shape, k.shape[1]
    groups, out = [head // (H // G) for head in range(H)], []
    for row, query in itertools.product(range(B), range(T)):
        keys = seen_keys(query, window, None if ids is None else ids[row].tolist())
        k_HNK, v_HNK = k[row, groups][:, keys], v[row, groups][:, keys]
        scores_HN = (k_HNK @ q[row, :, query, :, None]).squeeze(-1) / K**0.5
        out.append((scores_HN.softmax(-1)[:, None] @ v_HNK).squeeze(1))
    return torch.stack(out).view(B, T, H, K).transpose(1, 2)


def with_gradients(
    attend: Callable[..., Tensor], values: list[Tensor], *seen: Seen
) -> list[Tensor]:
    """The output and the gradients of q, k and v for one random gradient of the output."""
    inputs = [z.detach().requires_grad_() for z in values]
    out = attend(*inputs, *seen)
    dy = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [out.detach(), *torch.autograd.grad(out, inputs, dy.to(out))]


@functools.cache
def wanted(
    shape: Shape, dtype: torch.dtype, window: int, documents: str, scale: float = 2.0
) -> list[Tensor]:
    """Output and gradients in float64 of the values as they are in a dtype."""
    values = [z.to(dtype).double() for z in fused_views(shape, scale)]
    ids = token_ids(documents, shape[0], shape[3]) if documents else None
    return with_gradients(functools.partial(by_query, window=window, ids=ids), values)


def off(got: Tensor, wanted: Tensor) -> float:
    """The largest difference, by the largest value."""
    # A single position has no gradient in q and k: the scale must not be 0.
    return float((got.double() - wanted).abs().max() / wanted.abs().max().clamp_min(1.0))


def differences(
    attend: Attend, shape: Shape, kinds: list[tuple[int, str]] = KINDS
) -> Iterator[float]:
    """How far a backend is off in float64, forward and backward, for every kind of what is seen."""
    values = fused_views(shape)
    for window, documents in kinds:
        seen = seen_of(window, documents, shape[0], shape[3])
        found = with_gradients(attend, values, *([] if seen == ALL else [seen]))
        for got, want in zip(found, wanted(shape, torch.float64, window, documents), strict=True):
            yield off(got, want)
