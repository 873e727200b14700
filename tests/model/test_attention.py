"""Attention backends agree with loops over queries in float64, at odd sizes, both ways."""

import importlib.machinery
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from attending import (
    DOCUMENTS,
    KINDS,
    NEEDS_GPU,
    TOLERANCE,
    WINDOWS,
    Shape,
    by_query,
    differences,
    fused_views,
    off,
    seen_of,
    token_ids,
    wanted,
    with_gradients,
)
from torch import Tensor

from fairway.base.errors import UserError
from fairway.config.settings import RuntimeConfig, settings
from fairway.model import attention
from fairway.model.attention import (
    AUTO_ON_CUDA,
    BACKENDS,
    KERNELS,
    choose,
    plain,
    serving,
    takes,
    why_not,
)
from fairway.model.seen import ALL, Seen, documents_of

SHAPES = [(1, 2, 2, 1, 8), (2, 6, 3, 7, 10), (3, 4, 1, 19, 16)]


@pytest.fixture(autouse=True)
def nothing_told_yet() -> Iterator[None]:
    for kept in (attention._why_not, attention._tell):
        kept.cache_clear()
    yield
    for kept in (attention._why_not, attention._tell):
        kept.cache_clear()


@pytest.mark.parametrize("name", ["plain", "sdpa"])
@pytest.mark.parametrize("shape", SHAPES)
def test_backend_equals_a_loop_in_float64(name: str, shape: Shape) -> None:
    assert max(differences(BACKENDS[name], shape)) <= TOLERANCE[torch.float64]


