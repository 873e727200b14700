"""Logs in all shapes that people's programs print are read; what is not read is said."""

import time
from pathlib import Path

import pytest
from audit.record import Case

from fairway.audit.records.audit import audit_record
from fairway.audit.records.coverage import gaps
from fairway.audit.records.folder import File
from fairway.audit.records.logs import Log, read_runs
from fairway.submission.published import record

WANTED = {"matrix_lr": "0.022", "num_layers": "11", "seed": "42", "ttt_enabled": "True"}
ITEMS = list(WANTED.items())
STEPS = (
    "step:1/9000 train_loss:9.0 train_time:120ms step_avg:120.00ms\n"
    "step:4600/9000 train_loss:2.9 train_time:588000ms step_avg:127.83ms\n"
)
LAST = "quantized_ttt val_loss:2.79135093 val_bpb:1.08061893 eval_time:395286ms\n"


def runs(text: str, folder: Path, name: str = "train.log") -> list[Log]:
    path = folder / name
    path.write_bytes(text.encode())
    return read_runs(File(path, name, path.stat().st_size))


SETTINGS = {
    "a list": "Hyperparameters:\n" + "".join(f"  {n}: {v}\n" for n, v in ITEMS),
    "a value that is empty": "Hyperparameters:\n  data_note:\n"
    + "".join(f"  {n}: {v}\n" for n, v in ITEMS),
    "a line of another process in between": "[rank0]: Hyperparameters:\n"
    + "[rank7]: NCCL INFO Connected all rings\n".join(f"[rank0]:   {n}: {v}\n" for n, v in ITEMS),
    "an empty value after a time": "1776142719.400 Hyperparameters:\n1776142719.4   eval_path: \n"
    + "".join(f"1776142719.401   {n}: {v}\n" for n, v in ITEMS),
    "blank lines and rules": "=== Hyperparameters ===\n\n----\n"
    + "".join(f"  {n}: {v}\n" for n, v in ITEMS),
    "equals signs": "Configuration:\n" + "".join(f"{n} = {v}\n" for n, v in ITEMS),
    "a time before every line": "2026-04-30 12:00:01,123 - INFO - Hyperparameters:\n"
    + "".join(f"2026-04-30 12:00:01,124 - INFO -   {n}: {v}\n" for n, v in ITEMS),
    "a time in brackets": "[12:00:01] Hyperparameters:\n"
    + "".join(f"[12:00:01]   {n}: {v}\n" for n, v in ITEMS),
    "seconds of the epoch": "1776142719.400 Hyperparameters:\n"
    + "".join(f"1776142719.401   {n}: {v}\n" for n, v in ITEMS),
    "colours": "\x1b[1mHyperparameters:\x1b[0m\n"
    + "".join(f"  \x1b[32m{n}\x1b[0m: {v}\n" for n, v in ITEMS),
    "a rank before every line": "[rank0]: Hyperparameters:\n"
    + "".join(f"[rank0]:   {n}: {v}\n" for n, v in ITEMS),
    "a process before every line": "(train pid=1234) Hyperparameters:\n"
    + "".join(f"(train pid=1234)   {n}: {v}\n" for n, v in ITEMS),
    "a dictionary": "config: {" + ", ".join(f"'{n}': {v}" for n, v in ITEMS) + "}\n",
    "one line of JSON": "{" + ", ".join(f'"{n}": "{v}"' for n, v in ITEMS) + "}\n",
    "JSON over lines": "config = {\n" + "".join(f'    "{n}": {v},\n' for n, v in ITEMS) + "}\n",
    "JSON with a list over lines": 'config = {\n    "steps": [\n'
    + "".join(f"      {n},\n" for n in range(9)) + "    ],\n"
    + "".join(f'    "{n}": {v},\n' for n, v in ITEMS) + "}\n",
    "a Namespace": "Namespace(" + ", ".join(f"{n}={v}" for n, v in ITEMS) + ", x='a b')\n",
    "a class of settings": "TrainConfig(" + ", ".join(f"{n}={v}" for n, v in ITEMS) + ")\n",
    "pairs": " ".join(f"{n}:{v}" for n, v in ITEMS[:2]) + "\n"
    + " ".join(f"{n}={v}" for n, v in ITEMS[2:]) + "\n",
    "a table": "Settings:\n| name | value |\n|------|-------|\n"
    + "".join(f"| {n} | {v} |\n" for n, v in ITEMS),
    "columns": "Arguments:\n" + "".join(f"  {n:<20} {v}\n" for n, v in ITEMS),
    "variables": "Environment:\n" + "".join(f"{n.upper()}={v}\n" for n, v in ITEMS),
    "titles": "Matrix lr: 0.022, Num layers: 11\nSeed: 42, Ttt enabled: True\n",
}  # fmt: skip


