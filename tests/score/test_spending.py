"""Where the bits of a score go: groups that do not overlap, and add up to the score."""

import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from everywhere import documents

from fairway.base.files import read_json
from fairway.data.tokens import Tokenizer, train_tokenizer
from fairway.machine.ranks import Ranks
from fairway.score.ledger import Ledger, Text, Witness, score_events
from fairway.score.predictor import Context, Receipt
from fairway.score.spending import KINDS, Spending, kinds_of, occurrences, shown
from fairway.score.windows import events, sliding_windows

BOS, V = 1, 300
DIVISIONS = ("kinds", "frequency", "place", "context")


class Priced:
    """A predictor whose costs are known: uniform over the first n tokens, n by position."""

    def predict(self, context: Context) -> Any:
        positions = context.event.positions
        return SimpleNamespace(
            log_prob=lambda targets: -np.log(2.0 + (positions % 7).astype(np.float64)),
            row=lambda position: np.full(V, -math.log(V)),
        )

    def adapt(self, receipt: Receipt) -> None:
        pass


@pytest.fixture(scope="module")
def tokenizer(data_folder: Path) -> Tokenizer:
    return Tokenizer.load(data_folder / "tokenizer.model")


def text_of(lengths: tuple[int, ...]) -> Text:
    draw = np.random.default_rng(0)
    parts = [np.array([BOS, *draw.integers(4, V, length)]) for length in lengths]
    ids = np.concatenate([*parts, [BOS]])
    sizes = np.where(ids[1:] == BOS, 0, 1 + ids[1:] % 5)
    return Text(ids, sizes, int(sizes.sum()), V)


def counted(text: Text, seq_len: int, stride: int) -> tuple[Spending, float]:
    spending, targets = Spending(Witness(), V, BOS), len(text.ids) - 1
    book = Ledger(text, targets, witness=spending)
    windows = events(sliding_windows(targets, seq_len, stride), 3)
    return spending, score_events(book, cast(Any, Priced()), windows, "test").bpb


@pytest.mark.parametrize("lengths", [(5,), (1, 1), (63, 64, 65), (200, 3, 900)])
@pytest.mark.parametrize(("seq_len", "stride"), [(16, 16), (128, 40)])
def test_groups_are_those_of_a_plain_count(
    lengths: tuple[int, ...], seq_len: int, stride: int, tokenizer: Tokenizer
) -> None:
    text = text_of(lengths)
    spending, bpb = counted(text, seq_len, stride)
    kinds = kinds_of(tokenizer)
    plain: dict[str, Counter[str]] = {"kinds": Counter(), "place": Counter()}
    place = 0
    for position, (before, target) in enumerate(zip(text.ids, text.ids[1:], strict=False)):
        place = 1 if before == BOS else place + 1
        bits = math.log2(2.0 + position % 7)
        plain["kinds"][KINDS[kinds[target]]] += bits
        low = 1 if place <= 64 else 1 + (64 << ((place - 1) // 64).bit_length() - 1)
        plain["place"][f"{low:,} to {max(64, 2 * (low - 1)):,}"] += bits
    told = spending.groups(tokenizer, np.arange(V))
    for name, expected in plain.items():
        found = {one["name"]: one["bits"] for one in told[name]}
        assert found == pytest.approx(expected)
    for name in DIVISIONS:
        assert sum(one["tokens"] for one in told[name]) == len(text.ids) - 1
        assert sum(one["bytes"] for one in told[name]) == text.text_bytes
        assert sum(one["bits"] for one in told[name]) / text.text_bytes == pytest.approx(bpb)


def test_parts_of_several_processes_add_up(tokenizer: Tokenizer) -> None:
    whole, _ = counted(text_of((70, 70)), 32, 8)
    half, _ = counted(text_of((70, 70)), 32, 8)
    half.total(cast(Any, SimpleNamespace(total=lambda values: 2 * values)))
    for name in ("by_token", "by_place", "by_context"):
        assert (getattr(half, name) == 2 * getattr(whole, name)).all()
    whole.total(Ranks())
    assert whole.by_token[0].sum() == 142


def test_every_score_of_a_run_adds_up(smoke_run: Path) -> None:
    stages = read_json(smoke_run / "results.json")["stages"]
    assert {"raw", "sliding", "ttt"} <= stages.keys()
    for name, stage in stages.items():
        for division in DIVISIONS:
            groups = stage["spending"][division]
            assert sum(one["tokens"] for one in groups) == stage["tokens"], name
            assert sum(one["bytes"] for one in groups) == stage["bytes"], name
            bpb = sum(one["bits"] for one in groups) / stage["bytes"]
            assert bpb == pytest.approx(stage["bpb"], rel=1e-12), (name, division)


def test_kinds_are_those_that_people_would_say() -> None:
    texts = [document.text + "\nIn 1999 (Ada) wrote C++ to GMT-0800." for document in documents(20)]
    for vocab_size, case_ops in ((340, False), (333, True)):
        tokenizer = Tokenizer(train_tokenizer(texts, vocab_size, case_ops))
        names = np.array(KINDS)[kinds_of(tokenizer)]
        kinds = {shown(p): str(n) for p, n in zip(tokenizer.pieces, names, strict=True)}
        assert kinds["<s>"] == "ends of documents" and kinds["line end"] == "line ends"
        assert kinds["<0xFF>"] == "other single bytes" and kinds["\u2423"] == "blanks"
        assert kinds["9"] == "digits" and kinds["("] == "punctuation and signs"
        assert kinds["\u2423the"] == "beginnings of words, with their blank"
        assert kinds["e"] == "parts inside words"
        capital = "marks of capital letters" if case_ops else "names and other capital letters"
        assert kinds["\u2191" if case_ops else "T"] == capital


def test_occurrences_stop_at_their_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fairway.score.spending.COUNTED_TOKENS", 5)
    shards = [np.array([1, 2, 2], np.uint16), np.array([3, 3, 3], np.uint16)]
    assert occurrences([*shards, shards[0]], 5).tolist() == [0, 1, 2, 2, 0]
