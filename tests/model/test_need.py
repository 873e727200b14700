"""What is planned of memory is what PyTorch holds, by the plain formulas and by kernels."""

import importlib.util
from dataclasses import replace

import pytest
import torch
from meter import Meter

from fairway.config.settings import ModelConfig, OptimConfig, TttConfig
from fairway.model import need
from fairway.model.adapters import Adapters
from fairway.model.gpt import GPT, build, num_parameters
from fairway.model.need import Need, Way
from fairway.model.paths import prepare
from fairway.train.muon import Optimisers
from fairway.train.schedule import WeightAverage

if torch.cuda.is_available():
    pytest.skip("measures on a CPU; benchmarks/memory.py does on a GPU", allow_module_level=True)

# So small that sums of weights' gradients do not hide what tokens take.
SMALL = ModelConfig(
    vocab_size=300, num_layers=4, dim=32, num_heads=4, num_kv_heads=2, mlp_dim=96, rope_dims=4,
    rope_train_len=64, parallel_from=3, loop_first=1, loop_last=2, loop_extra=1,
    embed_bf16=False,
)  # fmt: skip
TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not TRITON, reason="needs Triton")
SHAPES = {
    "as it is": {},
    "wide MLP": {"mlp_dim": 256, "parallel_from": 0},
    "narrow head": {"vocab_size": 261, "mlp_dim": 32, "parallel_from": 9},
    "gates and more": {"gate_features": 12, "smear": True},
    "two lanes": {"lanes": 2, "parallel_from": 2},
}


def made(config: ModelConfig, kernels: str, backend: str, looping: bool) -> GPT:
    model = build(config, 1)
    model.set_looping(looping)
    prepare(model, torch.float32, backend, kernels)
    return model


def taken(model: GPT, rows: int, T: int, learn: bool) -> int:
    """Return the bytes held at most while some rows go forth, and back if they shall."""
    ids = torch.randint(0, 260, (rows, T + 1))
    model.zero_grad(set_to_none=True)
    with Meter(model.operations.fused) as meter, torch.set_grad_enabled(learn):
        if learn:
            model(ids[:, :-1], ids[:, 1:]).backward()
        else:
            model.hidden(ids[:, :-1])
    return meter.peak


def per_token(model: GPT, T: int, learn: bool) -> float:
    """Return what a token more takes: two sizes apart, so that weights' gradients drop out."""
    fused = model.operations.fused
    taken(model, 1 if fused else 2, T, learn)
    # Triton's interpreter takes its time for every row.
    few, many = (2, 4) if fused else (9, 17)
    return (taken(model, many, T, learn) - taken(model, few, T, learn)) / ((many - few) * T)


# Triton's interpreter takes half a minute for each.
BY_KERNELS = [
    pytest.param(shape, "fused", marks=[*marks, needs_triton])
    for shape, marks in (
        (shape, [pytest.mark.slow] * (shape != "gates and more")) for shape in SHAPES
    )
]