@pytest.mark.parametrize("shape", SETTINGS)
def test_settings_are_read_in_every_shape(shape: str, tmp_path: Path) -> None:
    (log,) = runs(SETTINGS[shape] + STEPS + LAST, tmp_path)
    assert {name: log.settings.get(name) for name in WANTED} == WANTED
    assert log.seed == 42
    assert log.coverage.share("settings") in (None, 1.0)
    assert log.steps == 4600
    assert [stage.bpb.value for stage in log.stages] == [1.08061893]


def test_a_list_ends_where_it_ends(tmp_path: Path) -> None:
    text = "Hyperparameters:\n  matrix_lr: 0.02\ntrain_shards: 80\ndone in: 3 s\n" + STEPS
    (log,) = runs(text, tmp_path)
    assert log.listed == {"matrix_lr"}
    assert log.numbers["train shards"].value == 80


SCORES = {
    "quantized val_loss:2.8 val_bpb:1.0983 eval_time:19115ms": ("quantized", 1.0983, 19.115),
    "ttt:done val_loss=2.8 val_bpb=1.0983 elapsed=272.5s": ("ttt:done", 1.0983, 272.5),
    "Final BPB: 1.0983": ("Final", 1.0983, None),
    '{"stage": "final", "val_loss": 2.8, "val_bpb": 1.0983}': (None, 1.0983, None),
    "ppm_mix bytes=29365687 mix_bpb=1.0983 ppm_only=2.27": ("ppm_mix mix_bpb", 1.0983, None),
    "  EMA BPB (no XSA): 1.0983": ("EMA", 1.0983, None),
    "val_bpb:          1.0983": ("unnamed", 1.0983, None),
    "final bits per byte: 1.0983": (None, 1.0983, None),
}


@pytest.mark.parametrize("line", SCORES)
def test_scores_are_read_under_other_names(line: str, tmp_path: Path) -> None:
    (log,) = runs(STEPS + line + "\n", tmp_path)
    (stage,) = log.stages
    name, value, seconds = SCORES[line]
    assert (stage.bpb.value, stage.running) == (value, False)
    assert stage.seconds == (pytest.approx(seconds) if seconds else None)
    assert name is None or stage.name == name
    assert log.coverage.share("scores") in (None, 1.0)


@pytest.mark.parametrize(
    "line",
    ["ttt_chunk [21/1904] bpb=0.937304 time=5.0s", "step:1000/9000 val_loss:2.4 val_bpb:1.2",
     "sliding_eval [ 10.6%] 12832/121136 windows running_bpb=1.147938",
     "batch 781/782 batch_bpb:1.0605 running_bpb:1.0605"],
)  # fmt: skip
def test_scores_on_the_way_are_no_stages(line: str, tmp_path: Path) -> None:
    (log,) = runs(STEPS + line + "\n" + LAST, tmp_path)
    assert [s.bpb.value for s in log.stages if not s.running] == [1.08061893]


