"""Adapters beside kernels learn what plain formulas and autograd make them learn."""

import gc
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from features import FEATURES
from tiny import TINY, alive
from torch import Tensor

from fairway.base.arrays import FloatArray
from fairway.base.errors import LedgerError
from fairway.base.graphs import rounded_rows
from fairway.config.checks import LORA_TARGETS
from fairway.config.settings import ScoreConfig, TttConfig
from fairway.model.adapters import Adapters
from fairway.model.paths import prepare
from fairway.score import lora
from fairway.score.adam import AdamW
from fairway.score.adapting import adapting, rounded_length
from fairway.score.evaluation import Evaluation
from fairway.score.ledger import Text, Witness
from fairway.score.lora import Documents, evaluate_lora
from fairway.score.predictor import Context
from fairway.score.windows import Event, Window

pytest.importorskip("triton", reason="kernels need Triton")

from fairway.model.gpu.adapters import Bank
from fairway.model.gpu.steps import Working
from fairway.score.fused_adam import fused_step

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
MODEL = replace(TINY, dim=32, embed_bf16=False)
ROWS, T, CHUNK = 3, 21, 5
on_cpu = pytest.mark.skipif(GPU, reason="exact in float32, which the GPU's tiles do not hold")


def drawn(adapters: Adapters, rows: int) -> list[Tensor]:
    """Return matrices none of which is zero."""
    generator = torch.Generator().manual_seed(4)
    return [
        value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
        for value in adapters.zeros(rows)
    ]


def apart(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted.double()).norm() / (wanted.double().norm() + 1e-12))


TARGETS = [LORA_TARGETS, ("head",), ("o",), ("mlp",), ("v", "mlp"), ("q", "k", "head")]
# All targets in the plain model, all features with all targets; each pair of them is slow.
PAIRS = [
    pytest.param(targets, feature, marks=[pytest.mark.slow] * bool(feature and number))
    for feature in ({}, {"smear": True}, *FEATURES.values())
    for number, targets in enumerate(TARGETS)
]


