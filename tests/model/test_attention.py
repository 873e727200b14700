"""Attention backends agree with the plain reference at odd sizes, forward and backward."""

import importlib.machinery
import typing
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from fairway.base.errors import UserError
from fairway.config.settings import RuntimeConfig, settings
from fairway.model import attention
from fairway.model.attention import AUTO_ON_CUDA, BACKENDS, choose, plain, why_not

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 3e-2}
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
Shape = tuple[int, int, int, int, int]


def fused_views(shape: Shape, scale: float = 2.0) -> list[Tensor]:
    """q, k and v [B, heads, T, K] as the model makes them: strided slices of one float64 buffer."""
    B, H, G, T, K = shape
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(B, T, (H + 2 * G) * K, generator=generator, dtype=torch.float64) * scale
    parts = wide.split([H * K, G * K, G * K], dim=-1)
    return [part.unflatten(-1, (-1, K)).transpose(1, 2) for part in parts]


def with_gradients(attend: attention.Attention, values: list[Tensor]) -> list[Tensor]:
    """The output and the gradients of q, k and v for one random gradient of the output."""
    inputs = [z.detach().requires_grad_() for z in values]
    out = attend(*inputs)
    dy = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [out.detach(), *torch.autograd.grad(out, inputs, dy.to(out))]


def off(got: Tensor, wanted: Tensor) -> float:
    # A single position has no gradient in q and k: the scale must not be 0.
    return float((got.double() - wanted).abs().max() / wanted.abs().max().clamp_min(1.0))


@pytest.mark.parametrize("name", ["plain", "sdpa"])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("shape", [(1, 2, 2, 1, 8), (2, 6, 3, 7, 10), (3, 4, 1, 33, 16)])
def test_backend_equals_plain_in_float64(name: str, dtype: torch.dtype, shape: Shape) -> None:
    values = [z.to(dtype) for z in fused_views(shape)]
    wanted = with_gradients(plain, [z.double() for z in values])
    for got, want in zip(with_gradients(BACKENDS[name], values), wanted, strict=True):
        assert got.dtype == dtype and off(got, want) <= TOLERANCE[dtype]


@pytest.mark.parametrize("shape", [(2, 4, 2, 7, 16), (1, 4, 1, 130, 16), (2, 4, 2, 128, 16)])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_masks_and_groups_like_plain(monkeypatch: pytest.MonkeyPatch, shape: Shape) -> None:
    # The compiled kernel has no backward pass on a CPU; the formula it is compiled from runs.
    lengths = []

    def formula(q: Tensor, *rest: Tensor, **options: typing.Any) -> typing.Any:
        lengths.append(q.shape[2])
        return flex_attention(q, *rest, **options)

    monkeypatch.setattr(attention, "_compiled_flex", lambda: formula)
    values = fused_views(shape)
    assert off(BACKENDS["flex"](*values), plain(*values)) < 1e-12
    # What the kernel gets is whole blocks: for fewer queries PyTorch would take another kernel.
    assert lengths[0] % 128 == 0 and lengths[0] - shape[3] < 128


@pytest.mark.parametrize("T", [7, 130])
def test_gradients_flow_through_the_blocks_that_flex_adds(
    monkeypatch: pytest.MonkeyPatch, T: int
) -> None:
    # On a CPU flex has no backward pass at all: the plain formula stands in for its kernel.
    monkeypatch.setattr(attention, "_compiled_flex", lambda: lambda *qkv, **_: plain(*qkv))
    values = fused_views((2, 4, 2, T, 16))
    found, wanted = with_gradients(BACKENDS["flex"], values), with_gradients(plain, values)
    for got, want in zip(found, wanted, strict=True):
        assert off(got, want) < 1e-12


def test_efficient_repeats_grouped_heads_in_the_right_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Its kernel is the GPU's; here the kernel PyTorch has for the CPU takes its place.
    cpu_kernel = torch.nn.attention.SDPBackend.FLASH_ATTENTION
    monkeypatch.setattr(attention.SDPBackend, "EFFICIENT_ATTENTION", cpu_kernel)
    values = fused_views((2, 6, 3, 7, 10))
    for got, want in zip(
        with_gradients(BACKENDS["efficient"], values), with_gradients(plain, values), strict=True
    ):
        assert off(got, want) < 1e-12


