"""The adapter under lm_eval: its cache, its bar, its own evaluation, its command."""

import json
import math
import os
import re
import sys
from pathlib import Path
from typing import Any

# Nothing here is fetched.
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"

import numpy as np
import pytest
import torch

pytest.importorskip("lm_eval", reason="needs the extra `harness`")

from lm_eval.api.model import CachingLM
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager
from test_harness import CLOSE, FIXED, LONG, PLAIN, asked, by_hand, loglikelihood

from fairway import harness
from fairway.harness import FairwayLM


@pytest.fixture(scope="module")
def lm(smoke_run: Path) -> FairwayLM:
    return FairwayLM(str(smoke_run), **FIXED)


def test_answers_are_kept(lm: FairwayLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = CachingLM(lm, str(tmp_path / "answers.db"))
    pairs = [asked(*pair) for pair in PLAIN[:3]]
    whole, options = [asked("The model"), asked("")], {"until": ["."], "max_gen_toks": 3}
    texts = [asked("The", options)]

    def answers() -> list[Any]:
        first = cached.loglikelihood(pairs)
        return [first, cached.loglikelihood_rolling(whole), cached.generate_until(texts)]

    try:
        before = answers()
        monkeypatch.setattr(lm, "_coster", None)
        monkeypatch.setattr(lm, "model", None)
        assert answers() == before
    finally:
        lm.set_cache_hook(type(lm.cache_hook)(None))


def test_a_bar_unless_it_is_not_wanted(lm: FairwayLM, capsys: pytest.CaptureFixture[str]) -> None:
    loglikelihood(lm, *PLAIN[:2])
    assert capsys.readouterr() == ("", "")
    lm.loglikelihood([asked(*pair) for pair in PLAIN[:2]])
    told = capsys.readouterr()
    assert "2/2" in told.err and told.out == ""


DOCUMENTS = [
    {"text": "The model learns.", "choices": [" a token", " the text", "\n"], "answer": 1},
    {"text": " It was\r\nthe text. ", "choices": [" in", " every byte is in", " "], "answer": 0},
    {"text": LONG, "choices": [" small", "", " The"], "answer": 2},
]


def task(name: str, folder: Path, **fields: Any) -> dict[str, Any]:
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "test.jsonl")}},
        "test_split": "test",
        **fields,
    }


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return three tasks over a data set on disk: of choices, of whole texts, of answers."""
    folder = tmp_path_factory.mktemp("tasks")
    lines = [json.dumps({**document, "goal": "the"}) for document in DOCUMENTS]
    (folder / "test.jsonl").write_text("\n".join(lines))
    metrics = ("word_perplexity", "byte_perplexity", "bits_per_byte")
    return [
        task("choices", folder, output_type="multiple_choice", doc_to_text="{{text}}",
             doc_to_choice="choices", doc_to_target="answer", target_delimiter="",
             metric_list=[{"metric": "acc"}]),
        task("texts", folder, output_type="loglikelihood_rolling", doc_to_text="",
             doc_to_target="text", metric_list=[{"metric": metric} for metric in metrics]),
        task("answers", folder, output_type="generate_until", doc_to_text="text",
             doc_to_target="goal", metric_list=[{"metric": "exact_match"}],
             generation_kwargs={"until": [" a", "\n"], "max_gen_toks": 8}),
    ]  # fmt: skip


@pytest.mark.long
def test_lm_eval_itself(
    smoke_run: Path, lm: FairwayLM, tasks: list[dict[str, Any]], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    found = simple_evaluate(
        task_manager=TaskManager(include_defaults=False),
        model="fairway",
        model_args={"path": str(smoke_run), **FIXED},
        tasks=tasks,
        batch_size=2,
        device="cpu",
        bootstrap_iters=0,
    )
    assert found is not None
    samples, results = found["samples"], found["results"]
    right = 0
    for sample, document in zip(samples["choices"], DOCUMENTS, strict=True):
        pairs = [(document["text"], choice) for choice in document["choices"]]
        expected = [by_hand(lm, *pair)[0] for pair in pairs]
        # lm_eval keeps answers as texts.
        told = [float(answer[0]) for answer in sample["filtered_resps"]]
        assert told == pytest.approx(expected, **CLOSE)
        right += int(np.argmax(expected)) == document["answer"]
    assert results["choices"]["acc,none"] == pytest.approx(right / len(DOCUMENTS))
    texts = [str(document["text"]) for document in DOCUMENTS]
    nats = sum(by_hand(lm, "", text)[0] for text in texts)
    size = sum(len(text.encode()) for text in texts)
    words = sum(len(re.split(r"\s+", text)) for text in texts)
    scores = results["texts"]
    assert scores["bits_per_byte,none"] == pytest.approx(-nats / size / math.log(2), rel=1e-5)
    assert scores["byte_perplexity,none"] == pytest.approx(math.exp(-nats / size), rel=1e-5)
    assert scores["word_perplexity,none"] == pytest.approx(math.exp(-nats / words), rel=1e-4)
    for sample, text in zip(samples["answers"], texts, strict=True):
        whole = lm.model.generate(text, max_tokens=8, temperature=0)
        assert sample["resps"] == [[whole.split(" a")[0].split("\n")[0]]]


def test_bad_input_is_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "cli_evaluate", lambda: FairwayLM("nowhere", dtype="half"))
    with pytest.raises(SystemExit) as ended:
        harness.main()
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told == "fairway: runtime.dtype is 'half'; choose one of auto, bfloat16, float32\n"


# lm_eval reads all its tasks first, which takes 15 s.
@pytest.mark.slow
def test_the_command_says_what_is_wrong(
    smoke_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = f"--model fairway --model_args path={smoke_run},threads=1,dtype=half --tasks arc_easy"
    monkeypatch.setattr(sys, "argv", ["lm_eval", *words.split()])
    with pytest.raises(SystemExit) as ended:
        harness.main()
    assert ended.value.code == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told == "fairway: runtime.dtype is 'half'; choose one of auto, bfloat16, float32"


def test_the_default_device_of_lm_eval_is_a_gpu_if_there_is_one(smoke_run: Path) -> None:
    found = FairwayLM(str(smoke_run), device="cuda:0", **FIXED).device
    assert found.type == ("cuda" if torch.cuda.is_available() else "cpu")
