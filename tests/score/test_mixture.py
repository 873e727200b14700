"""The mixture is one distribution, in every configuration, and its path is the vocabulary's."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from fairway.base.errors import LedgerError, UserError
from fairway.config.checks import check_mixture
from fairway.config.overrides import override
from fairway.config.settings import Config, MixtureConfig, ScoreConfig, TttConfig
from fairway.data.build import DataFolder
from fairway.data.tokens import Tokenizer, token_bytes
from fairway.score.evaluation import Evaluation
from fairway.score.experts import tilt
from fairway.score.experts.evaluate import evaluate_mixture
from fairway.score.experts.mixture import Helpers, Mixture
from fairway.score.experts.ppm import PlainPpm
from fairway.score.experts.trie import Tries, Wanted, token_strings
from fairway.score.ledger import Ledger, Score, Text
from fairway.score.predictor import Context, Receipt
from fairway.score.ways import evaluate
from fairway.score.windows import events, sliding_windows

V, N = 300, 260
ONE_BYTE, BOS = 4, 1


@pytest.fixture(autouse=True)
def _short_repeats() -> Iterator[None]:
    with tiny.tuned({"match_min": 6}):
        yield


@pytest.fixture(scope="module")
def words(data_folder: Path) -> Tokenizer:
    return DataFolder.open(data_folder).tokenizer


@pytest.fixture(scope="module")
def text(words: Tokenizer) -> Text:
    """Words that come again, byte pieces, all control tokens, two documents."""
    draw = np.random.default_rng(0)
    phrase = words.encode("The model learns a token and the small text predicts it.")[:30]
    ids = np.concatenate(
        [[BOS], phrase, [0, 2, 3], words.byte_ids[[10, 195, 169, 33]], draw.integers(0, V, 60),
         phrase, phrase[::-1], [BOS, BOS], phrase, draw.integers(4, V, 44), phrase]
    )[: N + 1]  # fmt: skip
    sizes = token_bytes(ids[1:], ids[:-1], words.table)
    return Text(ids, sizes, int(sizes.sum()), V)


class Base:
    """A made-up model: a random distribution per position, some of it extremely peaked."""

    separable = True

    def __init__(self, ids: np.ndarray) -> None:
        logits = torch.randn(N + 1, V, generator=torch.Generator().manual_seed(3)).double() * 2.0
        logits[::5] *= 10.0
        # It knows the truth a little.
        logits[torch.arange(len(ids) - 1), torch.from_numpy(ids[1:].astype(np.int64))] += 2.0
        self.table = logits.log_softmax(-1)

    def predict(self, context: Context) -> Any:
        table, positions = self.table, context.event.positions

        class Made:
            def tables(self, first: int, end: int) -> torch.Tensor:
                return table[positions[first:end]]

            def row(self, position: int) -> np.ndarray:
                return table[position].numpy()

            def log_prob(self, targets: np.ndarray) -> np.ndarray:
                return table[positions, targets].numpy()

        return Made()

    def adapt(self, receipt: Receipt) -> None:
        """Learn nothing."""


def run(
    words: Tokenizer, text: Text, config: MixtureConfig, **ledger: Any
) -> tuple[Score, np.ndarray, Helpers]:
    """Score with every row checked; return the costs too."""
    targets = len(text.ids) - 1
    helpers = Helpers(words, config, targets)
    book = Ledger(text, targets, row_tolerance_nats=1e-9, **{"check_positions": targets, **ledger})
    predictor, nats = Mixture(Base(text.ids), helpers), []
    for event in events(sliding_windows(targets, 64, 16), 3):
        receipt = book.commit(event, predictor.predict(book.context(event)))
        predictor.adapt(receipt)
        nats.append(receipt.nats)
    return book.finish(), np.concatenate(nats), helpers


CONFIGS = [
    {"experts": "ppm", "variant": variant, "switch": switch}
    for variant, switch in itertools.product("AB", (0.002, 1.0))
] + [
    {"experts": "tilt"},
    {"experts": "match"},
    {"experts": "match", "variant": "B"},
    {"experts": "tilt ppm match", "variant": "B", "escapes": "C"},
    {"experts": "ppm match", "exclusion": False, "order": 8},
    {"experts": "ppm match", "exclusion": False, "variant": "B", "order": 0, "escapes": "C"},
    {"experts": "ppm", "switch": 1.0, "weight": 0.0, "variant": "B"},
]


@pytest.mark.parametrize("change", CONFIGS, ids=lambda c: " ".join(map(str, c.values())))
def test_every_row_sums_to_one_and_is_what_was_committed(
    words: Tokenizer, text: Text, change: dict[str, Any]
) -> None:
    change = dict(change)
    with tiny.tuned(change):
        score, nats, helpers = run(words, text, MixtureConfig(**change))
    assert score.checked_positions == N and score.worst_sum_error < 1e-11
    assert score.worst_row_error_nats < 1e-9
    alone = -Base(text.ids).table[torch.arange(N), torch.from_numpy(text.ids[1:])].numpy()
    assert helpers.own_nats == pytest.approx(alone.sum(), rel=1e-12)
    assert np.abs(nats - alone).max() > 0.1, "the experts did nothing"


def test_the_cases_that_go_wrong_are_among_these(words: Tokenizer, text: Text) -> None:
    plain, after_bos = token_strings(words)
    targets, previous = text.ids[1:].tolist(), text.ids[:-1]
    boundary = words.table.boundary[previous]
    assert boundary.sum() > 5, "after BOS"
    assert {0, 1, 2, 3} <= set(targets), "zero bytes"
    assert set(words.byte_ids.tolist()) & set(targets), "byte pieces"
    shared = {s for s in plain if plain.count(s) > 1}
    assert any(plain[t] in shared and plain[t] for t in targets), "strings of several tokens"
    more = {s for s in after_bos if after_bos.count(s) > 1}
    assert len(more) > 1 and more != shared, "other groups after BOS"
    assert plain.count(b"") == 4 and after_bos.count(b"") == 5


@pytest.mark.parametrize("variant", ["A", "B"])
def test_weight_one_is_the_model(words: Tokenizer, text: Text, variant: str) -> None:
    config = MixtureConfig(experts="ppm", variant=variant)
    with tiny.tuned({"weight": 1.0}):
        score, nats, helpers = run(words, text, config)
    alone = -Base(text.ids).table[torch.arange(N), torch.from_numpy(text.ids[1:])].numpy()
    assert score.nats == pytest.approx(alone.sum(), rel=1e-9)
    assert nats == pytest.approx(alone, rel=1e-9, abs=1e-9)
    assert helpers.own_nats == pytest.approx(score.nats, rel=1e-12)


def formula(
    probs: np.ndarray, strings: list[bytes], reference: PlainPpm, history: bytes, weight: float
) -> list[float]:
    """Section 6.3, variant A, word by word."""

    mass = {
        prefix: math.fsum(p for p, s in zip(probs, strings, strict=True) if s.startswith(prefix))
        for prefix in {s[:n] for s in strings for n in range(len(s) + 1)}
    }
    own = {
        text: math.fsum(p for p, s in zip(probs, strings, strict=True) if s == text)
        for text in set(strings)
    }
    children = {
        prefix: frozenset(
            s[len(prefix)] for s in mass if len(s) == len(prefix) + 1 and s.startswith(prefix)
        )
        for prefix in mass
    }

    def step(prefix: bytes, symbol: int) -> float:
        share = reference.predict(history + prefix, children[prefix])[0][symbol]
        inner = math.fsum(mass[prefix + bytes([b])] for b in children[prefix])
        model = mass[prefix + bytes([symbol])] / mass[prefix]
        return weight * model + (1 - weight) * inner / mass[prefix] * share

    found = {s: math.prod(step(s[:n], s[n]) for n in range(len(s))) for s in set(strings)}
    return [found[s] * own[s] / mass[s] * p / own[s] for p, s in zip(probs, strings, strict=True)]


def test_equals_the_formula(words: Tokenizer, text: Text) -> None:
    # A switch of 1 lets every weight return at once.
    with tiny.tuned({"weight": 0.7, "switch": 1.0, "order": 3}):
        helpers = Helpers(words, MixtureConfig(experts="ppm"), N)
    base = Base(text.ids)
    strings, reference, history = token_strings(words), PlainPpm(3, "D", True), b""
    for position in range(40):
        previous, token = int(text.ids[position]), int(text.ids[position + 1])
        after = int(words.table.boundary[previous])
        if position in (0, 36):
            row = helpers.row(base.table[position].numpy(), previous)
            probs = base.table[position].exp().numpy()
            expected = formula(probs, strings[after], reference, history, 0.7)
            assert np.exp(row) == pytest.approx(expected, rel=1e-11, abs=1e-300)
        table = base.table[position : position + 1]
        helpers.start(table, np.array([token]), np.array([previous]))()
        for symbol in strings[after][token]:
            reference.learn(history[-8:], symbol)
            history += bytes([symbol])


def test_a_later_token_changes_no_earlier_cost_nor_its_own_row(
    words: Tokenizer, text: Text
) -> None:
    config = MixtureConfig(experts="ppm match tilt", variant="B")
    other = text.ids.copy()
    other[200] = (other[200] + 7) % V
    sizes = token_bytes(other[1:], other[:-1], words.table)
    changed = Text(other, sizes, int(sizes.sum()), V)
    rows: list[np.ndarray] = []
    plain = Helpers.row

    def kept(self: Helpers, log_probs_V: np.ndarray, previous: int) -> np.ndarray:
        rows.append(plain(self, log_probs_V, previous))
        return rows[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Helpers, "row", kept)
        # The model may know the truth; the experts may not.
        patch.setattr(Base, "__init__", lambda self, ids: setattr(self, "table", TABLE))
        first, second = run(words, text, config)[1], run(words, changed, config)[1]
    assert np.array_equal(first[:199], second[:199])
    assert np.array_equal(rows[199], rows[N + 199])
    assert first[199] != second[199] and not np.array_equal(first[200:], second[200:])


TABLE = torch.randn(N + 1, V, generator=torch.Generator().manual_seed(5)).double().log_softmax(-1)


def test_costs_do_not_depend_on_where_rows_are_asked(words: Tokenizer, text: Text) -> None:
    config = MixtureConfig(experts="ppm match tilt")
    every, none = (run(words, text, config, check_positions=n)[1] for n in (N, 0))
    assert np.array_equal(every, none)


def test_a_row_is_only_of_the_next_position(words: Tokenizer, text: Text) -> None:
    helpers = Helpers(words, MixtureConfig(experts="ppm"), N)
    book = Ledger(text, N)
    event = next(iter(events(sliding_windows(N, 64, 16), 1)))
    dist = Mixture(Base(text.ids), helpers).predict(book.context(event))
    dist.advance(text.ids[1:11])
    dist.row(10)
    for position in (9, 11):
        with pytest.raises(LedgerError, match="stands at position 10; it has no row"):
            dist.row(position)


def test_masses_of_both_trees(words: Tokenizer) -> None:
    tries = Tries(token_strings(words))
    probs = (torch.randn(3, V, generator=torch.Generator().manual_seed(1)) * 20).double()
    probs = probs.softmax(-1)
    for after, strings in enumerate(tries.strings):
        names = tries.trees[after].names
        ends, inner = (values.numpy() for values in tries.masses(probs, after))
        nodes = np.tile(np.arange(len(names)), 3) + int(tries.trie.root[after])
        wanted = Wanted(np.repeat(np.arange(3), len(names)), nodes, np.full(3, after))
        for ask in (tries.ask, tries.ask_sums):
            for found, slow in zip(ask(probs, wanted)(), (ends, inner), strict=True):
                assert found == pytest.approx(slow.ravel(), rel=1e-13)
        for n, name in enumerate(names):
            own = [t for t, s in enumerate(strings) if s == name]
            below = [t for t, s in enumerate(strings) if s.startswith(name) and s != name]
            assert ends[:, n] == pytest.approx(probs[:, own].sum(1).numpy(), rel=1e-12)
            assert inner[:, n] == pytest.approx(probs[:, below].sum(1).numpy(), rel=1e-12)
    # Both trees at once, as a text with several documents has them.
    mixed = Wanted(np.array([0, 1, 1, 2]), np.array([5, tries.offset, tries.offset + 3, 7]),
                   np.array([0, 1, 0]))  # fmt: skip
    for found, same in zip(tries.ask(probs, mixed)(), tries.ask_sums(probs, mixed)(), strict=True):
        assert found == pytest.approx(same, rel=1e-13)


def test_what_is_repeated_becomes_cheap(words: Tokenizer) -> None:
    draw = np.random.default_rng(2).integers(4, V, 60)
    ids = np.concatenate([[BOS], *[draw] * 4])[: N + 1]
    sizes = token_bytes(ids[1:], ids[:-1], words.table)
    source = Text(ids, sizes, int(sizes.sum()), V)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Base, "__init__", lambda self, ids: setattr(self, "table", TABLE))
        for experts in ("ppm", "match", "tilt"):
            nats = run(words, source, MixtureConfig(experts=experts), check_positions=9)[1]
            # The first time is a surprise, the fourth is not.
            assert nats[185:240].mean() < nats[:60].mean() - 0.8, experts


# ---------------------------------------------------------------------------------------------
# Beside real scorers


SCORE = ScoreConfig(seq_len=16, stride=4, batch_windows=3, check_positions=30, truncate=False)
TTT = TttConfig(
    chunk_tokens=64, lr=0.05, lora_rank=4, lora_alpha=6, lora_chunks="8", lora_documents=2,
    lora_lr=0.01,
)  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("base", ["sliding", "sgd", "lora"])
def test_beside_every_scorer(words: Tokenizer, text: Text, base: str) -> None:
    def model() -> Any:
        return tiny.alive(replace(tiny.TINY, vocab_size=V))

    asked = Evaluation(text, SCORE, TTT)
    alone = evaluate(model(), asked, base)
    config = MixtureConfig(experts="ppm match tilt", base=base)
    score, facts = evaluate_mixture(model(), asked, config, words)
    assert facts["base_bpb"] == pytest.approx(alone.bpb, rel=1e-6)
    assert score.worst_sum_error < 1e-11 and score.worst_row_error_nats < 1e-4
    assert score.bpb < alone.bpb and score.events == alone.events
    again, _ = evaluate_mixture(model(), asked, config, words)
    assert again == score


def refused() -> Iterator[tuple[list[str], str]]:
    yield ["mixture.experts=ppn"], "unknown expert in mixture.experts 'ppn'; did you mean 'ppm'"
    yield ["mixture.experts=ppm ppm"], "names an expert twice; name each once"
    yield ["prove.experts=true"], "prove.experts=true needs experts in mixture.experts"
    yield (
        ["mixture.experts=ppm", "mixture.base=sgd", "ttt.chunk_tokens=100"],
        "ttt.chunk_tokens 100 must be a multiple",
    )
    yield ["mixture.order=9"], "the setting 'mixture.order' no longer exists"


@pytest.mark.parametrize(("changes", "message"), list(refused()))
def test_settings_that_do_not_fit_are_refused(changes: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        override(Config(), changes)
    check_mixture(MixtureConfig(), TttConfig(), ScoreConfig())


@pytest.mark.parametrize("tokens", [1, 40, 3000, 60_000])
def test_hints_do_not_depend_on_how_many_places_there_are(tokens: int) -> None:
    draw = np.random.default_rng(tokens)
    pieces = draw.integers(0, 300, (12, 40))
    ids = pieces[draw.integers(0, 12, tokens // 40 + 1)].reshape(-1)[:tokens]
    sized, large = tilt.runs(tokens, 22, np.zeros), tilt.runs(10**9, 22, np.zeros)
    assert len(sized.keys) >= min(2**22, 80 * tokens) and len(large.keys) == 2**22
    found = [tilt.Tilt(2.0, tables).read(ids) for tables in (sized, large)]
    assert np.array_equal(found[0].token, found[1].token)
    assert np.array_equal(found[0].gain, found[1].gain)
    assert tokens < 1000 or np.count_nonzero(found[0].token >= 0) > 100
