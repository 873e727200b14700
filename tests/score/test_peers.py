"""Several sets of adapters: each learns alone, their probabilities are averaged."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import TINY, alive

from fairway.base.arrays import FloatArray
from fairway.base.errors import LedgerError, UserError
from fairway.config.checks import check_ttt, lora_peers
from fairway.config.settings import ScoreConfig, TttConfig
from fairway.model.adapters import Adapters, Beside
from fairway.model.block import Walk
from fairway.score.adapting import adapting
from fairway.score.evaluation import Evaluation
from fairway.score.ledger import Score, Text, Witness
from fairway.score.lora import PeerLanes, evaluate_lora
from fairway.score.peers import Mean, mean_of
from fairway.score.predictor import Context, Receipt
from fairway.score.windows import Event, Window

MODEL = replace(TINY, num_layers=2, xsa_layers=1, loop_first=0, loop_last=0, rope_train_len=8)
SCORE = ScoreConfig(seq_len=16, stride=4, check_positions=25, truncate=False)
LORA = TttConfig(
    method="lora", lora_rank=3, lora_alpha=4.0, lora_lr=0.01, lora_wd=0.1, lora_chunks="3@6 8",
    lora_documents=3, lora_lanes=2,
)  # fmt: skip


def text() -> Text:
    generator = np.random.default_rng(0)
    ids = generator.integers(2, 260, 8)[generator.integers(0, 8, 90)]
    ids[[0, 20, 21, 50, 77]] = 1
    return Text(ids, np.ones(89, np.int64), 89, 260)


class Costs(Witness):
    def __init__(self) -> None:
        self.nats = np.zeros(89)

    def scored(self, receipt: Receipt) -> None:
        self.nats[receipt.event.positions] = receipt.nats


def costs(config: TttConfig, seed: int = 5) -> tuple[FloatArray, Score]:
    heard, model = Costs(), alive(MODEL)
    model.set_compute(torch.float32, "plain")
    asked = Evaluation(text(), SCORE, config, seed, witness=heard)
    found = evaluate_lora(model, asked)
    return heard.nats, found


@pytest.mark.parametrize(
    ("peers", "alone"),
    [
        ("same", [{}, {}]),
        ("lora_lr=0.03+lora_rank=5", [{}, {"lora_lr": 0.03, "lora_rank": 5}]),
        ("lora_lr=0 same", [{}, {"lora_lr": 0.0}, {}]),
        ("lora_wd=2+lora_beta2=0.9+lora_alpha=1",
         [{}, {"lora_wd": 2.0, "lora_beta2": 0.9, "lora_alpha": 1.0}]),
    ],
)  # fmt: skip
def test_what_is_charged_is_the_mean_of_what_each_would_charge(
    peers: str, alone: list[dict[str, Any]]
) -> None:
    """Each set beside a plain evaluation of its own, whose seed is as many more."""
    found, score = costs(replace(LORA, lora_peers=peers))
    each = [costs(replace(LORA, **one), 5 + n)[0] for n, one in enumerate(alone)]
    wanted = [
        -math.log(math.fsum(math.exp(-one) for one in some) / len(some))
        for some in np.transpose(each).tolist()
    ]
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-7)
    assert score.checked_positions == 25 and score.worst_sum_error < 1e-12
    assert score.worst_row_error_nats < 1e-4
    # Others than any of them alone.
    assert all(np.abs(found - one).max() > 1e-4 for one in each)


def test_the_three_ways_to_ask_a_mean_agree() -> None:
    model = alive(MODEL)
    model.set_compute(torch.float32, "plain")
    lanes = PeerLanes(model, replace(LORA, lora_peers="lora_rank=2+lora_lr=0.05"), 16, 0)
    peers = lanes.start(0, 2)
    windows = (Window(0, 12, 8), Window(20, 30, 28))
    ids = np.random.default_rng(0).integers(2, 260, 40)
    context = Context(Event(0, windows), {w: ids[w.start : w.end] for w in windows})
    with adapting(model):
        first = peers.predict(context)
        peers.learn(first, first.rectangle(np.arange(6)), [0, 1])
        mean = peers.predict(context)
        targets = np.arange(3, 9)
        tables, nats = mean.tables(0, 6), mean.log_prob(targets)
        for n, position in enumerate(context.event.positions.tolist()):
            row = mean.row(position)
            assert math.fsum(np.exp(row)) == pytest.approx(1.0, abs=1e-12)
            assert row == pytest.approx(tables[n].numpy(), abs=1e-4)
            assert row[targets[n]] == pytest.approx(nats[n], abs=1e-4)
    with pytest.raises(LedgerError, match="learned or predicted"):
        first.log_prob(targets)


def test_members_are_told_by_their_settings() -> None:
    assert lora_peers(LORA) == [LORA]
    found = lora_peers(replace(LORA, lora_peers="same  lora_rank=7+lora_lr=1e-3"))
    assert found == [LORA, LORA, replace(LORA, lora_rank=7, lora_lr=1e-3)]


@pytest.mark.parametrize(
    ("peers", "told"),
    [
        ("sme", "unknown setting in ttt.lora_peers 'sme'"),
        ("lora_documents=3", "unknown setting in ttt.lora_peers 'lora_documents'"),
        ("lora_lr=fast", "ttt.lora_peers has 'lora_lr=fast'; write a number, as in 'lora_lr=0.01'"),
        ("lora_rank=2.5", "ttt.lora_peers has 'lora_rank=2.5'; write a number"),
        ("lora_rank=0", "ttt.lora_peers: ttt.lora_rank is 0; it must be between 1 and"),
        ("lora_lr=nan", "ttt.lora_lr is not a number"),
        ("lora_lr=-1", "ttt.lora_lr is -1"),
        ("lora_lr", "write a number"),
        ("same+lora_lr=1", "unknown setting in ttt.lora_peers 'same'"),
        ("same same same same", "names 4 adapters in addition to the first; name at most 3"),
    ],
)
def test_peers_that_are_none_cost_a_sentence(peers: str, told: str) -> None:
    with pytest.raises(UserError) as error:
        check_ttt(replace(LORA, lora_peers=peers), SCORE)
    assert told in str(error.value)


def test_a_mean_of_probabilities_is_one_at_extremes() -> None:
    logs = [torch.tensor([[0.0, -1e4], [-math.log(2), -math.log(2)]]).double().log_softmax(-1)]
    logs.append(torch.tensor([[-50.0, 0.0], [-745.0, 0.0]]).double().log_softmax(-1))
    found = mean_of(logs)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(2).double(), rtol=0, atol=1e-15)
    assert found[0].tolist() == pytest.approx([-math.log(2)] * 2, abs=1e-12)
    assert mean_of(logs[:1]) is logs[0]


def test_one_member_answers_for_itself() -> None:
    class Own:
        nats = np.array([-1.0, -2.0])

        def log_prob(self, targets: Any) -> FloatArray:
            return self.nats

        def row(self, position: int) -> FloatArray:
            return self.nats

        def tables(self, first: int, end: int) -> torch.Tensor:
            return torch.from_numpy(self.nats)

        def rectangle(self, targets: Any) -> torch.Tensor:
            return torch.zeros(1)

    mean = Mean([Own()])
    assert mean.log_prob(np.zeros(2, int)) is Own.nats and mean.row(3) is Own.nats


def test_sets_side_by_side_add_what_each_adds_to_its_rows() -> None:
    model = alive(MODEL)
    generator = torch.Generator().manual_seed(3)
    ids_BT = torch.randint(2, 260, (4, 9), generator=generator)
    sets, wanted = [], []
    for rank, alpha, rows in ((2, 3.0, slice(0, 2)), (5, 1.0, slice(2, 4))):
        own = Adapters(model, ["q", "k", "v", "o", "mlp"], rank, alpha)
        values = [torch.randn(v.shape, generator=generator) * 0.2 for v in own.zeros(2)]
        wanted.append(own.states(values, ids_BT[rows], model.rope_for(ids_BT)))
        sets.append(own)
    walk = Walk(model.rope_for(ids_BT), Beside(sets))
    found = model.states(model.embedded(ids_BT), walk)
    torch.testing.assert_close(found, torch.cat(wanted), rtol=1e-5, atol=1e-5)
