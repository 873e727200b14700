"""The published mixture equals its formulas, and is shown to be no distribution."""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny

from fairway.config.settings import MixtureConfig, ScoreConfig, TttConfig
from fairway.data.build import DataFolder
from fairway.data.tokens import token_bytes
from fairway.model.gpt import GPT
from fairway.score.evaluation import Evaluation
from fairway.score.experts.evaluate import evaluate_published
from fairway.score.experts.published import Rule, Spread, described, spread
from fairway.score.ledger import Text
from fairway.score.sgd import evaluate_sgd
from fairway.score.sliding import evaluate_frozen

RULE = Rule(order=3, tokens=0)
MEMORY = 4_000_000_000


def transcription(
    strings: list[bytes], nats: np.ndarray, order: int, hijack: float
) -> tuple[float, int, int]:
    """Algorithms.md 6.1 and field.md B.4 by dictionaries: total nats, gates fired, low weights."""
    tables: list[dict[bytes, dict[int, int]]] = [{} for _ in range(order + 1)]
    history, total, fired, low = b"", 0.0, 0, 0
    for text, cost in zip(strings, nats.tolist(), strict=True):
        for symbol in text:
            log_model, escape, log_ppm, confidence = -cost / len(text), 0.0, None, None
            for k in range(min(order, len(history)), -1, -1):
                counts = tables[k].get(history[len(history) - k :])
                if counts is None:
                    continue
                whole = sum(counts.values()) + len(counts)
                if confidence is None:
                    confidence = max(counts.values()) / whole
                if symbol in counts:
                    log_ppm = escape + math.log(counts[symbol] / whole)
                    break
                escape += math.log(len(counts) / whole)
            if log_ppm is None:
                log_ppm = escape + math.log(1 / 256)
            confident = (confidence or 0.0) >= 0.9
            if -log_model < hijack:
                total -= log_model
                fired += 1
            else:
                weight = 0.05 if confident else 0.9
                a, b = math.log(weight) + log_model, math.log(1 - weight) + log_ppm
                total -= max(a, b) + math.log1p(math.exp(-abs(a - b)))
                low += confident
            for k in range(min(order, len(history)) + 1):
                counts = tables[k].setdefault(history[len(history) - k :], {})
                counts[symbol] = counts.get(symbol, 0) + 1
            history += bytes([symbol])
    return total, fired, low


@pytest.mark.parametrize("hijack", [0.0, 0.277])
@pytest.mark.parametrize("order", [0, 3, 5])
def test_equals_the_published_formulas(order: int, hijack: float) -> None:
    draw = np.random.default_rng(4)
    words = [b"", b" the", b" model", b"a", b"\xff", b" tokens", b"a" * 12]
    strings = [words[n] for n in draw.integers(0, len(words), 400)]
    nats = draw.exponential(2.0, 400)
    size = sum(map(len, strings))
    found = spread(strings, nats, MEMORY, {}, 800, size, Rule(order=order, hijack=hijack))
    total, fired, low = transcription(strings, nats, order, hijack or -math.inf)
    assert found.bpb == pytest.approx(total / math.log(2) / size, rel=1e-12)
    assert found.gate_share == fired / size and found.confident_share == low / size
    assert (low > 0) == (order > 0) and (fired > 0) == bool(hijack)
    paid = [cost for text, cost in zip(strings, nats.tolist(), strict=True) if text]
    assert found.model_bpb == pytest.approx(math.fsum(paid) / math.log(2) / size, rel=1e-12)
    assert found.free_tokens == strings.count(b"") > 0
    whole = found.model_bpb + found.free_bpb
    assert whole == pytest.approx(math.fsum(nats) / math.log(2) / size, rel=1e-12)
    assert (
        found.free_bpb > 0
        and found.coverage == 0.5
        and found.distribution is False
        and found.sums is None
    )


