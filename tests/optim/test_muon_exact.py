"""Both learning rules in float64 against their formulas, on one rank and on several."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from by_threads import (
    CONFIG,
    FIXED,
    POLAR,
    Exchange,
    Threaded,
    gradients,
    is_matrix,
    plain_update,
    together,
    walk,
    wide,
)
from torch import nn

from fairway.config.settings import OptimConfig
from fairway.machine.ranks import Ranks
from fairway.model.kinds import ones, scalar
from fairway.model.operations import PLAIN
from fairway.train import muon, rules
from fairway.train.muon import Departures, Muon, Optimisers, in_stages
from fairway.train.rules import move, muon_update

EXACT = {"rtol": 1e-11, "atol": 1e-13}


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (31, 31), (64, 16), (1, 7), (7, 1)])
@pytest.mark.parametrize(("how", "triples"), [("fixed", FIXED), ("polar_express", POLAR)])
def test_an_update_is_that_of_the_formulas(
    shape: tuple[int, int], how: str, triples: list[Any]
) -> None:
    generator = torch.Generator().manual_seed(0)
    grads = torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    buffers = torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    wanted = [plain_update(0.3 * g, b, 0.9, triples) for g, b in zip(grads, buffers, strict=True)]
    config = replace(CONFIG, newton_schulz=how)
    out = torch.empty_like(grads)
    muon_update(grads, buffers, torch.tensor([0.3], dtype=torch.float64), 0.9, config, out)
    for i, (update, buffer) in enumerate(wanted):
        # Small singular values grow by 3.4^5, and what rounding adds to them with them.
        torch.testing.assert_close(out[i], update, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(buffers[i], buffer, **EXACT)


@pytest.mark.parametrize(("how", "triples"), [("fixed", FIXED), ("polar_express", POLAR)])
def test_coefficients_are_the_published_ones(how: str, triples: list[Any]) -> None:
    assert list(rules.coefficients(replace(CONFIG, newton_schulz=how))) == triples


def test_rows_and_matrices_of_nothing_stay_nothing() -> None:
    """A norm below 1e-7 counts as 1e-7 in a row, and is made 1e-7 larger in a matrix."""
    rows = torch.tensor([[[0.0, 0.0], [3e-8, 4e-8], [3e-7, 4e-7]]], dtype=torch.float64)
    out = torch.empty_like(rows)
    rules.nesterov(rows.clone(), torch.zeros_like(rows), torch.ones(1), 0.0, out)
    wanted = torch.tensor([[[0.0, 0.0], [0.3, 0.4], [0.6, 0.8]]]).double()
    torch.testing.assert_close(out, wanted, rtol=1e-7, atol=0)
    matrix = torch.tensor([[[3e-7, 0.0], [0.0, 4e-7]]], dtype=torch.float64)
    torch.testing.assert_close(rules.orthogonalise(matrix, []), matrix / 6e-7, rtol=1e-7, atol=0)
    assert not rules.orthogonalise(torch.zeros(1, 2, 2), FIXED).any()


def test_weights_decay_then_move() -> None:
    weights = torch.tensor([[[2.0, -4.0]]], dtype=torch.float64)
    move(weights, torch.tensor([[[1.0, -3.0]]]).double(), 0.1, 0.5)
    wanted = torch.tensor([[[1.8, -3.5]]], dtype=torch.float64)
    torch.testing.assert_close(weights, wanted, **EXACT)


# ---------------------------------------------------------------------------------------------
# All parameters, on any number of ranks


class Plain:
    """Every parameter by itself, from the formulas; each group's rate and decay spelt out."""

    def __init__(self, config: OptimConfig) -> None:
        self.config = config
        self.weights = {n: w.detach().clone() for n, w in wide().named_parameters()}
        self.state = {
            n: [torch.zeros_like(w), torch.zeros_like(w)] for n, w in self.weights.items()
        }
        self.count = 0

    def step(self, multiplier: float, step: int) -> float:
        config, grads = self.config, gradients(step)
        norm = sum(float(grad.square().sum()) for grad in grads.values()) ** 0.5
        scale = min(1.0, config.grad_clip / (norm + 1e-6)) if config.grad_clip else 1.0
        self.count += 1
        mu = {0: 0.5, 1: 0.6, 2: 0.7}[step]
        for name, weight in self.weights.items():
            grad, (first, second) = scale * grads[name], self.state[name]
            if is_matrix(name):
                update, self.state[name][0] = plain_update(grad, first, mu, FIXED)
                lr = 0.022 * multiplier
                self.weights[name] = weight * (1 - lr * 0.4) - lr * update
                continue
            lr, decay = (0.03, 0.085) if name == "tok_emb.weight" else (0.07, 0.02)
            lr *= multiplier
            first, second = 0.9 * first + 0.1 * grad, 0.95 * second + 0.05 * grad**2
            self.state[name] = [first, second]
            root = (second / (1 - 0.95**self.count)).sqrt() + 1e-8
            moved = lr * first / (1 - 0.9**self.count) / root
            self.weights[name] = weight * (1 - lr * decay) - moved
        return norm


