"""Documents that do not fit together are computed in parts, and every sum stays what it was."""

import functools
import gc
import importlib.util
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import TINY, alive
from torch import Tensor

from fairway.base.errors import UserError
from fairway.config.settings import ScoreConfig, TttConfig
from fairway.model.paths import prepare
from fairway.score import halving, lora
from fairway.score.adapting import Rope, Size
from fairway.score.evaluation import Evaluation
from fairway.score.halving import Halving
from fairway.score.ledger import Text, Witness
from fairway.score.lora import Documents, evaluate_lora
from fairway.score.predictor import Receipt

MODEL = replace(TINY, dim=32, embed_bf16=False, rope_train_len=8)
SCORE = ScoreConfig(seq_len=16, stride=4, check_positions=20, truncate=False)
LORA = TttConfig(
    method="lora", lora_rank=4, lora_alpha=6, lora_lr=0.01, lora_chunks="8", lora_wd=0.1,
    lora_documents=5, lora_lanes=2,
)  # fmt: skip
GPU = torch.cuda.is_available()
TRITON = importlib.util.find_spec("triton") is not None
FUSED = pytest.mark.skipif(not TRITON, reason="needs Triton")


def text(starts: Sequence[int], count: int) -> Text:
    """Return documents that start at some tokens."""
    ids = torch.randint(2, 14, (count,), generator=torch.Generator().manual_seed(1)).numpy()
    ids[list(starts)] = 1
    return Text(ids, np.ones(count - 1, np.int64), count - 1, 260)


# Of many lengths, one of a single token; Triton's interpreter is slow.
LONG, SHORT = ((0, 30, 75, 76, 100, 121, 150), 160), ((0, 10, 11, 14, 26, 33, 36), 38)


class Costs(Witness):
    """Hears what every position costs."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def scored(self, receipt: Receipt) -> None:
        self.found += receipt.nats.tolist()


def costs(kernels: str = "plain", config: TttConfig = LORA) -> list[float]:
    model = alive(MODEL).to("cuda" if GPU else "cpu")
    dtype, attention = (torch.bfloat16, "flash") if GPU else (torch.float32, "plain")
    prepare(model, dtype, attention, kernels)
    heard = Costs()
    if GPU or kernels == "plain":
        read, score = text(*LONG), SCORE
    else:
        read, score = text(*SHORT), replace(SCORE, check_positions=4)
    evaluate_lora(model, Evaluation(read, score, config, witness=heard))
    return heard.found


# Where memory suffices.
ample = functools.cache(costs)


class Full:
    """Memory of so many rows: whoever computes more of them runs out of it, now and then."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rows: int, where: str) -> None:
        self.rows, self.times = rows, 0
        made, full = Documents.__init__, self

        def init(self: Documents, *args: Any, **named: Any) -> None:
            made(self, *args, **named)
            for name in ("log_probs", "learn"):
                if name == where:
                    setattr(self.way, name, full.limited(getattr(self.way, name), name))

        monkeypatch.setattr(Documents, "__init__", init)

    def limited(self, work: Callable[..., Any], name: str) -> Callable[..., Any]:
        def limited(*args: Any) -> Any:
            if len(args[1] if name == "log_probs" else args[0]) > self.rows:
                self.times += 1
                raise torch.OutOfMemoryError("no room")
            return work(*args)

        return limited