def test_the_worked_example_of_the_page() -> None:
    """docs/experts.md: "a", "b" and "ab" at 0.2, 0.2 and 0.6, after fifty times "ab"."""
    seen, row = [b"ab"] * 51, np.log([0.2, 0.2, 0.6])
    rows, rule = {50: (row, [b"a", b"b", b"ab"])}, Rule(order=1, hijack=0.0)
    found = spread(seen, np.ones(51), MEMORY, rows, 51, 102, rule)
    assert found.sums is not None
    one = 0.05 * 0.2 + 0.95 * 49 / 50
    other = 0.05 * 0.2 + 0.95 * 1 / 50 * 50 / 102
    pair = (0.05 * math.sqrt(0.6) + 0.95 * 49 / 50) * (0.05 * math.sqrt(0.6) + 0.95 * 50 / 51)
    assert [round(value, 3) for value in (one, other, pair)] == [0.941, 0.019, 0.941]
    assert found.sums.mean == pytest.approx(one + other + pair, rel=1e-12)
    assert found.sums.mean == pytest.approx(1.901, abs=5e-4)
    page = (Path(__file__).parents[2] / "docs/experts.md").read_text()
    example = page[page.index("**By hand.**") : page.index("Something must come next")]
    assert re.findall(r"(?:=|sum) +(\d\.\d+)$", example, re.M) == [
        f"{value:.3f}" for value in (one, other, pair, found.sums.mean)
    ]


def test_what_is_mixed_is_told() -> None:
    assert described("sgd") == "over test-time training (sgd), as in #1858"
    assert described("sliding").startswith(
        "over the frozen model, where #1858 mixed over test-time"
    )
    assert "training (lora)" in described("lora")
    for base in ("sliding", "lora"):
        assert described(base).endswith("(mixture.base=sgd)")


def test_learning_changes_what_is_mixed(data_folder: Path) -> None:
    """With base=sgd the model's costs are those of test-time training, as in #1858."""
    words = DataFolder.open(data_folder).tokenizer
    ids = np.concatenate([[1, *words.encode("The model learns a token.")]] * 12)
    sizes = token_bytes(ids[1:], ids[:-1], words.table)
    text = Text(ids, sizes, int(sizes.sum()), 300)
    score = ScoreConfig(seq_len=16, stride=8, check_positions=0, truncate=False)
    asked = Evaluation(text, score, TttConfig(method="sgd", chunk_tokens=32, lr=0.05), seed=1)

    def model() -> GPT:
        return tiny.alive(replace(tiny.TINY, vocab_size=300))

    found = {
        base: evaluate_published(model(), asked, MixtureConfig(base=base), words, RULE)
        for base in ("sliding", "sgd")
    }
    learned = evaluate_sgd(model(), asked)
    whole = {base: spread.model_bpb + spread.free_bpb for base, spread in found.items()}
    assert whole["sgd"] == pytest.approx(learned.bpb, rel=1e-9)
    assert whole["sgd"] < whole["sliding"] - 0.01 and found["sgd"].bpb < found["sliding"].bpb


def test_sums_exceed_one_beside_a_real_scorer(data_folder: Path) -> None:
    words = DataFolder.open(data_folder).tokenizer
    phrase = words.encode("The model learns a token, and the small text predicts it.")
    ids = np.concatenate([[1, *phrase]] * 6)
    sizes = token_bytes(ids[1:], ids[:-1], words.table)
    text = Text(ids, sizes, int(sizes.sum()), 300)
    score = ScoreConfig(seq_len=16, stride=4, batch_windows=3, check_positions=0, truncate=False)

    def model() -> object:
        return tiny.alive(replace(tiny.TINY, vocab_size=300))

    def published(rule: Rule) -> Spread:
        asked = Evaluation(text, score, TttConfig(), seed=1)
        mixture = MixtureConfig(published=True)
        return evaluate_published(model(), asked, mixture, words, rule)  # type: ignore[arg-type]

    found = published(RULE)
    plain = evaluate_frozen(model(), Evaluation(text, score, seed=1), sliding=True)  # type: ignore[arg-type]
    # Five documents begin among the targets: a score counts what the model pays for that.
    assert found.free_tokens == 5 and found.free_bpb > 0.01
    assert found.model_bpb + found.free_bpb == pytest.approx(plain.bpb, rel=1e-12)
    assert found.coverage == 1.0 and found.bytes == text.text_bytes
    assert found.sums is not None and found.sums.positions == 32
    assert found.sums.mean > 1.05 and found.sums.least <= found.sums.geometric_mean
    found = published(replace(RULE, tokens=50))
    assert found.tokens == 50 and found.coverage == 50 / (len(ids) - 1)
