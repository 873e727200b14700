"""Every verb of the command line, for people and with --json."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numba
import pytest
import torch
import typer.main
from audit.record import Case
from damage import FIXED, Cli, Outcome
from small_run import FEW, sample_little

from fairway.audit.findings import Finding
from fairway.audit.records import fence
from fairway.audit.records.audit import RecordAudit
from fairway.base.files import read_json
from fairway.cli import doctor
from fairway.cli import main as command_line
from fairway.cli.examples import EXAMPLES, START, recipe_lines
from fairway.config.settings import RuntimeConfig
from fairway.machine.plan import make_plan
from fairway.pack.artifact import load_artifact
from fairway.train.checkpoint import load_checkpoint
from fairway.version import VERSION

STAGES = (
    *("audit", "audit-record", "bundle", "compare", "compress", "decompress", "doctor", "export"),
    *("pack", "plan", "prove", "report", "run", "runs", "sample", "score", "seeds", "submit"),
    *("train", "tune", "unpack", "verify", "ablate", "transfer", "push", "load", "serve"),
)
HELP = """
import sys
from fairway.cli.main import main
sys.argv = ["fairway", *sys.argv[1:]]
try:
    main()
finally:
    heavy = ["torch", "numpy", "scipy", "pyarrow", "matplotlib", "sentencepiece", "huggingface_hub"]
    print([name for name in heavy if name in sys.modules], file=sys.stderr)