@pytest.mark.parametrize(("world", "clip"), [(1, 0.0), (2, 0.0), (3, 0.0), (6, 0.0), (3, 40.0)])
def test_every_parameter_moves_by_its_rule_on_any_number_of_ranks(world: int, clip: float) -> None:
    config = replace(CONFIG, grad_clip=clip)
    plain = Plain(config)
    norms = [plain.step(0.5, step) for step in range(3)]
    assert clip == 0.0 or min(norms) > 2 * clip
    # The norm is a float32, and with it the scale that a clip makes of it.
    close = {"rtol": 1e-6, "atol": 1e-7} if clip else {"rtol": 1e-9, "atol": 1e-10}
    for weights, state, found in together(world, lambda ranks: walk(ranks, config, range(3))):
        assert found == pytest.approx(norms, rel=2e-7)
        for name, weight in plain.weights.items():
            torch.testing.assert_close(weights[name], weight, **close)
            first, second = plain.state[name]
            key = f"muon.{name}" if is_matrix(name) else f"adam.exp_avg.{name}"
            torch.testing.assert_close(state.pop(key), first, **close)
            if not is_matrix(name):
                torch.testing.assert_close(state.pop(f"adam.exp_avg_sq.{name}"), second, **close)
                assert state.pop(f"adam.step.{name}") == 3
        assert not state


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 2), (2, 1)])
def test_what_is_kept_goes_on_with_another_number_of_ranks(before: int, after: int) -> None:
    kept = together(before, lambda ranks: walk(ranks, CONFIG, range(2)))[0]
    [whole] = together(1, lambda ranks: walk(ranks, CONFIG, range(3)))
    for weights, state, _ in together(after, lambda ranks: walk(ranks, CONFIG, range(2, 3), kept)):
        for found, wanted in ((weights, whole[0]), (state, whole[1])):
            assert found.keys() == wanted.keys()
            for name, value in wanted.items():
                torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-10)


def test_what_is_forgotten_is_as_if_it_had_never_been() -> None:
    model = wide()
    optimisers = Optimisers(model, CONFIG)
    for step in range(2):
        for name, grad in gradients(1).items():
            model.get_parameter(name).grad = grad
        if step:
            optimisers.reset()
            model.load_state_dict(wide().state_dict())
            assert {key.partition(".")[0] for key in optimisers.state()} == {"muon"}
            assert not any(value.any() for value in optimisers.state().values())
        optimisers.step(0.5, 1)
    wanted, state, _ = walk(Ranks(), CONFIG, range(1, 2))
    for name, weight in model.named_parameters():
        assert torch.equal(weight, wanted[name]), name
    assert all(torch.equal(value, state[name]) for name, value in optimisers.state().items())


@pytest.mark.parametrize(("grad", "kept"), [(0.0, 1.0), (1e-6, 0.5), (3e-6, 0.25)])
def test_a_small_norm_is_met_by_a_millionth(grad: float, kept: float) -> None:
    holder = nn.Module()
    holder.register_parameter("gain", nn.Parameter(torch.zeros(1, dtype=torch.float64)))
    holder.declares, holder.operations = {"gain": scalar(ones)}, PLAIN
    holder.compute_dtype = torch.float32
    holder.gain.grad = torch.tensor([grad], dtype=torch.float64)
    optimisers = Optimisers(holder, replace(CONFIG, grad_clip=1e-6))
    assert float(optimisers.step(1.0, 0)) == pytest.approx(grad, rel=1e-6)
    moment = float(optimisers.state()["adam.exp_avg.gain"])
    assert moment == pytest.approx(0.1 * kept * grad, rel=1e-6)


# ---------------------------------------------------------------------------------------------
# Banks and when they leave


def test_banks_over_ranks_are_cut_from_the_last_layers_on() -> None:
    assert in_stages(10, 1) == [slice(0, 10)]
    assert in_stages(10, 2) == [slice(6, 10), slice(2, 6), slice(0, 2)]
    assert in_stages(10, 3) == [slice(4, 10), slice(0, 4)]
    assert in_stages(11, 2) == [slice(7, 11), slice(3, 7), slice(0, 3)]
    assert in_stages(22, 3) == [slice(13, 22), slice(4, 13), slice(0, 4)]
    assert in_stages(1, 8) == [slice(0, 1)]


def lone(*shapes: tuple[int, int]) -> list[tuple[str, nn.Parameter]]:
    return [(f"{place}", nn.Parameter(torch.zeros(shape))) for place, shape in enumerate(shapes)]


