"""The seconds of test-time training: an estimate, refused or met by doing less."""

from dataclasses import replace

import pytest
from learning import LORA, SCORE, SGD, T, alive, text

from fairway.base.errors import UserError
from fairway.config.checks import check_ttt
from fairway.config.overrides import override
from fairway.config.settings import Config, TttConfig
from fairway.score import ttt
from fairway.score.documents import batches, documents
from fairway.score.evaluation import Evaluation
from fairway.score.lora import DocumentDistribution, Documents, evaluate_lora
from fairway.score.predictor import Context
from fairway.score.sgd import evaluate_sgd
from fairway.score.ttt import evaluate_ttt, shrunk


@pytest.mark.parametrize("config", [SGD, LORA])
def test_an_evaluation_within_its_budget_is_left_alone(config: TttConfig) -> None:
    model = alive()
    found = evaluate_ttt(model, Evaluation(text(), SCORE, config))
    way = {"sgd": evaluate_sgd, "lora": evaluate_lora}[config.method]
    assert found.score == way(alive(), Evaluation(text(), SCORE, config))
    assert found.changes == () and 0 < found.estimate_s < config.budget_s and found.seconds > 0


def test_an_estimate_computes_no_wider_step_than_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its windows take memory that is planned for the widest step."""
    seen: list[tuple[int, int]] = []
    plain = Documents.predict

    def predict(self: Documents, context: Context, at: int) -> DocumentDistribution:
        windows = context.event.windows
        seen.append((len(windows), max(w.end - w.start for w in windows)))
        return plain(self, context, at)

    monkeypatch.setattr(Documents, "predict", predict)
    for config in (LORA, replace(LORA, lora_documents=8), replace(LORA, lora_chunks="2@8 4")):
        seen.clear()
        ttt.estimate(alive(), Evaluation(text(), SCORE, config))
        steps = [
            (len(step.rows), min(step.end, T))
            for batch in batches(documents(text().ids, 299), config, T)
            for step in batch.steps
        ]
        assert {size for size in seen if size[0] > 1} <= set(steps)
        assert max(r * n for r, n in seen) == max(r * n for r, n in steps)


def test_phases_count_in_the_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ttt, "_sequence_s", lambda *_: 1000.0)
    phases = [replace(LORA, lora_phases=n) for n in (0, 1)]
    estimates = [ttt.estimate(alive(), Evaluation(text(), SCORE, one)) for one in phases]
    # One phase, before the second of three batches: documents 0 to 2, 100 positions of 16 each.
    assert estimates[0] < 1000.0 and estimates[1] - estimates[0] == pytest.approx(6250.0, abs=100)


def test_an_estimate_above_the_budget_is_refused_with_the_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ttt, "estimate", lambda *_: 777.0)
    with pytest.raises(UserError, match=r"about 777 s, and ttt.budget_s is 600; raise it"):
        evaluate_ttt(alive(), Evaluation(text(), SCORE, SGD))


def test_less_is_done_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    estimates = iter([900.0, 700.0, 500.0])
    monkeypatch.setattr(ttt, "estimate", lambda *_: next(estimates))
    config = replace(SGD, over_budget="shrink")
    found = evaluate_ttt(alive(), Evaluation(text(), SCORE, config))
    assert found.changes == ("ttt.epochs=1", "score.stride=8") and found.estimate_s == 500.0
    monkeypatch.setattr(ttt, "estimate", lambda *_: 900.0)
    with pytest.raises(UserError, match="about 900 s even at its smallest"):
        evaluate_ttt(alive(), Evaluation(text(), SCORE, config))


def test_documents_shrink_within_a_window() -> None:
    for seq_len, stays in ((16, True), (24, True), (32, False)):
        score = replace(SCORE, seq_len=seq_len)
        assert (shrunk(score, replace(LORA, lora_chunks="16")) is None) == stays


def test_documents_shrink_by_larger_chunks() -> None:
    less = shrunk(SCORE, replace(LORA, lora_chunks="2@4 8"))
    assert less is not None and less[1].lora_chunks == "4@4 16"
    check_ttt(less[1], SCORE)
    assert shrunk(*less[:2]) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("ttt.chunk_tokens=100", "ttt.chunk_tokens 100 must be a multiple of score.seq_len 2048"),
        ("ttt.lora_targets=q w", "unknown adapter target in ttt.lora_targets 'w'"),
        ("ttt.lora_targets=q q", "must name some of q, k, v, o, mlp, head, each once"),
        ("ttt.lora_chunks=4096", "has a size of 4096, but score.seq_len is"),
    ],
)
def test_settings_that_do_not_fit_are_refused(change: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        override(Config(), ["ttt.method=sgd", change])
