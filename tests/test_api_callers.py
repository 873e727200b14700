"""Odd callers of the Python interface: wrong types, torch's states, threads and forks."""

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fairway
from fairway.api import LanguageModel, load
from fairway.base.errors import UserError
from fairway.config.settings import RuntimeConfig
from fairway.machine.plan import Plan

# The arithmetic of the fixture's run.
RUNTIME = RuntimeConfig(threads=1, dtype="float32", matmul="highest")
TEXT = "The model predicts a small token.\nIt was the text that every byte is in."


@pytest.fixture(scope="module")
def model(smoke_run: Path) -> LanguageModel:
    return load(smoke_run, runtime=RUNTIME)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        ("load(None)", "the artifact is None; give the path of a file as str or Path"),
        ("load(b'artifact.fwy')", "the artifact is b'artifact.fwy'; give the path"),
        ("load('a' * 5000)", "cannot read the artifact aaa"),
        ("load(run, tokenizer='')", "the tokenizer is ''; give the path of a file"),
        ("load(run, adapter=5)", "the adapter is 5; give the path of a file"),
        ("load(run, runtime={'device': 'cpu'})", "runtime must be a RuntimeConfig"),
        ("model.score(b'text')", "the text is of the type bytes; give str, or a list of str; dec"),
        ("model.score(None)", "the text is of the type NoneType; give str, or a list of str"),
        ("model.score({'a', 'b'})", "the text is of the type set; give str, or a list of str"),
        ("model.score({'text': 'a'})", "the text is of the type dict; give str, or a list of str"),
        ("model.score(['a', b'b'])", "document 1 is of the type bytes; give str"),
        ("model.logprobs(['a'])", "the text is of the type list; give one document as str"),
        ("model.costs('a', alternatives=-1)", "alternatives is -1; it must be a whole number"),
        ("model.generate(b'The')", "the prompt is of the type bytes; give str"),
        ("model.generate(None)", "the prompt is of the type NoneType; give str"),
    ],
)
def test_values_of_another_type_are_one_sentence(
    smoke_run: Path, model: LanguageModel, call: str, told: str
) -> None:
    with pytest.raises(UserError) as caught:
        eval(call, {"load": load, "run": smoke_run, "model": model})
    assert str(caught.value).startswith(told)


@pytest.mark.long
def test_what_the_caller_has_set_in_torch_changes_no_number(
    smoke_run: Path, model: LanguageModel
) -> None:
    def numbers() -> list[Any]:
        loaded = load(smoke_run, runtime=RUNTIME)
        found = [one.score(TEXT, sliding=way).nats for one in (model, loaded) for way in (0, 1)]
        return [*found, model.generate("The", max_tokens=5, temperature=np.float32(0.5))]

    plain = numbers()
    for way in (
        torch.autocast("cpu", dtype=torch.bfloat16),
        torch.inference_mode(),
        torch.no_grad(),
        torch.device("meta"),
        np.errstate(all="raise"),
    ):
        with way:
            assert numbers() == plain, way
    with torch.inference_mode():
        inside = load(smoke_run, runtime=RUNTIME)
    assert inside.score(TEXT).nats == model.score(TEXT).nats
    for dtype in (torch.float64, torch.float16):
        torch.set_default_dtype(dtype)
        try:
            assert numbers() == plain and torch.get_default_dtype() == dtype
        finally:
            torch.set_default_dtype(torch.float32)


def test_threads_take_turns_and_leave_the_process_as_it_was() -> None:
    other, entered = Plan("cpu", "float32", "medium", 1, "plain"), threading.Event()

    def enter() -> None:
        with other.applied():
            entered.set()

    before = torch.get_float32_matmul_precision()
    thread = threading.Thread(target=enter)
    with Plan("cpu", "float32", "highest", 1, "plain").applied():
        thread.start()
        assert not entered.wait(0.1) and torch.get_float32_matmul_precision() == "highest"
    thread.join(20)
    assert entered.is_set() and torch.get_float32_matmul_precision() == before


def test_a_fork_that_would_wait_for_ever_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fairway.machine.plan._threaded", {os.getpid() + 1})
    with (
        pytest.raises(UserError, match="forked from one .*; start it with the method 'spawn', or"),
        Plan("cpu", "float32", "highest", 2, "plain").applied(),
    ):
        pytest.fail("this would wait")
    with Plan("cpu", "float32", "highest", 1, "plain").applied():
        pass


@pytest.mark.parametrize(
    ("call", "told"),
    [
        ("run(None)", "the recipe is None; give str, as on the command line"),
        ("run('smoke', 7)", "a setting is 7; give str"),
        ("run('smoke', out=b'x')", "the folder is b'x'; give the path"),
        ("results(None)", "the run is None; give the path"),
        ("results(b'runs/a')", "the run is b'runs/a'; give the path"),
    ],
)
def test_a_run_asked_with_other_types_is_one_sentence(call: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        eval(call, {"run": fairway.run, "results": fairway.results})
    assert str(caught.value).startswith(told)


def test_numbers_without_a_float_and_floats_that_look_whole_are_told(model: LanguageModel) -> None:
    with pytest.raises(UserError, match="temperature is a number of about 401 digits; it must be"):
        model.generate("The", temperature=10**400)
    with pytest.raises(UserError, match=r"seed is 1\.0; it must be a whole number"):
        model.generate("The", seed=1.0)  # type: ignore[arg-type]