@pytest.mark.long
@pytest.mark.parametrize(
    ("shape", "kernels"), [*((shape, "plain") for shape in SHAPES), *BY_KERNELS]
)
def test_a_token_takes_what_is_planned(
    shape: str, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within 10 %, forth and back and without a way back."""
    # Tables of so few rows that they do not grow with the batch.
    monkeypatch.setattr("fairway.model.ops.LOSS_ROWS", 16)
    config, T = replace(SMALL, **SHAPES[shape]), 32
    for looping in (False, True) if kernels == "plain" or shape == "as it is" else (True,):
        model, way = made(config, kernels, "sdpa", looping), Way(kernels == "fused", 4)
        wanted = need.learning_bytes(config, way, looping, T)
        assert per_token(model, T, True) == pytest.approx(wanted, rel=0.1)
        wanted = need.passing_bytes(config, way, looping, T)
        assert per_token(model, T, False) == pytest.approx(wanted, rel=0.1)


def test_scores_written_out_are_counted() -> None:
    """Attention as a plain formula holds every head's scores of all keys."""
    way, T = Way(False, 4, scores=True), 48
    model = made(replace(SMALL, vocab_size=261), "plain", "plain", True)
    assert need.way_of(model) == way
    wanted = need.learning_bytes(model.config, way, True, T)
    assert per_token(model, T, True) == pytest.approx(wanted, rel=0.1)


@pytest.mark.parametrize(("embed_bf16", "means"), [(False, 1), (True, 1), (True, 5)])
def test_what_training_holds_beside_activations(embed_bf16: bool, means: int) -> None:
    """Weights, averages, their copy, gradients, momentum, moments: counted on the objects."""
    config = replace(SMALL, embed_bf16=embed_bf16)
    with Meter() as meter:
        model = build(config, 1)
        prepare(model, torch.float32, "sdpa", "plain")
        optimisers, average = (
            Optimisers(model, OptimConfig(momentum_buffers=means)),
            WeightAverage(model.named_parameters()),
        )
        before = [weight.detach().clone() for weight in model.parameters()]
        model(*torch.zeros(2, 1, 2, dtype=torch.long)).backward()
        optimisers.step(1.0, 0)
        model(*torch.zeros(2, 1, 2, dtype=torch.long)).backward()
    assert before and average.average
    wanted = need.training_state_bytes(config, means=means)
    # On a CPU updates are float32, as activations are here.
    wanted += 2 * sum(w.numel() for bank in optimisers.muon.banks for w in bank.weights)
    assert meter.bytes == pytest.approx(wanted, rel=0.1)


def test_adapters_are_as_many_as_there_are() -> None:
    model = made(SMALL, "plain", "sdpa", True)
    for targets, rank in (("q k v o mlp head", 5), ("o", 3), ("head", 2), ("k v", 1)):
        found = Adapters(model, targets.split(), rank, 1.0).zeros(1)
        wanted = need.adapter_numbers(SMALL, True, targets, rank)
        assert sum(wanted) == sum(tensor.numel() for tensor in found)
        assert wanted[0] == sum(tensor.numel() for tensor in found[::2])


def test_weights_and_copies() -> None:
    assert need.weight_bytes(SMALL) == 4 * num_parameters(SMALL)
    half = replace(SMALL, embed_bf16=True)
    assert need.weight_bytes(SMALL) - need.weight_bytes(half) == 2 * 300 * 32
    assert need.copies_bytes(SMALL, Way(False, 2)) == 0


@needs_triton
def test_working_copies_are_those_of_the_kernels() -> None:
    model = made(SMALL, "fused", "sdpa", False)
    model(*torch.zeros(2, 1, 4, dtype=torch.long)).backward()
    copies = [copy._value.nbytes for copy in model.operations._copies.values()]  # type: ignore[attr-defined]
    assert need.copies_bytes(SMALL, Way(True, 4)) == sum(copies)


def test_as_many_as_fit_and_one_at_least() -> None:
    wanted = Need("training", "sequences", fixed=100.0, each=10.0, most=12)
    free = {300: 12, 231: 11, 230: 11, 150: 3, 120: 1, 50: 1}
    for bytes_, count in free.items():
        assert wanted.fitting(bytes_) == count
    # A divisor of the batch, the smallest if none fits.
    counts = [12, 6, 4, 3, 2, 1]
    assert [wanted.fitting(free, counts) for free in (300, 231, 150, 0)] == [12, 6, 3, 1]
    assert wanted.fitting(float("inf")) == 12
    line = Need("training", "sequences", 1e9, 1e9, 48).line(30e9, 24)
    assert line == ("training needs about 25.0 GB of 30.0 GB: 24 sequences at a time instead of 48")


def test_the_published_model_takes_what_was_measured() -> None:
    """On an H100, 48 x 2,048 tokens forth and back by kernels: 13.0 GiB, with recurrence 19.3."""
    config, way = ModelConfig(), Way(True, 2)
    rest = need.weight_bytes(config) + need.copies_bytes(config, way)
    for looping, measured in ((False, 13.0), (True, 19.3)):
        found = 48 * 2048 * need.learning_bytes(config, way, looping, 2048) + rest
        assert found / 2**30 == pytest.approx(measured, rel=0.05)
    assert need.scoring(config, way, True, 2048, 32).at(32) / 2**30 == pytest.approx(1.4, rel=0.1)
    assert need.learning_all(config, way, True, 2048, 16).at(16) / 2**30 == pytest.approx(6.7, 0.05)


def test_documents_take_less_in_shorter_windows() -> None:
    way, lora = Way(True, 2), TttConfig(method="lora")
    sizes = [need.learning_documents(ModelConfig(), way, True, lora, T, 1, 1.0) for T in (256, 512)]
    assert sizes[0].fixed == sizes[1].fixed and sizes[0].each < sizes[1].each < 2.1 * sizes[0].each