@on_cpu
@pytest.mark.parametrize(("targets", "feature"), PAIRS)
def test_states_and_gradients_are_those_of_formulas(
    targets: Sequence[str], feature: dict[str, Any]
) -> None:
    model = alive(replace(MODEL, **feature)).to(DEVICE).requires_grad_(False)
    adapters = Adapters(model, targets, 4, 6.0, {"mlp": 0.25, "head": 2.0}, 0.7)
    # One row more than is in use.
    values = drawn(adapters, ROWS + 1)
    ids_BT = torch.randint(0, 260, (ROWS, T), generator=torch.Generator().manual_seed(0))
    rope = model.rope_for(ids_BT)
    leaves = [value[:, :ROWS].clone().requires_grad_() for value in values]
    states_BTD = adapters.states(leaves, ids_BT, rope)[:, -CHUNK:]
    wanted_BCV = 0.7 * model.logits(states_BTD, adapters.added("head", 0, states_BTD))
    wanted_BCV.log_softmax(-1)[:, :, 7].mean().backward()

    prepare(model, torch.float32, "plain", "fused")
    bank = Bank(adapters, ROWS + 1)
    bank.rows = range(ROWS)
    for copy, value, factor in zip(bank.copies, values, bank.factors(), strict=True):
        copy.copy_(value if factor is None else value * factor[:, None, :, None])
    states_BTD = bank.states(ids_BT, rope)[:, -CHUNK:]
    got_BCV = adapters.logits(states_BTD, bank.head(states_BTD))
    torch.testing.assert_close(got_BCV, wanted_BCV, rtol=1e-5, atol=5e-5)
    got_BCV.log_softmax(-1)[:, :, 7].mean().backward()
    for leaf, grad, factor in zip(leaves, bank.grads, bank.factors(), strict=True):
        found = grad[:, :ROWS] if factor is None else grad[:, :ROWS] * factor[:, None, :, None]
        assert leaf.grad is not None
        assert apart(found, leaf.grad) < 2e-5
        assert not grad[:, ROWS:].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_pass_makes_the_step_of_the_plain_rule(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    config = TttConfig(lora_lr=0.01, lora_wd=0.5)
    shapes = [(2, 5, 37, 7), (1, 5, 3, 129)]
    factors = [torch.randn(2, 37, generator=generator).to(DEVICE), None]
    values = [torch.randn(shape, generator=generator).to(DEVICE) for shape in shapes]
    plain, fast = (AdamW(config, [value.clone() for value in values]) for _ in range(2))
    copies = [torch.zeros(shape, dtype=dtype, device=DEVICE) for shape in shapes]
    for adam in (plain, fast):
        adam.start(4)
    for size in (1.0, 0.0, 1e-20, 1e15):
        grads = [torch.randn(shape, generator=generator) * size for shape in shapes]
        grads = [grad.to(dtype).to(DEVICE) for grad in grads]
        scaled = [
            g.float() if f is None else g.float() * f[:, None, :, None]
            for g, f in zip(grads, factors, strict=True)
        ]
        plain.count_step()
        plain.step([grad[:, :4] for grad in scaled])
        fast.count_step()
        # Rows may take a step in several calls.
        for rows in (range(1), range(1, 4)):
            fused_step(fast, rows, grads, copies, factors)
        for got, wanted in zip(fast.values, plain.values, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)
    assert torch.equal(fast.values[0][:, 4], values[0][:, 4]), "a row out of use was changed"
    for copy, value, factor in zip(copies, fast.values, factors, strict=True):
        scaled_value = value if factor is None else value * factor[:, None, :, None]
        torch.testing.assert_close(copy[:, :4], scaled_value[:, :4].to(dtype))


def repeating_text() -> Text:
    ids = torch.randint(2, 14, (31,), generator=torch.Generator().manual_seed(1)).numpy()
    ids[[0, 9, 19, 25]] = 1
    target_bytes = torch.ones(30, dtype=torch.int64).numpy()
    return Text(ids, target_bytes, 30, 260)


# Without a phase over the whole text: `test_halving` has that, too.
@pytest.mark.parametrize("phases", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_an_evaluation_learns_the_same_on_both_paths(phases: int) -> None:
    score = ScoreConfig(seq_len=16, stride=4, check_positions=6, truncate=False)
    config = TttConfig(
        method="lora", lora_rank=4, lora_alpha=6, lora_lr=0.01, lora_chunks="8", lora_wd=0.1,
        lora_logit_factor=0.8, lora_frozen_share=0.3, lora_documents=3, lora_lanes=1,
        lora_phases=phases, chunk_tokens=32,
    )  # fmt: skip
    nats = {}
    for kernels in ("plain", "fused"):
        model = alive(replace(MODEL, rope_train_len=8)).to(DEVICE)
        dtype, attention = (torch.bfloat16, "flash") if GPU else (torch.float32, "plain")
        prepare(model, dtype, attention, kernels)
        found = evaluate_lora(model, Evaluation(repeating_text(), score, config))
        nats[kernels] = found.nats
    assert nats["fused"] == pytest.approx(nats["plain"], rel=0.01 if GPU else 1e-5)


class Leaving(Witness):
    """Wants one row and ends the evaluation with it, as the audit does."""

    wanted = (22,)

    def row(self, position: int, row: FloatArray) -> None:
        raise InterruptedError


@pytest.mark.parametrize(
    ("kernels", "witness"),
    [
        ("plain", Witness()),
        ("plain", Leaving()),
        pytest.param("fused", Witness(), marks=pytest.mark.slow),
        ("fused", Leaving()),
    ],
)
def test_an_evaluation_leaves_nothing_behind(
    kernels: str, witness: Witness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gigabytes of a GPU's memory must not wait for the garbage collector, which sees objects."""
    model = alive(replace(MODEL, rope_train_len=8)).to(DEVICE)
    dtype, attention = (torch.bfloat16, "flash") if GPU else (torch.float32, "plain")
    prepare(model, dtype, attention, kernels)
    config = TttConfig(
        method="lora", lora_rank=4, lora_chunks="8", lora_documents=3, lora_phases=1,
        chunk_tokens=32, lora_frozen_share=0.3,
    )  # fmt: skip
    made = []

    class Seen(Documents):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            kept = self.unadapted, self.unadapted.reading.cache
            made.extend(map(weakref.ref, (self, self.way, self.adam.values[0], *kept)))

    monkeypatch.setattr(lora, "Documents", Seen)
    score = ScoreConfig(seq_len=16, stride=4, check_positions=4, truncate=False)
    gc.disable()
    try:
        # The first step of an optimiser in a process imports what keeps this frame for a while.
        for _ in range(2):
            made.clear()
            with suppress(InterruptedError):
                evaluate_lora(model, Evaluation(repeating_text(), score, config, witness=witness))
        assert made and not any(seen() is not None for seen in made)
    finally:
        gc.enable()


@pytest.mark.parametrize("kernels", ["plain", "fused"])
def test_a_prediction_answers_until_the_next_alone(kernels: str) -> None:
    """On a GPU the next prediction takes its memory, and would answer in its place."""
    model = alive(replace(MODEL, rope_train_len=8)).to(DEVICE)
    dtype, attention = (torch.bfloat16, "flash") if GPU else (torch.float32, "plain")
    prepare(model, dtype, attention, kernels)
    config = TttConfig(method="lora", lora_rank=4, lora_documents=2)
    documents = Documents(model, config, 16, 2, model.operations.fused)
    documents.start(1, documents.adapters.zeros(2)[::2])
    window = Window(0, 8, 4)
    context = Context(Event(0, (window,)), {window: np.arange(8)})
    with adapting(model):
        first = documents.predict(context, 4)
        kept = first.log_prob(np.arange(4))
        second = documents.predict(context, 4)
        np.testing.assert_array_equal(second.log_prob(np.arange(4)), kept)
        with pytest.raises(LedgerError, match="learned or predicted"):
            first.log_prob(np.arange(4))


def test_recordings_find_the_present_weights_where_the_earlier_ones_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Recorded launches compute no copy of a weight, but read where it was when they were made."""
    model = alive(replace(MODEL, rope_train_len=8)).to(DEVICE)
    dtype, attention = (torch.bfloat16, "flash") if GPU else (torch.float32, "plain")
    prepare(model, dtype, attention, "fused")
    config = TttConfig(method="lora", lora_rank=4, lora_documents=2, lora_lr=0.01)
    window = Window(0, 8, 4)
    context = Context(Event(0, (window,)), {window: np.arange(8)})

    def costs(documents: Documents) -> FloatArray:
        documents.start(1, drawn(documents.adapters, 2)[::2])
        with adapting(model):
            dist = documents.predict(context, 4)
            documents.learn(dist, dist.rectangle(np.arange(4)), [0])
            return documents.predict(context, 4).log_prob(np.arange(4))

    early = Documents(model, config, 16, 2, fast=True)
    before, factors = costs(early), early.way._factors  # type: ignore[attr-defined]
    places = [factor.data_ptr() for factor in factors if factor is not None]
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.2)
    late = Documents(model, config, 16, 2, fast=True)
    early.start(1, drawn(early.adapters, 2)[::2])
    with monkeypatch.context() as patch:
        patch.setattr(Working, "get", lambda copy: copy._value)
        found = costs(early)
    assert places == [factor.data_ptr() for factor in factors if factor is not None]
    np.testing.assert_array_equal(found, costs(late))
    assert np.abs(found - before).min() > 1e-4


def test_sizes_are_rounded_up_to_a_few() -> None:
    rows = [rounded_rows(n, 64) for n in range(1, 65)]
    assert all(n <= r <= max(n + 1, 1.5 * n) for n, r in enumerate(rows, 1))
    assert len(set(rows)) == 12 and rounded_rows(50, 50) == 50
    lengths = [rounded_length(n, 2048) for n in range(1, 2049)]
    assert all(n <= r <= n + max(15, n // 4) for n, r in enumerate(lengths, 1))
    assert len(set(lengths)) <= 28 and lengths[-1] == 2048 and rounded_length(30, 31) == 31