@pytest.mark.parametrize(
    "line",
    ["Total submission size int8+zlib: 15828198 bytes", "Artifact: 15,828,198 bytes (15.1 MB)",
     "artifact_bytes:   15828198", "Submission size: 15828198 bytes",
     "Size check PASSED: 15828198 / 16,000,000 (98.9%)",
     "model:15755396 code:72802 total:15828198"],
)  # fmt: skip
def test_sizes_are_read_under_other_names(line: str, tmp_path: Path) -> None:
    (log,) = runs(STEPS + line + "\n" + LAST, tmp_path)
    assert log.numbers["total bytes"].value == 15_828_198
    assert log.numbers["total bytes"].line == 3


@pytest.mark.parametrize(
    "line",
    ["val_tokens: 40540160", "Validation tokens: 40,540,160",
     "val_loader:shards pattern=data/val_*.bin tokens:40540160", '"val_tokens": 40540160,'],
)  # fmt: skip
def test_tokens_scored_are_read_under_other_names(line: str, tmp_path: Path) -> None:
    (log,) = runs(line + "\n" + STEPS + LAST, tmp_path)
    assert log.numbers["val tokens"].value == 40_540_160


def test_the_model_before_it_is_packed_is_no_submission(tmp_path: Path) -> None:
    text = (
        "Serialized model: 115043859 bytes\nCode size: 67536 bytes\n"
        "Total submission size: 115111395 bytes\n"
        "Serialized model int6+zstd: 15843769 bytes\n"
        "Total submission size int6+zstd: 15911305 bytes\n"
    )
    (log,) = runs(STEPS + text + LAST, tmp_path)
    assert [number.value for number in log.packed_totals] == [15_911_305]


def test_a_bar_that_is_drawn_over_itself_is_read_to_its_end(tmp_path: Path) -> None:
    bar = "\r".join(f"eval {n}%" for n in range(0, 100, 5)) + "\r" + LAST
    (log,) = runs(STEPS + bar, tmp_path)
    assert log.stages[-1].bpb.value == 1.08061893


def test_a_table_of_steps_is_read_by_its_head(tmp_path: Path) -> None:
    text = "step,train_loss,val_bpb,train_time_ms\n1,9.0,,120\n4600,2.9,1.0806,588000\n"
    (log,) = runs(text, tmp_path, "metrics.csv")
    assert (log.steps, log.train_s.value if log.train_s else None) == (4600, 588.0)
    assert log.stages[-1].bpb.value == 1.0806


def test_lines_of_json_are_read(tmp_path: Path) -> None:
    text = (
        '{"step": 1, "train_loss": 9.0, "train_time_ms": 120}\n'
        '{"step": 4600, "train_loss": 2.9, "train_time_ms": 588000}\n{"val_bpb": 1.0806}\n'
    )
    (log,) = runs(text, tmp_path, "log.jsonl")
    assert (log.steps, log.train_s.value if log.train_s else None) == (4600, 588.0)


SCRIPT = '''import os
"""
val_bpb: 0.5 is a dream
"""
class Hyperparameters:
    matrix_lr = 0.5
def main():
    log("Code size: 1 bytes")
'''


@pytest.mark.parametrize("rule", ["=" * 100 + "\n", ""])
def test_a_script_in_a_log_is_no_log(rule: str, tmp_path: Path) -> None:
    (log,) = runs(SCRIPT + rule + "seed:42\nmatrix_lr:0.022\n" + STEPS + LAST, tmp_path)
    assert [stage.bpb.value for stage in log.stages] == [1.08061893]
    assert log.settings["matrix_lr"] == "0.022"
    assert "code bytes" not in log.numbers
    assert log.source is not None


def test_logs_of_other_scripts_are_told_apart(tmp_path: Path) -> None:
    case = Case()
    head = {s.seed: f"import os\nx = {s.seed == 42}\n{'=' * 60}\n" for s in case.seeds}
    case.write(tmp_path)
    for seed in case.seeds:
        path = tmp_path / f"train_seed{seed.seed}.log"
        path.write_text(head[seed.seed] + path.read_text())
    codes = {f.code for f in audit_record(tmp_path).findings}
    assert {"mixed-source", "other-source"} <= codes