"""


@pytest.fixture
def run(smoke_run: Path, tmp_path: Path) -> Path:
    """Return a finished run that may be changed."""
    return Path(shutil.copytree(smoke_run, tmp_path / "run"))


@pytest.fixture
def quick(settings: list[str]) -> list[str]:
    """Return the options of the shortest run there is."""
    short = ["train.steps=2", "train.warmup_steps=0", "score.stride=64", *settings]
    return [word for setting in short for word in ("--set", setting)]


# ---------------------------------------------------------------------------------------------
# Help


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    seconds = []
    for _ in range(3):
        before = os.times()
        words = [sys.executable, "-c", HELP, "--help"]
        ended = subprocess.run(words, capture_output=True, text=True)
        after = os.times()
        # Processor time: what other processes do at the moment is not the command's fault.
        used = (after.children_user, after.children_system)
        seconds.append(sum(used) - before.children_user - before.children_system)
        assert ended.stderr == "[]\n"
    assert all(verb in ended.stdout for verb in (*STAGES, "data"))
    assert 0 < min(seconds) < 0.5


@pytest.mark.parametrize("words", ["runs .", "runs . --export csv", "data show data"])
def test_what_reads_records_alone_needs_no_torch(
    data_folder: Path, run: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    """Its import takes longer than all else that these verbs do."""
    monkeypatch.chdir(run)
    command = [
        sys.executable,
        "-c",
        HELP,
        *words.replace("show data", f"show {data_folder}").split(),
    ]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0 and "'torch'" not in ended.stderr, ended.stderr


def test_what_compares_seeds_and_audits_records_needs_no_torch() -> None:
    modules = "fairway.submission.compare, fairway.submission.seeds, fairway.audit.records.audit"
    words = [sys.executable, "-c", f"import sys, {modules}; print('torch' in sys.modules)"]
    ended = subprocess.run(words, capture_output=True, text=True)
    assert (ended.stdout, ended.stderr) == ("False\n", "")


def verbs() -> list[tuple[str, ...]]:
    """Return every verb of the command line."""
    root: Any = typer.main.get_command(command_line.app)
    return [
        (name, *inner) for name, found in root.commands.items() for inner in _inner(found) or [()]
    ]


def _inner(command: Any) -> list[tuple[str]]:
    return [(name,) for name in getattr(command, "commands", {})]


def test_all_verbs_are_there() -> None:
    data = [("data", name) for name in ("build", "fetch", "show")]
    assert sorted(verbs()) == sorted([*data, *((name,) for name in STAGES)])


@pytest.mark.parametrize("verb", verbs(), ids=" ".join)
def test_every_verb_explains_itself_and_speaks_json(cli: Cli, verb: tuple[str, ...]) -> None:
    ended = cli(*verb, "--help")
    assert ended.code == 0
    assert "--json" in ended.out
    assert ended.err == ""
    assert all(f" fairway {words} " in ended.out for words in EXAMPLES[verb[-1]])


@pytest.mark.parametrize("verb", ["run", "train", "seeds", "bundle", "ablate"])
def test_what_takes_a_recipe_lists_all(cli: Cli, verb: str) -> None:
    lines = cli(verb, "--help").out.splitlines()
    for line in recipe_lines():
        assert f" {line}".ljust(80) in lines, line


def test_help_shows_values_and_no_types(cli: Cli) -> None:
    for words in ((), ("sample",), ("data", "build")):
        shown = cli(*words, "--help").out
        assert "<" not in shown and "--help" in shown
    assert re.search(r"--tokens +N ", cli("sample", "--help").out)


COMPLETE = """
import os, sys
from fairway.cli.main import main
sys.argv = ["fairway"]
for typed in ("sc", "run --re", "ablate de"):
    words = ["fairway", *typed.split()]
    os.environ |= {"COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    try:
        main()
    except SystemExit:
        pass
"""


def test_completion_knows_verbs_options_and_recipes() -> None:
    shell = {**os.environ, "_FAIRWAY_COMPLETE": "complete_bash"}
    command = [sys.executable, "-c", COMPLETE]
    ended = subprocess.run(command, capture_output=True, text=True, env=shell, check=True)
    assert {"score", "--resume", "demo"} <= set(ended.stdout.split()), ended.stdout


def test_a_first_compilation_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    from fairway.cli import compiling

    def loop(x: float) -> float:
        return x + 1

    loop.__module__ = "fairway.nowhere"
    compiling.tell_of_compiling()
    compiling._First.told = False
    # Not kept on disk: a second run of the tests would load it instead of compiling.
    made = numba.njit(loop)
    assert made(1.0) == 2.0 and made(1) == 2
    assert capsys.readouterr().err == f"{compiling.TEXT}\n"


def test_the_version(cli: Cli) -> None:
    assert cli("--version") == Outcome(0, f"fairway {VERSION}\n", "")


@pytest.mark.parametrize("words", [(), ("data",)])
def test_nothing_asked_is_answered_with_help(cli: Cli, words: tuple[str, ...]) -> None:
    assert "Usage" in cli(*words).out


def test_the_first_lines_say_what_to_type(cli: Cli) -> None:
    lines = cli().out.splitlines()
    for words, meaning in START:
        assert sum(f"fairway {words}" in line and meaning in line for line in lines) == 1


@pytest.mark.parametrize(
    "words", [("trian", "smoke"), ("train",), ("train", "smoke", "--steps", "3"), ("data", "get")]
)
def test_what_is_no_command_is_refused(cli: Cli, words: tuple[str, ...]) -> None:
    ended = cli(*words)
    assert (ended.code, ended.out) == (2, "")
    assert "Usage" in ended.err


# ---------------------------------------------------------------------------------------------
# The verbs


@pytest.mark.usefixtures("evidence_at_once")
def test_run(cli: Cli, quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample_little(monkeypatch)
    quick = [*quick, *(word for setting in FEW for word in ("--set", setting))]
    told = cli("run", "smoke", "--out", tmp_path, *quick, "--json")
    assert told.json == read_json(tmp_path / "results.json")
    assert told.json["train"]["steps"] == 2
    assert "step 00002 100%" in told.err
    assert (tmp_path / "report.html").exists()
    again = cli("run", "smoke", "--out", tmp_path, *quick)
    assert again.code == 0
    assert "train: unchanged, kept" in again.out
    assert f"{told.json['stages']['sliding']['bpb']:.4f}" in again.out
    assert again.err == ""


def test_run_without_running(
    cli: Cli, quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # `best_8` below makes one.
    monkeypatch.setattr("fairway.bundle.build.bundle_bytes", lambda config: 20_000)
    told = cli("run", "smoke", "--dry-run", *quick, "--json").json
    assert told["config"]["train"]["steps"] == 2
    assert told["parameters"] == 135_304
    assert 0 < told["expected_artifact_bytes"] < told["limit_bytes"] == 16_000_000
    shown = cli("run", "smoke", "--dry-run").out
    assert "parameters: " in shown
    assert "train.batch_tokens" in shown
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
@pytest.mark.parametrize(
    ("recipe", "declared"),
    # A declared figure is taken as it is: tests/test_codesize.py has that without two bundles.
    [pytest.param("pr1858", 20_177, marks=pytest.mark.slow), ("best_8", None)],
)
def test_the_seed_tells_its_size_without_its_text(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, declared: int | None
) -> None:
    monkeypatch.chdir(tmp_path)
    told = cli("run", recipe, "--dry-run", "--json").json
    assert told["parameters"] == 35_944_536
    # The artifacts of the records hold 15,975,300 to 15,976,638 bytes.
    assert told["expected_artifact_bytes"] == pytest.approx(15_976_000, rel=0.02)
    assert list(tmp_path.iterdir()) == []
    # What counts as code is the file that would be shipped, unless the recipe says otherwise.
    size = cli("bundle", recipe, "--out", "bundle", "--json").json["bytes"]
    assert told["bundle_bytes"] == size == (tmp_path / "bundle/train_gpt.py").stat().st_size
    assert told["code_bytes"] == (declared or size)
    assert told["code"] == ("declared" if declared else "measured")
    if not declared:
        assert told["expected_artifact_bytes"] + size == told["limit_bytes"]


def test_train(cli: Cli, quick: list[str], tmp_path: Path) -> None:
    told = cli("train", "smoke", "--out", tmp_path, *quick, "--json")
    assert told.json["steps"] == 2
    assert told.json["tokens"] == 2 * 1024
    assert "step 00002" in told.err
    shown = cli("train", "smoke", "--out", tmp_path, *quick)
    assert f"2 steps in {told.json['seconds']:.1f} s; weights in {tmp_path}" in shown.out
    assert (tmp_path / "weights.safetensors").exists()
    assert not (tmp_path / "artifact.fwy").exists()


def test_pack(cli: Cli, run: Path) -> None:
    told = cli("pack", run, "--set", "quant.matrix_bits=5", "--json").json
    size = (run / "artifact.fwy").stat().st_size
    assert told["bytes"] == size == sum(section["bytes"] for section in told["sections"])
    shown = cli("pack", run)
    assert "artifact, byte by byte" in shown.out
    assert f"{size:,}" in shown.out


def test_pack_accounts_for_every_byte(cli: Cli, run: Path) -> None:
    artifact = run / "artifact.fwy"
    told = cli("pack", artifact, "--account", "--json").json
    assert told == cli("pack", run, "--account", "--json").json
    assert told["bytes"] == artifact.stat().st_size == sum(p["bytes"] for p in told["parts"])
    parts = {part["name"]: part for part in told["parts"]}
    codes = parts["embedding"]
    assert codes["bits_per_number"] == 8 * codes["bytes"] / codes["numbers"]
    assert 0 < codes["entropy_bits"] < 8 and parts["vectors"]["entropy_bits"] is None
    shown = cli("pack", artifact, "--account").out
    assert "order-0 entropy" in shown and f"{codes['entropy_bits']:.4f}" in shown
    refusal = cli("pack", artifact)
    assert refusal.code == 2 and "is already packed" in refusal.err


def test_unpack_writes_the_weights(cli: Cli, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "weights.safetensors"
    told = cli("unpack", run, "--out", out, "--json").json
    found, facts = load_checkpoint(out)
    loaded = load_artifact(run / "artifact.fwy")
    assert facts == loaded.header and told["tensors"] == len(found)
    assert found.keys() == loaded.state.keys()
    assert all(torch.equal(found[name], weight) for name, weight in loaded.state.items())
    for path, target, words in (
        (run / "artifact.fwy", run / "artifact.fwy", "is the artifact itself"),
        (tmp_path, out, "does not exist; name an artifact"),
    ):
        refusal = cli("unpack", path, "--out", target)
        assert refusal.code == 2 and words in refusal.err


@pytest.mark.long
def test_pack_fills_a_budget(cli: Cli, run: Path) -> None:
    budget = cli("pack", run, "--json").json["bytes"] - 5000
    told = cli("pack", run, "--budget", str(budget), "--json").json
    assert 0.99 * budget < told["bytes"] <= budget == told["limit_bytes"]
    refused = cli("pack", run, "--budget", "3_000")
    assert refused.code == 2
    assert "even at the coarsest steps, more than the budget of 3,000" in refused.err


def test_score_a_run(cli: Cli, run: Path) -> None:
    told = cli("score", run, "--json").json
    results = read_json(run / "results.json")
    assert told == {"stages": results["stages"], "text": results["text"]}
    assert f"{told['stages']['sliding']['bpb']:.4f}" in cli("score", run).out


def test_score_an_artifact_on_texts(cli: Cli, run: Path, tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("The model predicts a token.\n")
    lines = tmp_path / "b.jsonl"
    lines.write_text(json.dumps({"text": "It was every byte."}) + "\n")
    words = ("score", run / "artifact.fwy", text, lines, *FIXED.split())
    told = cli(*words, "--json").json
    assert told["bytes"] == len("The model predicts a token.\nIt was every byte.")
    assert told["bpb"] == pytest.approx(told["nats"] / told["bytes"] / 0.6931471805599453)
    assert cli(*words).out == f"{told['bpb']:.4f} bits per byte on {told['bytes']} bytes\n"
    assert cli("score", run, text, lines, *FIXED.split(), "--json").json == told
    named = cli(*words, "--tokenizer", run / "tokenizer.model", "--json").json
    assert named == told


def test_sample(cli: Cli, run: Path) -> None:
    words = ("--prompt", "The model", "--tokens", 9, "--seed", 4, "--top-k", 20, *FIXED.split())
    told = cli("sample", run, *words, "--json").json
    assert told["prompt"] == "The model"
    assert told["text"]
    assert cli("sample", run / "artifact.fwy", *words).out == f"The model{told['text']}\n"
    greedy = ("--prompt", "The model", "--tokens", 9, "--temperature", 0, *FIXED.split())
    assert cli("sample", run, *greedy, "--seed", 1).out == cli("sample", run, *greedy).out


def test_report(cli: Cli, run: Path) -> None:
    for name in ("report.html", "report.json", "results.json"):
        (run / name).unlink()
    assert cli("report", run, "--json").json == {"report": str(run / "report.html")}
    assert all((run / name).exists() for name in ("report.html", "report.json", "results.json"))
    assert cli("report", run).out == f"report {run / 'report.html'}\n"


def test_compare(cli: Cli, run: Path) -> None:
    told = cli("compare", run, "pr1858", "--json").json
    assert told["b"]["figures"]["bpb, adapted"]["seeds"] == 3
    ended = cli("compare", run, "pr1858")
    rows = [[cell.strip() for cell in line.split("│")] for line in ended.out.splitlines()]
    # Test-time training of a run stands beside that of the record.
    for name, theirs in (("bpb, sliding", 1.0822), ("bpb, adapted", 1.0810)):
        bpb = told["a"]["figures"][name]["mean"]
        off, part = bpb - theirs, bpb / theirs - 1
        wanted = [f"{bpb:.4f}", f"{theirs:.4f} (sd 0.0004)", f"{off:+.4f}", f"{part:+.2%}"]
        found = next(row[2:6] for row in rows if name in row)
        assert [cell[:5] for cell in found] == [cell[:5] for cell in wanted]
    assert not [line for line in told["cautions"] if "does not have" in line]
    lines = ended.out.splitlines()
    first = lines.index(f"- {told['cautions'][0]}")
    assert lines[first:-1] == [f"- {line}" for line in told["cautions"]]
    # One run is no sample.
    assert told["statistics"] is None and lines[-1].startswith("no test: it takes two seeds")
    refused = cli("compare", run, "pr1")
    assert (refused.code, refused.out) == (2, "")
    assert "unknown run folder or published record 'pr1'" in refused.err


def test_audit_a_run(cli: Cli, run: Path) -> None:
    kept = read_json(run / "results.json")["audit"]
    assert cli("audit", str(run), "--json").json == kept
    shown = cli("audit", str(run))
    assert shown.code == 0 and f"audit: {kept['verdict']}" in shown.out
    assert "P1 substitution" in shown.out
    # An edited ledger, and a run that is therefore invalid.
    trail = run / "ledger-sliding.jsonl.gz"
    trail.write_bytes((run / "ledger-raw.jsonl.gz").read_bytes())
    again = cli("audit", str(run), "--set", "audit.budget_s=0", "--json")
    assert again.code == 1
    facts = json.loads(again.out)
    assert (facts["passed"], facts["verdict"]) == (False, "invalid")
    wrong = [probe for probe in facts["probes"] if probe["verdict"] == "invalid"]
    assert [(probe["stage"], probe["name"]) for probe in wrong] == [("sliding", "P4 ledger")]
    assert [found["code"] for found in facts["findings"]] == ["declared-code", "no-probes"]


def test_audit_a_program(cli: Cli, tmp_path: Path) -> None:
    program, ids = tmp_path / "scorer.py", tmp_path / "ids.json"
    ids.write_text(json.dumps([1, *range(2, 12)]))
    program.write_text(
        "import json, math\nprint(json.dumps({'vocab_size': 12}), flush=True)\n"
        "while True:\n  ids = json.loads(input())['ids']\n"
        "  print(json.dumps({'nats': [math.log(12)] * (len(ids) - 1)}), flush=True)\n"
    )
    words = ["audit", "--program", f"{sys.executable} {program}", "--tokens", str(ids)]
    found = cli(*words, "--budget", "1", "--json").json
    assert (found["verdict"], found["passed"]) == ("valid", True)
    program.write_text(program.read_text().replace("math.log(12)", "2.0"))
    assert cli(*words, "--budget", "1").code == 1


def test_audit_records(cli: Cli, tmp_path: Path) -> None:
    good, bad = Case().write(tmp_path / "good"), Case().change(42, artifact_bytes=16_020_000)
    page = tmp_path / "page.html"
    found = cli("audit-record", str(good), "--json")
    assert found.code == 0 and json.loads(found.out)[0]["valid"] is True
    found = cli("audit-record", str(good), str(bad.write(tmp_path / "bad")), "--html", str(page))
    assert found.code == 1
    assert "good: nothing invalid, and nothing to ask about" in found.out
    assert "bad: invalid: more bytes than the limit (submission.json)" in found.out
    assert "Ask: Which file is submitted" in found.out and "1 invalid, 1 clean" in found.out
    assert "2 records, 1 invalid, 1 clean" in page.read_text()
    assert "train_seed42.log:" in page.read_text()


def test_audit_a_log_a_script_and_a_folder_of_records(cli: Cli, tmp_path: Path) -> None:
    for number in range(7):
        case = Case().change(42, train_s=610.0) if number == 3 else Case()
        case.write(tmp_path / "records" / "track" / f"r{number}")
    parent, log = tmp_path / "records", "track/r3/train_seed42.log"
    found = cli("audit-record", str(parent))
    assert found.code == 1 and "1 invalid, 6 clean" in found.out
    lines = found.out.splitlines()
    assert lines[0] == "7 records were found below what was named; each is audited."
    assert "r3: invalid: training over its budget" in lines[1]
    assert "[train-time]" not in found.out
    assert "[train-time]" in cli("audit-record", str(parent), "--all").out
    for words in (("audit", "--log"), ("audit-record",)):
        found = cli(*words, str(parent / log))
        assert found.code == 1 and "[train-time]" in found.out
        assert "[no-readme]" not in found.out and "[no-claim]" not in found.out
    words = [w for n in (0, 1) for w in ("--log", str(parent / f"track/r{n}/train_seed42.log"))]
    assert len(json.loads(cli("audit", *words, "--json").out)) == 2
    assert cli("audit-record", str(parent / "track/r0/train_gpt.py")).code == 0
    for wrong in (["audit", "--log", str(parent)], ["audit", "x", "--log", str(parent / log)],
                  ["audit-record", str(tmp_path / "none")]):  # fmt: skip
        assert cli(*wrong).code == 2


def test_a_record_that_cannot_be_audited_does_not_hide_the_others(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = Case().write(tmp_path / "good"), Case().write(tmp_path / "bad")
    opened = fence.Reader.audit

    def audited(self: fence.Reader, path: Path) -> RecordAudit:
        if path == bad:
            return RecordAudit(path, (Finding("warning", "not-audited", "it took too long"),))
        return opened(self, path)

    monkeypatch.setattr(fence.Reader, "audit", audited)
    found = cli("audit-record", str(bad), str(good))
    assert found.code == 2
    assert "bad: could not be judged: it took too long" in found.out
    assert "good: nothing invalid" in found.out


def test_doctor(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    fixed = RuntimeConfig(threads=1, dtype="float32", matmul="highest")
    monkeypatch.setattr(doctor, "make_plan", lambda config: make_plan(fixed))
    monkeypatch.setitem(doctor._ALLOWANCES_S, "cpu", 0.02)
    told = cli("doctor", "--json").json
    assert told["a run would use"].startswith("cpu, 1 threads, float32")
    assert told["version of fairway"] == VERSION
    assert "GFLOP/s in float32" in told["matrix products"]
    # Measured once.
    monkeypatch.setattr(doctor, "examine", lambda: told)
    shown = cli("doctor").out.splitlines()
    assert [line.partition(":")[0] for line in shown] == list(told)