@pytest.mark.parametrize("name", ["plain", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [0, 3])
@pytest.mark.parametrize("documents", ["", "random"])
def test_backend_equals_a_loop_to_rounding(
    name: str, dtype: torch.dtype, window: int, documents: str
) -> None:
    shape = SHAPES[1]
    values, seen = [z.to(dtype) for z in fused_views(shape)], seen_of(window, documents, 2, 7)
    found = with_gradients(BACKENDS[name], values, seen)
    for got, want in zip(found, wanted(shape, dtype, window, documents), strict=True):
        assert got.dtype == dtype and off(got, want) <= TOLERANCE[dtype]


def test_nothing_hidden_leaves_the_bits_of_plain() -> None:
    values = [z.float() for z in fused_views((2, 4, 2, 33, 16))]
    one_document = documents_of(torch.zeros(2, 33, dtype=torch.long))
    for seen in (Seen(33), Seen(0, one_document), Seen(100, one_document)):
        assert torch.equal(plain(*values, seen), plain(*values))


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("documents", DOCUMENTS)
def test_plain_reads_nothing_that_is_hidden(window: int, documents: str) -> None:
    q, k, v = fused_views((2, 2, 1, 9, 4))
    seen = seen_of(window, documents, 2, 9)
    before = plain(q, k, v, seen)
    hidden_ATT = seen.within(2, 9).hidden(9, q.device).expand(2, 9, 9)
    for query in range(9):
        spoiled_BT = hidden_ATT[:, query, :, None].unsqueeze(1)
        k_spoiled, v_spoiled = (z.masked_fill(spoiled_BT, 99.0) for z in (k, v))
        after = plain(q, k_spoiled, v_spoiled, seen)
        assert torch.equal(after[:, :, query], before[:, :, query])


def test_efficient_repeats_grouped_heads_in_the_right_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Its kernel is the GPU's; here those that PyTorch has for the CPU take its place.
    cpu_kernels = [torch.nn.attention.SDPBackend.FLASH_ATTENTION, attention.SDPBackend.MATH]
    monkeypatch.setattr(attention.SDPBackend, "EFFICIENT_ATTENTION", cpu_kernels[0])
    assert max(differences(KERNELS["efficient"], SHAPES[1])) < 1e-12


# ---------------------------------------------------------------------------------------------
# PyTorch's FlashAttention 2: what this side does with its operator, which has no form for CPUs


def flash_operator(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None, starts_k: Tensor | None, most: int,
    most_k: int, *, dropout_p: float, is_causal: bool, return_debug_mask: bool,
    window_size_left: int, window_size_right: int,
) -> tuple[Tensor]:  # fmt: skip
    """Attention as the operator's arguments say it, document by document."""
    assert not dropout_p and not return_debug_mask and most == most_k and starts is starts_k
    # With both it would take the window for nothing in old releases.
    assert is_causal == (window_size_left < 0) and window_size_right == 0
    rows = list(zip(*(z for z in (q, k, v)), strict=True))
    if starts is not None:
        assert q.ndim == 3 and most >= 2 and max(starts.diff().tolist()) <= most
        ends = zip(starts.tolist(), starts[1:].tolist(), strict=False)
        rows = [tuple(z[a:b] for z in (q, k, v)) for a, b in ends]
    out = [
        by_query(*(z.transpose(0, 1)[None] for z in row), window=window_size_left + 1)
        for row in rows
    ]
    parts = [y[0].transpose(0, 1) for y in out]
    return (torch.stack(parts) if starts is None else torch.cat(parts),)


@pytest.mark.parametrize("shape", SHAPES)
def test_flash_says_windows_and_documents(monkeypatch: pytest.MonkeyPatch, shape: Shape) -> None:
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", flash_operator)
    assert max(differences(attention.flash, shape)) < 1e-12


def test_flash_calls_the_operator_of_this_pytorch() -> None:
    # Without values, so that no GPU is needed: arguments, shapes and derivative are PyTorch's own.
    values = [z.to("meta", torch.bfloat16) for z in fused_views((2, 6, 3, 7, 16))]
    for seen in (Seen(3), seen_of(0, "random", 2, 7), seen_of(3, "random", 2, 7)):
        y, *gradients = with_gradients(attention.flash, values, seen)
        assert y.shape == values[0].shape and y.transpose(1, 2).is_contiguous()
        assert [z.shape for z in gradients] == [z.shape for z in values]


def test_in_order_asks_for_repeatable_gradients_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    # flash is a GPU's kernel; here the one that PyTorch picks for the CPU takes its place.
    asked: list[bool] = []

    def watched(*qkv: Tensor, seen: Seen) -> Tensor:
        y = attention.sdpa(*qkv, seen)
        y.register_hook(lambda _: asked.append(torch.are_deterministic_algorithms_enabled()))
        return y

    monkeypatch.setitem(KERNELS, "flash", watched)
    monkeypatch.setattr(attention, "_told", lambda name, *_: name)
    found = list(differences(attention.flash_in_order, SHAPES[1]))
    assert max(found) < 1e-12
    assert asked == [True] * len(KINDS) and not torch.are_deterministic_algorithms_enabled()


def test_in_order_runs_plainly_where_flash_cannot(capsys: pytest.CaptureFixture[str]) -> None:
    assert max(differences(attention.flash_in_order, SHAPES[1])) < 1e-12
    assert "the attention backend flash is replaced by plain here" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------
# On a GPU


GPU_KINDS = [(0, ""), (1, ""), (37, ""), (0, "random"), (0, "every"), (37, "two"), (2, "random")]


@NEEDS_GPU
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    "shape",
    [
        (2, 4, 4, 1, 64),
        (2, 4, 2, 77, 64),
        (3, 8, 2, 300, 128),
        (2, 6, 3, 130, 40),
        (1, 4, 1, 97, 36),
        (1, 2, 2, 33, 10),
        (1, 8, 4, 2048, 64),
    ],
)
@pytest.mark.parametrize("name", sorted(BACKENDS))
def test_gpu_backend_equals_plain_in_float64(name: str, shape: Shape, dtype: torch.dtype) -> None:
    if reason := why_not(name, "cuda", dtype):
        pytest.skip(reason)
    values = [z.to("cuda", dtype) for z in fused_views(shape, 1.0)]
    # Matrix units round float32 to 10 bits of mantissa under the plan's setting 'high'.
    tolerance = 3e-2 if dtype == torch.bfloat16 else 5e-3
    for window, documents in GPU_KINDS:
        seen = seen_of(window, documents, shape[0], shape[3], "cuda")
        exact = with_gradients(plain, [z.double() for z in values], seen)
        for got, want in zip(with_gradients(BACKENDS[name], values, seen), exact, strict=True):
            assert got.dtype == dtype and off(got, want) <= tolerance, (window, documents)