@NEEDS_GPU
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    "shape", [(2, 4, 4, 1, 64), (2, 4, 2, 77, 64), (3, 8, 2, 300, 32), (1, 8, 4, 2048, 64)]
)
@pytest.mark.parametrize("name", sorted(BACKENDS))
def test_gpu_backend_equals_plain_in_float64(name: str, shape: Shape, dtype: torch.dtype) -> None:
    if reason := why_not(name, "cuda", dtype):
        pytest.skip(reason)
    values = [z.to("cuda", dtype) for z in fused_views(shape, 1.0)]
    wanted = with_gradients(plain, [z.double() for z in values])
    # Matrix units round float32 to 10 bits of mantissa under the plan's setting 'high'.
    tolerance = 3e-2 if dtype == torch.bfloat16 else 5e-3
    for got, want in zip(with_gradients(BACKENDS[name], values), wanted, strict=True):
        assert got.dtype == dtype and off(got, want) <= tolerance


def test_in_order_asks_for_repeatable_gradients_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    # flash is a GPU's kernel; here the one that PyTorch picks for the CPU takes its place.
    asked: list[bool] = []

    def watched(*qkv: Tensor) -> Tensor:
        y = attention.sdpa(*qkv)
        y.register_hook(lambda _: asked.append(torch.are_deterministic_algorithms_enabled()))
        return y

    monkeypatch.setattr(attention, "flash", watched)
    values = fused_views((2, 6, 3, 7, 16))
    found, wanted = with_gradients(attention.flash_in_order, values), with_gradients(plain, values)
    for got, want in zip(found, wanted, strict=True):
        assert off(got, want) < 1e-12
    assert asked == [True] and not torch.are_deterministic_algorithms_enabled()


@NEEDS_GPU
def test_in_order_repeats_its_gradients_bit_for_bit() -> None:
    values = [z.to("cuda", torch.bfloat16) for z in fused_views((4, 8, 4, 2048, 64), 1.0)]
    first, second = (with_gradients(attention.flash_in_order, values) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@NEEDS_GPU
@pytest.mark.parametrize("name", ["cudnn", "flash", "fa3", "fa4"])
def test_fast_outputs_transpose_for_free(name: str) -> None:
    if reason := why_not(name, "cuda", torch.bfloat16):
        pytest.skip(reason)
    values = [z.to("cuda", torch.bfloat16) for z in fused_views((2, 4, 2, 130, 64))]
    assert BACKENDS[name](*values).transpose(1, 2).is_contiguous()


def test_plain_reads_only_the_past() -> None:
    q, k, v = (torch.randn(1, 2, 5, 4) for _ in range(3))
    out = plain(q, k, v)
    torch.testing.assert_close(out[:, :, 0], v[:, :, 0])
    k[:, :, 3:], v[:, :, 3:] = 9.0, 9.0
    torch.testing.assert_close(plain(q, k, v)[:, :, :3], out[:, :, :3])


@pytest.mark.parametrize(("name", "width"), [("cudnn", 136), ("flash", 12), ("fa4", 10)])
def test_head_widths_that_a_kernel_refuses_are_told(name: str, width: int) -> None:
    with pytest.raises(UserError, match=rf"{name} needs a head width .*, not {width}; set"):
        BACKENDS[name](*fused_views((1, 2, 1, 3, width)))


# ---------------------------------------------------------------------------------------------
# What works where


def test_the_setting_offers_every_backend() -> None:
    choices = {name: item.metadata["choices"] for name, item, _ in settings(RuntimeConfig())}
    assert choices["attention"] == ("auto", *BACKENDS)
    assert set(AUTO_ON_CUDA) <= set(BACKENDS)


def test_on_a_cpu_auto_is_plain_and_gpu_kernels_are_refused_with_the_reason() -> None:
    assert choose("auto", "cpu", torch.bfloat16) == "plain"
    assert choose("sdpa", "cpu", torch.float32) == "sdpa"
    for name in set(BACKENDS) - {"plain", "sdpa"}:
        with pytest.raises(UserError, match=f"attention is {name}, but it runs on CUDA GPUs only"):
            choose(name, "cpu", torch.float32)


class Machine:
    """A pretended GPU of some generation, with some packages installed."""

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path) -> None:
        self.generation = 9
        self.packages: dict[str, list[str]] = {}
        self.folder = folder
        patch.setattr(torch.cuda, "get_device_capability", lambda: (self.generation, 0))
        patch.setattr(torch.backends.cudnn, "version", lambda: 91900)
        patch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
        patch.setattr(attention.importlib.util, "find_spec", self.find)

    def find(self, name: str) -> importlib.machinery.ModuleSpec | None:
        if name not in self.packages:
            return None
        spec = importlib.machinery.ModuleSpec(name, None)
        spec.submodule_search_locations = self.packages[name]
        return spec


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path)


