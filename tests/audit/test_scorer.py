"""Scorers of others: functions, programs that speak JSON lines, and Fairway's own evaluations."""

import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from audit.honest import Adaptive, V, WithRows, text
from tiny import TINY, alive

from fairway.audit.scorers.bench import Bench, exercise
from fairway.audit.scorers.predictors import LedgerScorer, scorer_of, small
from fairway.audit.scorers.probes import audit_scorer
from fairway.audit.scorers.scorer import FromCallable, RowScorer, open_program, scored
from fairway.audit.scorers.verdicts import Probe, verdict_of
from fairway.base.arrays import FloatArray, IntArray
from fairway.base.errors import UserError
from fairway.config.settings import BOS_ID, ScoreConfig, TttConfig
from fairway.model.paths import prepare
from fairway.score import lora, sliding
from fairway.score.sliding import whole_row

PROGRAM = """
import json, sys
import numpy as np
from audit.honest import Adaptive, WithRows
scorer = WithRows()
print(json.dumps({{"vocab_size": 24, "rows": {rows}, "bytes": True}}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    ids = np.array(asked["ids"])
    if "bytes" in asked:
        print(json.dumps({{"bytes": (1 + ids[1:] % 3).tolist()}}), flush=True)
    elif "row" in asked:
        print(json.dumps({{"row": scorer.row(ids, asked["row"]).tolist()}}), flush=True)
    else:
        index, nats = zip(*scorer.score(ids))
        print(json.dumps({{"nats": {cost}, "index": [int(i) for i in index]}}), flush=True)
"""


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    return [sys.executable, str(tmp_path / "scorer.py")]


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the command of a program that imports no package and so starts at once."""
    # How long to wait for the end of a program that has closed its output.
    monkeypatch.setattr("fairway.audit.scorers.pipe._LAST_S", 0.1)
    return [sys.executable, "-S", "-E", str(tmp_path / "scorer.py")]


def written(command: list[str], rows: str = "False", cost: str = "list(nats)") -> list[str]:
    Path(command[1]).write_text(PROGRAM.format(rows=rows, cost=cost))
    return command


def test_a_function_is_a_scorer() -> None:
    ids = text(0)
    scorer = FromCallable(V, lambda ids: [cost for _, cost in Adaptive().score(ids)])
    assert verdict_of(audit_scorer(Bench(scorer, ids, budget_s=1, thorough=False))) == "valid"
    half = FromCallable(V, lambda ids: [0.5 * cost for _, cost in Adaptive().score(ids)])
    assert verdict_of(audit_scorer(Bench(half, ids, budget_s=1))) == "invalid"


@pytest.mark.parametrize("rows", ["False", "True"])
def test_a_program_is_a_scorer(command: list[str], rows: str) -> None:
    program = open_program(written(command, rows))
    try:
        assert isinstance(program, RowScorer) == (rows == "True")
        ids = text(0)
        ours, theirs = scored(WithRows(), ids), scored(program, ids)
        assert np.array_equal(ours.nats, theirs.nats)
        found = audit_scorer(Bench(program, ids, budget_s=0))
        assert verdict_of(found) == "valid"
    finally:
        program.close()


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("print('hello')", "wrote 'hello', which is not a JSON object"),
        ("print('{}')", "must begin with"),
        ("print('{\"vocab_size\": NaN}')", "wrote NaN, which is not a number"),
        ("print('{\"vocab_size\": 1e9}')", "V from 2 to 1048576"),
        ("print('{\"vocab_size\": 99999999}')", "V from 2 to 1048576"),
        ("print('[' * 60_000)", "which is not a JSON object"),
        ("print('9' * 6_000)", "which is not a JSON object"),
        ("import sys; sys.stdout.buffer.write(b'\\xff\\xfe\\n')", "which is not a JSON object"),
        ("while True: print('x' * 4096, end='')", "a line of more than 65,536 bytes"),
        ("", "has ended with exit code 0 and gave no answer"),
        ("raise SystemExit(3)", "has ended with exit code 3 and gave no answer"),
        (
            "import os, time; os.close(1); time.sleep(60)",
            "has closed its output and gave no answer",
        ),
        (
            "import time; time.sleep(60)",
            "gave no answer within 0.3 s; it must write the first line",
        ),
        (
            "import sys; sys.stdin.read()",
            "gave no answer within 0.3 s; it must write the first line",
        ),
        (
            "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)",
            "gave no answer within 0.3 s",
        ),
    ],
)
def test_programs_that_say_something_else_are_refused(
    bare: list[str], source: str, why: str
) -> None:
    Path(bare[-1]).write_text(source)
    start_s = time.monotonic()
    with pytest.raises(UserError, match=why) as caught:
        open_program(bare, budget_s=0.3 if "0.3 s" in why else 30.0)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert time.monotonic() - start_s < 29


HELLO = 'print(json.dumps({"vocab_size": 24, "rows": True}), flush=True)\n'
EACH = "for line in sys.stdin:\n    n = len(json.loads(line)['ids'])\n    "


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("print(json.dumps({'nats': [1.0] * n}), flush=True)", r"\d+ numbers as 'nats'"),
        ("print(json.dumps({'nats': [1.0] * 9999}), flush=True)", "9999 numbers as 'nats'"),
        ("print('{\"nats\": [' + '1,' * 999999 + '1]}', flush=True)", "wrote a line of more than"),
        ("print('{\"nats\": [NaN]}', flush=True)", "wrote NaN, which is not a number"),
        ("print('{\"nats\": [' + '9' * 999 + ']}', flush=True)", "no list of numbers"),
        ("print('{\"nats\": [1, true]}', flush=True)", "no list of numbers as 'nats'"),
        ('print(\'{"nats": [1, 1], "index": [1]}\', flush=True)', "2 costs and 1 places for"),
        ('print(\'{"nats": [1], "index": [99999]}\', flush=True)', "99999 among them"),
        ('print(\'{"nats": [1], "index": [1.5]}\', flush=True)', "1.5 among them"),
        ('print(\'{"nats": [1], "index": [Infinity]}\', flush=True)', "inf among them"),
        ("print('{\"nats\": [1]}\\nmore', flush=True)", "wrote 'more' without a question"),
        ("sys.exit(7)", "has ended with exit code 7 and gave no answer"),
        ("time.sleep(60)", "gave no answer within 0.2 s"),
        ("os.close(1); time.sleep(60)", "has closed its output"),
    ],
)
def test_answers_that_cannot_be_are_told_in_time(bare: list[str], answer: str, why: str) -> None:
    Path(bare[-1]).write_text("import json, os, sys, time\n" + HELLO + EACH + answer)
    program = open_program(bare, budget_s=30.0)
    if "0.2 s" in why:
        program._pipe._answer_s = 0.2
    start_s = time.monotonic()
    with pytest.raises(UserError, match=why) as caught:
        for _ in range(2):
            scored(program, text(0))
    program.close()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert time.monotonic() - start_s < 29


def test_a_program_that_reads_nothing_is_not_waited_for(bare: list[str]) -> None:
    Path(bare[-1]).write_text("import json, time\n" + HELLO + "time.sleep(60)")
    program = open_program(bare, budget_s=30.0)
    program._pipe._answer_s = 0.2
    with pytest.raises(UserError, match="gave no answer within 0.2 s"):
        scored(program, np.ones(100_000, np.int64))
    program.close()


def test_a_slow_program_has_three_times_its_budget(bare: list[str]) -> None:
    slow = "time.sleep(0.15); print(json.dumps({'nats': [1.0] * (n - 1)}), flush=True)"
    Path(bare[-1]).write_text("import json, sys, time\n" + HELLO + EACH + slow)
    program = open_program(bare, budget_s=1.0)
    # As if it had answered for so long before.
    program._pipe._used_s = 2.6
    with pytest.raises(UserError, match="took 3 s, three times the budget"):
        for _ in range(20):
            scored(program, text(0))
    program.close()


@pytest.mark.parametrize("stubborn", ["", "signal.signal(15, signal.SIG_IGN)"])
@pytest.mark.parametrize("ending", ["close", "refusal"])
def test_the_programs_children_end_with_it(
    bare: list[str], tmp_path: Path, stubborn: str, ending: str
) -> None:
    told = tmp_path / "pids"
    first = "json.dumps({'vocab_size': 24})" if ending == "close" else "'junk'"
    source = f"""
