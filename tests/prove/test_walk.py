"""Encoder and decoder walk alike, in the scorer's windows, with learners on the way."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from fairway.config.settings import ModelConfig
from fairway.model.gpt import GPT, build
from fairway.prove.coder import Decoder, Encoder
from fairway.prove.shares import Shares, device_frequencies
from fairway.prove.walk import (
    Coded,
    Course,
    Fixed,
    Frozen,
    Known,
    Learner,
    Segment,
    Walked,
    walk,
    window_segments,
)
from fairway.score.windows import sliding_windows

CONFIG = ModelConfig(
    vocab_size=260,
    num_layers=3,
    dim=16,
    num_heads=2,
    num_kv_heads=1,
    mlp_dim=32,
    rope_dims=4,
    loop_first=1,
    loop_last=1,
    loop_extra=1,
)
LENGTHS = (37, 5, 20, 0, 11)


@pytest.fixture
def model() -> GPT:
    model = build(CONFIG, seed=3)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(4)) * 0.3)
    model.set_looping(True)
    return model.eval()


def streams(lengths: Sequence[int] = LENGTHS) -> list[np.ndarray]:
    draw = np.random.default_rng(7)
    return [draw.integers(0, 260, length) for length in lengths]


def course(
    rows: int, lengths: Sequence[int] = LENGTHS, seq_len: int = 16, stride: int = 5
) -> Course:
    segments = window_segments(max(lengths), seq_len, stride)
    return Course(tuple(lengths), rows, seq_len, 1, segments)


def encoded(model: GPT, plan: Course, learner: Learner) -> tuple[bytes, Walked]:
    encoder = Encoder()
    walked = walk(model, plan, Known(streams(plan.targets), encoder), learner, lambda count: None)
    return encoder.finish(), walked


def assert_same(a: Walked, b: Walked) -> None:
    assert a.frequency_bits == b.frequency_bits
    for left, right in ((a.ids, b.ids), (a.nats, b.nats)):
        assert len(left) == len(right)
        assert all(np.array_equal(x, y) for x, y in zip(left, right, strict=True))


@pytest.mark.parametrize("rows", [1, 2, 5, 8])
@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def test_what_is_walked_is_decoded(model: GPT, rows: int, device: str) -> None:
    model = model.to(device)
    data, walked = encoded(model, course(rows), Frozen(model))
    source = Coded(Decoder(data))
    found = walk(model, course(rows), source, Frozen(model), lambda count: None)
    assert_same(found, walked)
    assert all(np.array_equal(a, b) for a, b in zip(found.ids, streams(), strict=True))


@pytest.mark.parametrize(("seq_len", "stride"), [(16, 5), (16, 16), (7, 1), (64, 8)])
def test_costs_are_those_of_the_scorers_windows(model: GPT, seq_len: int, stride: int) -> None:
    plan = course(3, seq_len=seq_len, stride=stride)
    _, walked = encoded(model, plan, Frozen(model))
    for ids, nats in zip(streams(), walked.nats, strict=True):
        assert len(nats) == len(ids)
        whole = np.concatenate(([1], ids))
        for window in sliding_windows(len(ids), seq_len, stride) if len(ids) else ():
            padded = np.zeros((1, seq_len), np.int64)
            padded[0, : window.end - window.start] = whole[window.start : window.end]
            with torch.no_grad():
                logits = model.logits(model.hidden(torch.from_numpy(padded)))[0]
            table = logits.double().log_softmax(-1).numpy()
            for position in range(window.score_from, window.end):
                expected = -table[position - window.start, ids[position]]
                assert nats[position] == pytest.approx(expected, abs=2e-5)


def device_shares(log_probs_SV: torch.Tensor) -> Shares:
    """Return what a GPU computes, here."""
    counts_SV, sound = device_frequencies(log_probs_SV)
    return Shares(counts_SV, counts_SV.cumsum(-1) - counts_SV, sound)


def test_what_a_gpu_computes_is_decoded(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    data, walked = encoded(model, course(3), Frozen(model))
    monkeypatch.setattr("fairway.prove.walk.shares_of", device_shares)
    again, also = encoded(model, course(3), Frozen(model))
    assert again == data
    assert_same(also, walked)
    found = walk(model, course(3), Coded(Decoder(data)), Frozen(model), lambda count: None)
    assert_same(found, walked)


def test_weights_that_are_no_numbers_code_nothing(
    model: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.no_grad():
        model.tok_emb.weight[3:5] = torch.nan
    plan = course(2)
    for _ in range(2):
        for source in (Known(streams(), Encoder()), Coded(Decoder(bytes(range(99))))):
            with pytest.raises(ValueError, match="sum to 1"):
                walk(model, plan, source, Frozen(model), lambda count: None)
        monkeypatch.setattr("fairway.prove.walk.shares_of", device_shares)


def test_only_what_is_read_has_room() -> None:
    assert course(2).room() == 16 and course(2, seq_len=64).room() == 37
    assert course(2, (3,)).room() == 3 and Course((), 2, 16, 1, ()).room() == 1


class Shaking(Frozen):
    """A learner whose weights depend on every token and cost that it was shown."""

    def __init__(self, model: GPT) -> None:
        super().__init__(model)
        self.model, self.begun, self.seen = model, list[range](), list[Fixed]()
        self.inside = False

    @contextmanager
    def predicting(self) -> Iterator[None]:
        self.inside = True
        yield
        self.inside = False

    def logits(self, states_SD: torch.Tensor) -> torch.Tensor:
        assert self.inside
        extra = torch.linspace(-1, 1, 260) * len(self.seen)
        return self.model.logits(states_SD) + extra

    def begin(self, streams: range) -> None:
        self.begun.append(streams)

    @torch.no_grad()
    def adapt(self, fixed: Fixed) -> None:
        assert not self.inside
        self.seen.append(fixed)
        total = sum(float(nats.sum()) for nats in fixed.nats)
        share = sum(int(ids.sum()) for ids in fixed.ids) % 97 / 97
        for weight in self.model.parameters():
            weight.mul_(1.0 + 0.01 * share).add_(1e-5 * total)


def test_a_learner_changes_both_sides_alike() -> None:
    def fresh() -> GPT:
        return build(CONFIG, seed=3).eval()

    chunks = tuple(Segment(max(0, at - 10), at, at + 3) for at in range(0, 39, 3))
    plan = Course(LENGTHS, 2, 16, 1, chunks)
    first, second = fresh(), fresh()
    learner, other = Shaking(first), Shaking(second)
    data, walked = encoded(first, plan, learner)
    found = walk(second, plan, Coded(Decoder(data)), other, lambda count: None)
    assert_same(found, walked)
    assert learner.begun == other.begun == [range(0, 2), range(2, 4), range(4, 5)]
    model = fresh()
    _, frozen = encoded(model, plan, Frozen(model))
    assert not np.array_equal(frozen.nats[0], walked.nats[0])
    for stream, ids in enumerate(streams()):
        shown = [f for f in learner.seen if stream in f.streams]
        parts = [f.ids[stream - f.streams.start] for f in shown]
        assert np.array_equal(np.concatenate(parts) if parts else [], ids)
        assert all(
            f.segment.end - f.segment.first >= len(p) for f, p in zip(shown, parts, strict=True)
        )


def test_nothing_to_walk(model: GPT) -> None:
    walked = walk(
        model, Course((), 2, 16, 1, ()), Coded(Decoder(b"")), Frozen(model), lambda count: None
    )
    assert (walked.ids, walked.frequency_bits) == ((), 0)