def two_runs(second: str) -> str:
    seeds = record("pr1858").seeds
    return Case().log(seeds[0]) + second + Case().log(seeds[1])


@pytest.mark.parametrize(
    "between", ["", "\n\nRunning Python 3.12\n", "$ torchrun train_gpt.py\nseed:314\n"]
)
def test_runs_in_one_file_are_taken_apart(between: str, tmp_path: Path) -> None:
    seeds = record("pr1858").seeds
    first, second = runs(two_runs(between), tmp_path)
    assert (first.seed, second.seed) == (seeds[0].seed, seeds[1].seed)
    assert (first.steps, second.steps) == (seeds[0].steps, seeds[1].steps)
    assert second.shown == "train.log (run 2)"
    assert first.stages[-1].bpb.value == pytest.approx(seeds[0].bpb["adapted"], abs=1e-7)
    assert second.first_line > first.stages[-1].bpb.line


def test_a_run_that_begins_again_without_settings_is_another_run(tmp_path: Path) -> None:
    first, second = runs(STEPS + "Killed\n" + STEPS + LAST, tmp_path)
    assert (first.ran, second.ran, bool(first.stages), bool(second.stages)) == (
        True,
        True,
        False,
        True,
    )


def test_what_could_not_be_read_is_said(tmp_path: Path) -> None:
    strange = "".join(f"[{n}] train_loss -> 3.2 after train_time {n} s\n" for n in range(20))
    case = Case()
    case.extra = {42: strange.replace("[", "unit ").replace("]", "")}
    audit = audit_record(case.write(tmp_path))
    unread = [f for f in audit.findings if f.code == "log-unread"]
    assert [f.file for f in unread] == ["train_seed42.log"]
    assert "of the steps in this log could be read" in unread[0].why
    coverage = audit.facts["coverage"]
    assert coverage["train_seed42.log"]["steps"] < 0.9
    assert min(coverage["train_seed314.log"].values()) > 0.9