@NEEDS_GPU
def test_flex_is_not_compiled_anew_for_other_windows_and_documents() -> None:
    if reason := why_not("flex", "cuda", torch.bfloat16):
        pytest.skip(reason)
    values = [z.to("cuda", torch.bfloat16) for z in fused_views((2, 4, 2, 300, 64), 1.0)]
    ids = [torch.randint(1, 9, (2, 300), device="cuda") for _ in range(2)]
    with_gradients(BACKENDS["flex"], values, Seen(5))
    with_gradients(BACKENDS["flex"], values, Seen(5, documents_of(ids[0])))
    with torch.compiler.set_stance("fail_on_recompile"):
        for window in range(6, 30):
            with_gradients(BACKENDS["flex"], values, Seen(window))
            with_gradients(BACKENDS["flex"], values, Seen(window, documents_of(ids[1])))


@NEEDS_GPU
def test_a_recording_follows_the_documents_of_its_token_ids() -> None:
    values = [z.to("cuda", torch.bfloat16) for z in fused_views((2, 4, 2, 300, 64), 1.0)]
    ids_BT = torch.zeros(2, 300, device="cuda", dtype=torch.long)
    attend = BACKENDS[choose("auto", "cuda", torch.bfloat16)]

    def work() -> Tensor:
        return attend(*values, Seen(50, documents_of(ids_BT, lengths=False)))

    work()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = work()
    for at in (5, 150):
        ids_BT[:, at] = 1
        graph.replay()
        want = plain(*(z.double() for z in values), Seen(50, documents_of(ids_BT)))
        assert off(out, want) < 3e-2