def test_on_a_gpu_auto_is_the_first_that_works(machine: Machine) -> None:
    assert choose("auto", "cuda", torch.bfloat16) == "cudnn"
    assert choose("auto", "cuda", torch.float32) == "efficient"
    machine.generation = 7
    assert choose("auto", "cuda", torch.bfloat16) == "efficient"
    assert why_not("flash", "cuda", torch.bfloat16) == (
        "it needs compute capability 8.0, this GPU has 7"
    )


def test_what_a_package_lacks_is_said(machine: Machine) -> None:
    def reason(name: str) -> str:
        return why_not(name, "cuda", torch.bfloat16)

    assert "triton" in reason("flex") and "flash_attn_interface" in reason("fa3")
    assert reason("fa4") == "the package flash-attn-4 is not installed"
    machine.packages["flash_attn"] = [str(machine.folder)]
    assert reason("fa4") == "the package flash-attn-4 is not installed"
    (machine.folder / "cute").mkdir()
    assert reason("fa4") == "flash-attn-4 needs the package nvidia-cutlass-dsl"
    machine.packages |= {name: [] for name in ("cutlass", "triton", "flash_attn_interface")}
    assert [reason(name) for name in BACKENDS] == [""] * len(BACKENDS)
    assert why_not("fa4", "cuda", torch.float32) == "it takes 16-bit activations, not float32"


# ---------------------------------------------------------------------------------------------
# FlashAttention 3 and 4: what this side does with them, their kernels replaced by the plain one


def by_position(q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor) -> Tensor:
    return plain(*(z.transpose(1, 2) for z in (q_BTHK, k_BTGK, v_BTGK))).transpose(1, 2)


class Package:
    """The functions of both packages that are called, on [B, T, heads, K]."""

    with_lse = False

    def flash_attn_func(self, *qkv: Tensor, causal: bool) -> typing.Any:
        assert causal
        return (by_position(*qkv), None) if self.with_lse else by_position(*qkv)

    def _flash_attn_fwd(
        self, *qkv: Tensor, causal: bool, return_lse: bool
    ) -> tuple[Tensor | None, ...]:
        assert causal and return_lse
        B, T, H, _ = qkv[0].shape
        return by_position(*qkv).contiguous(), torch.zeros(B, H, T), None, None, None

    def _flash_attn_bwd(
        self, q: Tensor, k: Tensor, v: Tensor, y: Tensor, dy: Tensor, lse: Tensor, causal: bool
    ) -> tuple[Tensor, ...]:
        assert causal and y.shape == dy.shape and lse.shape == (q.shape[0], *q.shape[2:0:-1])
        # Inside an operator autograd is off, so the gradients are written out.
        (B, T, H, K), G = q.shape, k.shape[2]
        q, y, dy = (z.unflatten(2, (G, H // G)) for z in (q, y, dy))
        scores = torch.einsum("bigrk,bjgk->bgrij", q, k) / K**0.5
        p = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf).softmax(-1)
        dp = (
            torch.einsum("bigrk,bjgk->bgrij", dy, v)
            - torch.einsum("bigrk,bigrk->bgri", dy, y)[..., None]
        )
        ds = p * dp / K**0.5
        dq = torch.einsum("bgrij,bjgk->bigrk", ds, k).reshape(B, T, H, K)
        dk = torch.einsum("bgrij,bigrk->bjgk", ds, q)
        return dq, dk, torch.einsum("bgrij,bigrk->bjgk", p, dy)


@pytest.mark.parametrize(("name", "with_lse"), [("fa3", False), ("fa3", True), ("fa4", False)])
def test_outside_packages_get_their_layout(
    monkeypatch: pytest.MonkeyPatch, name: str, with_lse: bool
) -> None:
    package = Package()
    package.with_lse = with_lse
    monkeypatch.setattr(attention.importlib, "import_module", lambda _: package)
    values = fused_views((2, 6, 3, 7, 16))
    found, wanted = with_gradients(BACKENDS[name], values), with_gradients(plain, values)
    for got, want in zip(found, wanted, strict=True):
        assert off(got, want) < 1e-12