@pytest.mark.long
@pytest.mark.parametrize(
    ("kernels", "rows", "where"),
    [
        *(("plain", rows, where) for rows in (1, 2, 3) for where in ("log_probs", "learn")),
        # Who learns in parts has predicted in parts.
        pytest.param("fused", 2, "learn", marks=FUSED),
        pytest.param("fused", 2, "log_probs", marks=[FUSED, pytest.mark.slow]),
    ],
)
def test_parts_have_the_costs_of_the_whole(
    kernels: str,
    where: str,
    rows: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wanted = ample(kernels)
    full = Full(monkeypatch, rows, where)
    got = costs(kernels)
    assert full.times >= 1
    # bfloat16 logits are 0.125 apart there.
    np.testing.assert_allclose(got, wanted, rtol=0, atol=0.25 if GPU else 2e-5)
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("there is too little memory for 5 documents at a time: continuing")
    # 5, 3, 2, 1: halved once each, and not again for every chunk.
    assert len(told) == {1: 3, 2: 2, 3: 1}[rows]


def test_what_does_not_fit_one_by_one_is_refused_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Full(monkeypatch, 0, "log_probs")
    with pytest.raises(UserError, match=r"1 documents side by side; lower ttt\.lora_documents"):
        costs()


class Rows:
    """A way that answers with the numbers of the rows it was given, and counts its work."""

    def __init__(self, rows: int, recorded: int = 0) -> None:
        self.rows, self.recorded = rows, recorded
        self.rooms: list[range] = []
        self.learned: list[int] = []
        self.last: list[int] = []

    def size(self, rows: int, most: int, first: int, end: int, seq_len: int) -> Size:
        return Size(rows, end, end - first)

    def renew(self) -> None: ...

    def move(self, source: int, target: int) -> None: ...

    def log_probs(self, room: range, ids_BT: Tensor, rope: Rope, first: int) -> Tensor:
        if len(ids_BT) > self.rows:
            raise torch.OutOfMemoryError
        self.rooms.append(room)
        self.last = ids_BT[:, 0].tolist()
        return ids_BT[:, first:, None].double()

    def learn(self, targets_BC: Tensor, share_B: Tensor) -> None:
        assert targets_BC[:, 0].tolist() == self.last, "another part was predicted last"
        assert share_B.tolist() == self.last
        self.learned += self.last
        self.last = []

    def forget(self) -> None:
        self.last = []

    def release(self) -> bool:
        self.recorded -= 1
        return self.recorded >= 0


def nothing(length: int, chunk: int) -> float:
    return 0.0


def numbered(rows: int) -> Tensor:
    return torch.arange(rows)[:, None].expand(rows, 6)


@pytest.mark.parametrize(("count", "fit"), [(8, 8), (8, 4), (7, 4), (8, 3), (5, 1), (1, 1)])
def test_every_row_is_predicted_and_learned_once(count: int, fit: int) -> None:
    way = Rows(fit)
    parts = Halving(way, 8, torch.device("cpu"), fixed=False, row_bytes=nothing)
    rope = (torch.empty(0), torch.empty(0))
    found_BCV = parts.log_probs(numbered(count), rope, 2)
    assert found_BCV[:, 0, 0].tolist() == list(range(count))
    parts.learn(numbered(count), torch.arange(count))
    assert sorted(way.learned) == list(range(count))
    # No part may reach into slots that are in use behind it.
    used = [room for room in way.rooms if room.stop <= count]
    assert all(len(room) <= 8 and room.stop <= 8 for room in way.rooms)
    assert all(room.start % parts.at_once == 0 for room in used)


def test_a_room_ends_where_other_rows_begin() -> None:
    way = Rows(4)
    parts = Halving(way, 16, torch.device("cpu"), fixed=False, row_bytes=nothing)
    parts.log_probs(numbered(6), (torch.empty(0), torch.empty(0)), 0)
    # Slots 6 and 7 are nobody's, and the last part may be rounded up to them; 8 to 15 are not its.
    assert way.rooms == [range(0, 4), range(4, 8)]


def test_recordings_go_before_rows_are_halved(capsys: pytest.CaptureFixture[str]) -> None:
    way = Rows(4, recorded=1)
    way.rows = 3
    parts = Halving(way, 4, torch.device("cpu"), fixed=False, row_bytes=nothing)
    parts.log_probs(numbered(3), (torch.empty(0), torch.empty(0)), 0)
    assert parts.at_once == 4 and not capsys.readouterr().err
    parts.log_probs(numbered(4), (torch.empty(0), torch.empty(0)), 0)
    assert parts.at_once == 2
    assert "for 4 documents at a time: continuing with 2" in capsys.readouterr().err


def test_what_is_coded_is_not_divided() -> None:
    parts = Halving(Rows(4), 8, torch.device("cpu"), fixed=True, row_bytes=nothing)
    with pytest.raises(UserError, match="has too little memory for 8 documents side by side"):
        parts.log_probs(numbered(8), (torch.empty(0), torch.empty(0)), 0)


def test_an_error_leaves_nothing_of_its_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tensors of the attempt that failed must be gone before the next one."""
    kept: list[Any] = []

    class Held:
        pass

    def work() -> None:
        held = Held()
        kept.append(weakref.ref(held))
        raise torch.OutOfMemoryError

    gc.disable()
    try:
        assert halving._unless_full(work) is None
        assert kept[0]() is None
    finally:
        gc.enable()


def test_lanes_wait_in_host_memory_where_the_device_is_small(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a CPU both are the same memory: the costs must not change."""
    wanted = ample()
    asked: list[torch.device] = []

    def small(device: torch.device) -> float:
        asked.append(device)
        return 0.0

    monkeypatch.setattr(lora, "free_bytes", small)
    assert costs() == wanted
    # Seven documents, five at a time: two batches, each the first of its lane.
    assert len(asked) == 2


def test_other_errors_are_not_taken_for_full_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> None:
        raise RuntimeError("an illegal address")

    monkeypatch.setattr(lora.Plain, "log_probs", broken)
    with pytest.raises(RuntimeError, match="illegal address"):
        costs()