@NEEDS_GPU
@pytest.mark.parametrize(("window", "documents"), [(0, ""), (300, ""), (0, "random"), (300, "two")])
def test_in_order_repeats_its_gradients_bit_for_bit(window: int, documents: str) -> None:
    values = [z.to("cuda", torch.bfloat16) for z in fused_views((4, 8, 4, 2048, 64), 1.0)]
    seen = seen_of(window, documents, 4, 2048, "cuda")
    first, second = (with_gradients(attention.flash_in_order, values, seen) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@NEEDS_GPU
@pytest.mark.parametrize("name", ["cudnn", "flash", "fa3", "fa4"])
def test_fast_outputs_transpose_for_free(name: str) -> None:
    if reason := why_not(name, "cuda", torch.bfloat16):
        pytest.skip(reason)
    values = [z.to("cuda", torch.bfloat16) for z in fused_views((2, 4, 2, 130, 64))]
    for seen in (ALL, Seen(9), seen_of(9, "random", 2, 130, "cuda")):
        if not takes(name, 64, seen):
            assert BACKENDS[name](*values, seen).transpose(1, 2).is_contiguous()


# ---------------------------------------------------------------------------------------------
# What works where


def test_the_setting_offers_every_backend() -> None:
    assert list(KERNELS) == list(BACKENDS)
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


APART = documents_of(torch.tensor([[1, 2, 1, 2]]))
RECORDED = documents_of(torch.tensor([[1, 2, 1, 2]]), lengths=False)


@pytest.mark.parametrize(
    ("name", "width", "seen", "reason"),
    [
        ("plain", 7, Seen(2, APART), ""),
        ("sdpa", 7, Seen(2, APART), ""),
        ("cudnn", 136, ALL, "multiples of 8 up to 128, not 136"),
        ("cudnn", 64, Seen(2), "it takes no window"),
        ("cudnn", 64, Seen(2, APART), "it takes no documents"),
        ("cudnn", 128, ALL, ""),
        ("flash", 12, ALL, "multiples of 8 up to 256, not 12"),
        ("flash", 256, Seen(2, APART), ""),
        ("flash", 64, Seen(0, RECORDED), "recorded launches do not have"),
        ("efficient", 36, ALL, "multiples of 8, not 36"),
        ("efficient", 512, Seen(2, RECORDED), ""),
        ("flex", 12, ALL, "from 16, not 12"),
        ("flex", 36, Seen(2, RECORDED), ""),
        ("fa3", 264, ALL, "not 264"),
        ("fa3", 128, Seen(2, APART), ""),
        ("fa4", 10, ALL, "multiples of 8 up to 128, not 10"),
        ("fa4", 128, Seen(2, APART), ""),
        ("fa4", 64, Seen(2, RECORDED), "recorded launches do not have"),
    ],
)
def test_what_of_a_model_a_backend_takes(name: str, width: int, seen: Seen, reason: str) -> None:
    found = takes(name, width, seen)
    assert reason in found and bool(reason) == bool(found)


def test_more_documents_than_a_grid_has_room_for_are_not_for_flash() -> None:
    many, few = (documents_of(torch.full((1, 1 << 16), token)) for token in (1, 2))
    assert takes("flash", 64, Seen(0, many)) == "it takes up to 65,535 documents at a time"
    assert takes("flash", 64, Seen(0, few)) == "" and takes("fa4", 64, Seen(0, many)) == ""


def test_in_the_place_of_a_kernel_runs_the_best_that_takes_it(machine: Machine) -> None:
    def found(name: str, width: int, seen: Seen = ALL) -> str:
        return serving(name, "cuda", torch.bfloat16, width, seen)[0]

    machine.packages = {"triton": []}
    assert found("cudnn", 64) == "cudnn"
    assert found("cudnn", 64, Seen(2)) == found("cudnn", 64, Seen(2, APART)) == "flash"
    assert found("cudnn", 64, Seen(0, RECORDED)) == found("flash", 36) == "flex"
    assert found("flash", 12) == found("flex", 8 + 2) == "plain"
    machine.packages = {}
    attention._why_not.cache_clear()
    assert found("flash", 36) == found("cudnn", 64, Seen(0, RECORDED)) == "plain"


@pytest.mark.parametrize("name", sorted(BACKENDS))
@pytest.mark.parametrize("shape", [(2, 6, 3, 7, 12), (2, 6, 3, 1, 7), (1, 2, 1, 5, 300)])
def test_any_backend_attends_at_any_width(
    name: str, shape: Shape, capsys: pytest.CaptureFixture[str]
) -> None:
    # On this CPU; the first sentence is the only one.
    kinds = [(0, ""), (2, "two"), (0, "random")]
    assert max(differences(BACKENDS[name], shape, kinds)) < 1e-12
    lines = capsys.readouterr().err.splitlines()
    other = [] if name in ("plain", "sdpa") else [
        f"the attention backend {name} is replaced by plain here: it runs on CUDA GPUs only"
    ]  # fmt: skip
    assert lines == other


def test_a_notice_comes_once_for_every_reason(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(attention, "_why_not", lambda *_: "")
    for name in ("cudnn", "flash", "flex"):
        monkeypatch.setitem(KERNELS, name, plain)
    others = documents_of(token_ids("two", 1, 4))
    for width in (64, 40, 64, 40, 36):
        values = fused_views((1, 2, 1, 4, width))
        for seen in (ALL, Seen(2), Seen(0, APART), Seen(3), Seen(2, others)):
            assert off(BACKENDS["cudnn"](*values, seen), plain(*values, seen)) == 0
    said = "the attention backend cudnn is replaced by {} here: it takes {}"
    assert capsys.readouterr().err.splitlines() == [
        said.format("flash", "no window"),
        said.format("flash", "no documents"),
        said.format("flex", "head widths that are multiples of 8 up to 128, not 36"),
    ]