@pytest.mark.parametrize(
    ("world", "banks", "leaving"),
    [
        # Largest first; and by the first of their matrices, the last layers first.
        (1, ["14", "0235", "6"], ["6", "14", "0235"]),
        (2, ["14", "35", "02", "6"], ["6", "35", "14", "02"]),
    ],
)
def test_the_largest_bank_is_worked_on_first_and_the_latest_layers_leave_first(
    world: int, banks: list[str], leaving: list[str]
) -> None:
    small, large, tiny = (3, 4), (40, 8), (2, 2)
    matrices = lone(small, large, small, small, large, small, tiny)
    ranks: Any = Threaded(0, world, Exchange(world))
    made = Muon(matrices, CONFIG, ranks)
    assert ["".join(bank.names) for bank in made.banks] == banks
    assert ["".join(bank.names) for bank in made.departures.banks] == leaving
    padded = [-(-len(names) // world) * world for names in banks]
    assert [len(bank.grads_PRC) for bank in made.banks] == padded
    assert [len(bank.momentum_KRC) for bank in made.banks] == [count // world for count in padded]
    assert {bank.updates_PRC.dtype for bank in made.banks} == {torch.bfloat16}


def test_gradients_are_taken_from_their_weights_when_a_bank_leaves() -> None:
    """A backward pass then makes new ones, whose memory is free until it does."""
    matrices = lone((3, 4), (3, 4))
    [bank] = Muon(matrices, CONFIG).banks
    for number, (_, weight) in enumerate(matrices):
        weight.grad = torch.full((3, 4), 1.0 + number)
    bank.collect()
    assert all(weight.grad is None for _, weight in matrices)
    assert bank.grads_PRC[:, 0, 0].tolist() == [1.0, 2.0]


def test_a_bank_goes_by_the_kernels_it_was_given() -> None:
    called = []

    def rows(*arguments: Any) -> None:
        called.append(arguments)
        rules.nesterov(*arguments)

    [(_, weight)] = matrices = lone((3, 4))
    [bank] = Muon(matrices, CONFIG).banks
    bank.nesterov, weight.grad = rows, torch.ones(3, 4)
    bank.collect()
    bank.propose(torch.ones(1), 0.5)
    [(grad, buffer, _, mu, out)] = called
    assert (grad.data_ptr(), buffer is bank.momentum_KRC) == (bank.grads_PRC.data_ptr(), True)
    assert mu == 0.5
    assert out.data_ptr() == bank.updates_PRC.data_ptr()


def test_norms_are_rounded_matrix_by_matrix() -> None:
    """So that their sum does not depend on how many matrices a rank has."""
    matrices = lone((3, 4), (3, 4))
    [bank] = Muon(matrices, CONFIG).banks
    for (_, weight), value in zip(matrices, (4097.0, 1.0), strict=True):
        weight.grad = torch.zeros(3, 4)
        weight.grad[0, 0] = value
    bank.collect()
    # The float32 next to the root of 4097^2 + 1 is 4097.
    assert bank.square().dtype == torch.float64 and float(bank.square()) == 4097**2 + 1


class Leaving:
    """A bank that writes down when it leaves."""

    def __init__(self, name: str, weights: int, world: int, left: list[str]) -> None:
        self.weights = [nn.Parameter(torch.ones(1)) for _ in range(weights)]
        self.ranks = SimpleNamespace(world=world)
        self.name, self.left = name, left

    def collect(self) -> None:
        self.left.append(self.name)

    def backward(self, *places: int) -> None:
        for place in places:
            torch.autograd.backward(self.weights[place].sum())


def test_a_bank_leaves_with_its_last_gradient_and_not_before_an_earlier_one() -> None:
    left: list[str] = []
    a, b, c = (Leaving(name, 2, 2, left) for name in "abc")
    departures = Departures([a, b, c])
    for _ in range(2):
        left.clear()
        # Earlier backward passes of the step are not announced.
        for bank in (a, b, c):
            bank.backward(0, 1)
        assert left == []
        departures.expect()
        b.backward(0, 1)
        a.backward(1)
        assert left == []
        a.backward(0)
        assert left == ["a", "b"]
        c.backward(0)
        assert left == ["a", "b"]
        departures.finish()
        assert left == ["a", "b", "c"]
        c.backward(0, 1)
        assert left == ["a", "b", "c"]
    left.clear()
    departures.expect()
    for bank in (c, a, b):
        bank.backward(0, 1)
    assert left == ["a", "b", "c"]
    departures.finish()
    assert left == ["a", "b", "c"]


def test_a_single_rank_sends_nothing_before_the_step() -> None:
    left: list[str] = []
    bank = Leaving("a", 1, 1, left)
    departures = Departures([bank])
    departures.expect()
    bank.backward(0)
    assert left == []
    departures.finish()
    assert left == ["a"]


def test_products_are_bfloat16_on_a_gpu_and_a_cpu_models_own_elsewhere() -> None:
    def model(*on_gpu: bool, **more: Any) -> Any:
        weights = [SimpleNamespace(is_cuda=gpu) for gpu in on_gpu]
        return SimpleNamespace(parameters=lambda: iter(weights), **more)

    assert muon.products_dtype(model(True, True, compute_dtype=torch.float32)) == torch.bfloat16
    assert muon.products_dtype(model(False, compute_dtype=torch.float64)) == torch.float64