import json, os, signal, sys, time
{stubborn}
child = os.fork()
with open({str(told)!r}, "a") as stream:
    stream.write(f"{{os.getpid()}}\\n")
if not child:
    time.sleep(60)
while len(open({str(told)!r}).readlines()) < 2:
    time.sleep(0.01)
print({first}, flush=True)
time.sleep(60)
"""
    Path(bare[-1]).write_text(source)
    start_s = time.monotonic()
    if ending == "close":
        open_program(bare, budget_s=30.0).close()
    else:
        with pytest.raises(UserError, match="junk"):
            open_program(bare, budget_s=30.0)
    pids = [int(line) for line in told.read_text().split()]
    assert len(pids) == 2
    while any(map(goes_on, pids)):
        assert time.monotonic() - start_s < 29
        time.sleep(0.01)


@pytest.mark.parametrize("leaves", ["program", "child", "both"])
def test_a_child_that_leaves_its_group_ends_too(
    bare: list[str], tmp_path: Path, leaves: str
) -> None:
    """One that has a session of its own, whose parent has ended, and whose program has too."""
    told = tmp_path / "pid"
    source = f"""
import json, os, time
if not os.fork():
    if {leaves != "program"}:
        os.setsid()
    if os.fork():
        os._exit(0)
    with open({str(told)!r}, "w") as stream:
        stream.write(f"{{os.getpid()}}\\n")
    time.sleep(60)
