"""FlashAttention 3 and 4: what this side does with them, their kernels replaced by a loop."""

import sys
import types
import typing

import pytest
import torch
from attending import by_query, differences
from torch import Tensor

from fairway.model import flash
from fairway.model.attention import KERNELS

Parts = list[tuple[Tensor, ...]]
SHAPES = [(2, 6, 3, 7, 16), (1, 2, 1, 1, 8)]


def in_parts(tensors: tuple[Tensor, ...], starts: Tensor | None) -> Parts:
    """Rows of [B, T, heads, K], or documents of [N, heads, K], as [1, heads, length, K]."""
    if starts is None:
        return [tuple(z[None].transpose(1, 2) for z in row) for row in zip(*tensors, strict=True)]
    bounds = list(zip(starts.tolist(), starts[1:].tolist(), strict=False))
    return [tuple(z[None, a:b].transpose(1, 2) for z in tensors) for a, b in bounds]


def whole(parts: list[Tensor], starts: Tensor | None) -> Tensor:
    """What `in_parts` took apart."""
    return (torch.stack if starts is None else torch.cat)([y[0].transpose(0, 1) for y in parts])


class Package:
    """The functions of both packages that are called."""

    with_lse = False

    def attend(self, qkv: tuple[Tensor, ...], starts: Tensor | None, window: int) -> Tensor:
        return whole([by_query(*part, window=window) for part in in_parts(qkv, starts)], starts)

    def flash_attn_func(self, *qkv: Tensor, causal: bool, window_size: tuple[int, int]) -> object:
        assert causal and window_size[1] == 0
        y = self.attend(qkv, None, window_size[0] + 1)
        return (y, None) if self.with_lse else y

    def flash_attn_varlen_func(
        self, q: Tensor, k: Tensor, v: Tensor, starts: Tensor, starts_k: Tensor, most: int,
        most_k: int, *, causal: bool, window_size: tuple[int, int],
    ) -> object:  # fmt: skip
        assert causal and window_size[1] == 0 and starts is starts_k
        assert most == most_k == int(starts.diff().max()) and starts.dtype == torch.int32
        y = self.attend((q, k, v), starts, window_size[0] + 1)
        return (y, None) if self.with_lse else y

    def _flash_attn_fwd(
        self, *qkv: Tensor, causal: bool, return_lse: bool, **options: typing.Any
    ) -> tuple[Tensor | None, ...]:
        assert causal and return_lse
        starts, window = self.read(options)
        *rows, positions, heads, _ = qkv[0].shape
        lse = torch.zeros(*rows, heads, positions)
        return self.attend(qkv, starts, window).contiguous(), lse, None, None, None

    def _flash_attn_bwd(
        self, q: Tensor, k: Tensor, v: Tensor, y: Tensor, dy: Tensor, lse: Tensor, *,
        causal: bool, **options: typing.Any,
    ) -> list[Tensor]:  # fmt: skip
        starts, window = self.read(options)
        *rows, positions, heads, _ = q.shape
        assert causal and y.shape == dy.shape and lse.shape == (*rows, heads, positions)
        parts = in_parts((q, k, v, dy), starts)
        gradients = [self.gradients(part, window) for part in parts]
        return [whole(list(z), starts) for z in zip(*gradients, strict=True)]

    @staticmethod
    def read(options: dict[str, typing.Any]) -> tuple[Tensor | None, int]:
        starts, window = options.get("cu_seqlens_q"), options.get("window_size_left", -1) + 1
        assert options.get("cu_seqlens_k") is starts
        assert options.get("window_size_right") == (0 if window else None)
        longest = None if starts is None else int(starts.diff().max())
        assert options.get("max_seqlen_q") == options.get("max_seqlen_k") == longest
        return starts, window

    @staticmethod
    def gradients(part: tuple[Tensor, ...], window: int) -> tuple[Tensor, ...]:
        # Inside an operator autograd is off, so the gradients are written out.
        q, k, v, dy = part
        (B, H, T, K), G = q.shape, k.shape[1]
        q, dy = (z.unflatten(1, (G, H // G)) for z in (q, dy))
        back = torch.arange(T)[:, None] - torch.arange(T)
        hidden = (back < 0) | ((back >= window) if window else False)
        scores = torch.einsum("bgrik,bgjk->bgrij", q, k) / K**0.5
        p = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        dp = torch.einsum("bgrik,bgjk->bgrij", dy, v)
        ds = p * (dp - (p * dp).sum(-1, keepdim=True)) / K**0.5
        dq = torch.einsum("bgrij,bgjk->bgrik", ds, k).reshape(B, H, T, K)
        dk = torch.einsum("bgrij,bgrik->bgjk", ds, q)
        return dq, dk, torch.einsum("bgrij,bgrik->bgjk", p, dy)


def installed(monkeypatch: pytest.MonkeyPatch, package: Package) -> None:
    for name in ("flash_attn_interface", "flash_attn.cute.interface"):
        monkeypatch.setitem(sys.modules, name, typing.cast(types.ModuleType, package))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("name", "with_lse"), [("fa3", False), ("fa3", True), ("fa4", False)])
def test_outside_packages_get_layout_windows_and_documents(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    with_lse: bool,
    shape: tuple[int, int, int, int, int],
) -> None:
    package = Package()
    package.with_lse = with_lse
    installed(monkeypatch, package)
    assert max(differences(KERNELS[name], shape)) < 1e-12


@pytest.mark.parametrize("starts", [None, torch.tensor([0, 2, 5], dtype=torch.int32)])
def test_operators_say_shapes_and_gradients_as_pytorch_asks(
    monkeypatch: pytest.MonkeyPatch, starts: Tensor | None
) -> None:
    installed(monkeypatch, Package())
    shape = (1, 5, 2, 4) if starts is None else (5, 2, 4)
    qkv = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    arguments = (*qkv, starts, 0 if starts is None else 3, 2)
    torch.library.opcheck(flash._fa4_forward, arguments, test_utils=checks)