HOSTILE = {
    "bpb": "bpb_" * 250_000,
    "words": "val_bpb total submission size serialized model quant " * 20_000,
    "equals": "a=" * 500_000,
    "open brackets": "args={" + "'a':[" * 200_000,
    "blanks": (" " * 4_000 + "\n") * 250,
    "epochs": "ttt epoch 1/" * 90_000,
    "digits": "val_bpb:" + "9" * 1_000_000,
    "prefixes": "[rank0]: " * 110_000,
    "colours": "\x1b[31m" * 200_000,
    "returns": "\r".join("val_bpb:1.0" for _ in range(90_000)),
    "short lines": "x\n" * 500_000,
    "lists": "Hyperparameters:\n" * 60_000,
    "pairs": ("a:1 " * 4_000 + "\n") * 60,
    "starts": "step:100/200 train_loss:1 train_time:1ms\nstep:1/200 train_loss:1\n" * 15_000,
    "numbers": "step:9" + "9" * 400 + "/2 train_time:1e999ms val_bpb:1e400 val_tokens:" + "8" * 999,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_megabyte_of_anything_takes_little_time(kind: str, tmp_path: Path) -> None:
    start_s = time.process_time()
    runs(HOSTILE[kind] + "\n" + LAST, tmp_path)
    assert time.process_time() - start_s < 3.0


LOOSE = {
    "wide columns": ("TARGET_MB:      15.9", {"target_mb": "15.9"}),
    "bars": ("HEADS=4 | chunk_rule | SHORT_CONV=True", {"heads": "4", "short_conv": "True"}),
    "words": ("gptq:reserving 4s, effective=596000ms", {"gptq.effective": "596000ms"}),
    "brackets": ("depth:10 (num_loops=1 x num_layers=10)", {"depth": "10", "num_loops": "1"}),
    "thousands": ("grad_accum=4  effective_batch=786,432 tokens", {"effective_batch": "786,432"}),
    "a title": ("Architecture: 11L 3xMLP 512d, vocab=4096", {"architecture.vocab": "4096"}),
    "an object": ("compile:start kwargs={'backend': 'x'} dim=416", {"dim": "416"}),
}


@pytest.mark.parametrize("name", LOOSE)
def test_settings_among_other_words_are_read(name: str, tmp_path: Path) -> None:
    text, expected = LOOSE[name]
    log = runs(
        f"words without a value\n{text}\nstep:1/2 train_loss:3.0 train_time:5ms\n", tmp_path
    )[0]
    assert expected.items() <= (log.settings | log.mentioned).items()
    assert log.coverage.share("settings") in (1.0, None)


@pytest.mark.parametrize(
    "line",
    [
        "tttg: c1/334 lr:0.001000 t:0.5s", "  val_loss: 2.957501", "    result = compile_frame(",
        "https://example.org/run", "  step_avg:    84.79ms", "delta_bpb=-0.0016",
        '    "step": 0.0,',
    ],
)  # fmt: skip
def test_measures_and_code_are_no_settings(line: str, tmp_path: Path) -> None:
    log = runs(f"{line}\n" * 5 + "step:1/2 train_loss:3.0 train_time:5ms\n", tmp_path)[0]
    assert log.coverage.share("settings") is None
    assert not log.settings
    assert not log.mentioned
    assert not list(gaps("train.log", log.coverage))


def test_a_list_that_lines_interrupt_goes_on(tmp_path: Path) -> None:
    text = "Hyperparameters:\n" + "".join(f"  {n}: {v}\n" for n, v in ITEMS) + "words\n" * 9
    log = runs(text + "  warmdown_iters: 3000\n" + STEPS, tmp_path)[0]
    assert log.settings["warmdown_iters"] == "3000"
    assert "warmdown_iters" in log.listed


def test_what_a_list_says_counts_more_than_a_line_between(tmp_path: Path) -> None:
    text = "Hyperparameters:\n  ema_decay: 0.997\n  seed: 1\nema_decay:0.5 (of the copy)\n"
    log = runs(text + "step:1/2 train_loss:3.0 train_time:5ms\n", tmp_path)[0]
    assert log.settings["ema_decay"] == "0.997"


@pytest.mark.parametrize(
    "line",
    [
        "total_artifact_bytes: 16,071,408", "Total bytes (model + code): 16071408",
        "compressed: 15990000 code: 81408 total: 16071408 bytes", "model+code = 16,071,408 bytes",
        "Serialized zstd-22: 15990000 bytes  Total: 16071408 bytes", "Artifact: 16,071,408 bytes",
    ],
)  # fmt: skip
def test_totals_are_read_in_every_shape(line: str, tmp_path: Path) -> None:
    assert [n.value for n in runs(f"{line}\n{STEPS}", tmp_path)[0].totals] == [16_071_408]


@pytest.mark.parametrize(
    ("name", "adapts"),
    [
        ("ttt epoch {}/3", True), ("[TTT] epoch {} of 3: loss=2", True),
        ("val_finetune epoch={}/3", True), ("sgd_on_val epoch {}/3", True),
        ("evaluated on val, epoch {}/3", False), ("epoch {}/3 val_loss:2.1", False),
    ],
)  # fmt: skip
def test_epochs_over_the_text_are_told_from_others(name: str, adapts: bool, tmp_path: Path) -> None:
    lines = "".join(name.format(n) + "\n" for n in (1, 2, 3))
    found = runs(STEPS + lines + LAST, tmp_path)[0].epochs
    assert [one.epoch for one in found] == ([1, 2, 3] if adapts else [])