os.wait()
while not os.path.exists({str(told)!r}) or not open({str(told)!r}).read().endswith("\\n"):
    time.sleep(0.01)
print(json.dumps({{"vocab_size": 24}}), flush=True)
if {leaves == "child"}:
    time.sleep(60)
"""
    Path(bare[-1]).write_text(source)
    program = open_program(bare, budget_s=30.0)
    if leaves != "child":
        program._pipe._process.wait(20)
    program.close()
    start_s = time.monotonic()
    while goes_on(int(told.read_text())):
        assert time.monotonic() - start_s < 10
        time.sleep(0.01)


@pytest.mark.long
def test_a_program_says_bytes_and_is_started_anew(command: list[str]) -> None:
    ids = text(0)
    program = open_program(written(command), budget_s=30.0)
    true = int((1 + ids[1:] % 3).sum())
    try:
        for more, verdict in ((0, "valid"), (1, "invalid")):
            bench = Bench(program, ids, budget_s=0.0, text_bytes=true + more)
            found = {p.name: p for p in audit_scorer(bench)}
            assert found["P7 bytes"].verdict == verdict
            assert f"{true:,} bytes" in found["P7 bytes"].why
            assert "of a scorer started anew or copied" in found["replay"].why
    finally:
        program.close()


def goes_on(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_a_program_that_ends_or_errs_is_told(command: list[str], tmp_path: Path) -> None:
    program = open_program(written(command, cost="'much'"))
    with pytest.raises(UserError, match="no list of numbers as 'nats'"):
        scored(program, text(0))
    program.close()
    with pytest.raises(UserError, match="cannot start"):
        open_program([str(tmp_path / "none")])


def test_texts_that_cannot_be_used_are_refused() -> None:
    with pytest.raises(UserError, match="too short"):
        Bench(Adaptive(), text(0)[:5])
    with pytest.raises(UserError, match="has tokens up to 99"):
        Bench(Adaptive(), np.array([1, 2, 99, 3, 4, 5, 6, 7]))


def test_a_large_vocabulary_is_sampled_and_told_apart() -> None:
    """Most of 3,000 tokens share what little the frequent ones leave."""
    size = 3000
    ids = np.array([1, *np.random.default_rng(0).integers(2, 12, 60)])

    def costs(ids: np.ndarray, excess: float) -> list[float]:
        frequent = (ids[1:] >= 2) & (ids[1:] < 12)
        p = np.where(frequent, 0.09, 0.1 / (size - 10)) + excess
        return (-np.log(p)).tolist()

    def probed(excess: float) -> Probe:
        scorer = FromCallable(size, lambda ids: costs(ids, excess))
        bench = Bench(scorer, ids, budget_s=0.5, thorough=False, clock=time.process_time)
        return {p.name: p for p in audit_scorer(bench)}["P1 substitution"]

    assert probed(0.0).verdict == "valid"
    # Of none of the dozen places were all candidates asked.
    assert 0 < probed(0.0).samples < 12 * size
    assert probed(0.001).verdict == "invalid"
    assert probed(0.2).verdict == "invalid"


# ---------------------------------------------------------------------------------------------
# Fairway's own


def own_scorer(
    method: str, seed: int, tokens: int = 48, dtype: torch.dtype = torch.float32, **changes: int
) -> tuple[LedgerScorer, IntArray]:
    draw = np.random.default_rng(seed)
    ids = draw.integers(2, TINY.vocab_size, tokens)
    ids[::17] = BOS_ID
    text = exercise(ids, tokens)
    score = ScoreConfig(seq_len=24, stride=8, batch_windows=2)
    ttt = TttConfig(
        lr=0.05, epochs=1, lora_rank=2, lora_alpha=3.0, lora_chunks="8", lora_documents=3,
        lora_lr=0.01, **changes,
    )  # fmt: skip
    if method == "lora, more":
        ttt, method = replace(ttt, lora_chunks="3@6 8"), "lora"
    score, ttt = small(score, ttt, len(text))
    model = alive()
    prepare(model, dtype, "plain", "plain")
    return scorer_of(model, method, score, ttt, seed), text


def own(method: str, seed: int) -> list[Probe]:
    return audit_scorer(Bench(*own_scorer(method, seed), seed, 0.0))


@pytest.mark.parametrize("method", ["sliding", "sgd", "lora"])
def test_the_beginning_of_a_score_is_that_of_the_whole(method: str) -> None:
    scorer, text = own_scorer(method, 0)
    whole = list(scorer.score(text))
    for count, until in ((1, -1), (20, -1), (None, whole[23][0])):
        part = list(scorer.score_part(text, count, until))
        assert part == whole[: len(part)] and (count or 24) <= len(part) < len(whole)
        assert until < 0 or until in dict(part)
        begun = scored(scorer, text, count, until)
        assert begun.nats.tolist() == [nats for _, nats in whole[: len(begun.nats)]]
        assert len(begun.nats) == (count or 24)


@pytest.mark.long
@pytest.mark.parametrize("method", ["sliding", "sgd", "lora", "lora, more"])
def test_fairways_own_evaluations_are_valid(method: str) -> None:
    found = own(method, 0)
    assert verdict_of(found) == "valid", [p for p in found if p.verdict != "valid"]
    assert {p.verdict for p in found} == {"valid"}


@pytest.mark.parametrize("method", ["sliding", "lora"])
@pytest.mark.parametrize(
    ("dtype", "verdict"), [(torch.bfloat16, "valid"), (torch.float32, "invalid")]
)
def test_a_step_of_bfloat16_between_batch_and_row_is_rounding(
    method: str, dtype: torch.dtype, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU products of another size move logits of 16 and more by a step of 0.125."""

    def moved(logits_V: torch.Tensor) -> FloatArray:
        signs = 2 * (torch.arange(len(logits_V)) % 2) - 1
        return whole_row(logits_V.float() + 0.1 * signs)

    for module in (sliding, lora):
        monkeypatch.setattr(module, "whole_row", moved)
    bench = Bench(*own_scorer(method, 0, dtype=dtype), 0, 0.0)
    assert verdict_of(audit_scorer(bench)) == verdict


def test_an_audit_learns_in_phases_if_the_run_does() -> None:
    plain, phased = (
        scored(*own_scorer("lora", 0, lora_phases=count, chunk_tokens=8)) for count in (0, 1)
    )
    assert not np.array_equal(plain.nats, phased.nats)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sliding", "sgd", "lora"])
@pytest.mark.parametrize("seed", range(1, 20))
def test_fairways_own_evaluations_are_valid_every_time(method: str, seed: int) -> None:
    assert verdict_of(own(method, seed)) == "valid"


def test_probed_settings_leave_room_for_three_chunks() -> None:
    score, ttt = small(ScoreConfig(), TttConfig(), 384)
    assert (score.seq_len, score.stride, ttt.chunk_tokens) == (128, 64, 128)
    score, ttt = small(ScoreConfig(seq_len=64, stride=48), TttConfig(lora_chunks="64"), 30)
    assert (score.seq_len, score.stride, ttt.lora_chunks) == (8, 2, "4")
    assert small(ScoreConfig(), TttConfig(lora_chunks="300"), 384)[1].lora_chunks == "64"
