"""The run folder: what is kept, what is repeated, what is recorded, and stopping half-way."""

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_run import FEW, QUICK, SLOW, quick_run, sample_little

from fairway.api import load
from fairway.base.errors import UserError
from fairway.base.files import digest_file, read_json
from fairway.base.names import CHECKPOINT, WEIGHTS
from fairway.config.settings import Config
from fairway.config.written import to_dict
from fairway.data.documents import Document
from fairway.data.folder import DataFolder
from fairway.machine.plan import Plan
from fairway.machine.ranks import Ranks
from fairway.pipeline.composing import _parts_of_packing
from fairway.pipeline.folder import RunFolder
from fairway.pipeline.run import Pipeline, open_run
from fairway.quantise.weights import void_fraction
from fairway.train.checkpoint import load_checkpoint
from fairway.train.steps import STEPS, read_steps

SCORES = {"score.raw", "score.ema", "score.quantised", "score.sliding", "score.ttt"}
EVIDENCE = {"samples", "costs", "proof", "audit"}
AFTER_PACKING = {"score.quantised", "score.sliding", "score.ttt", *EVIDENCE}
ALL = {"train", "pack", "baselines", *SCORES, *EVIDENCE}
Tiny = Callable[..., Config]
PLAN = Plan("cpu", "float32", "highest", 1, "plain")

pytestmark = pytest.mark.usefixtures("evidence_at_once")


def repeated_by(config: Config, folder: Path) -> set[str]:
    """Run all stages in a folder and return those that did any work."""
    before = RunFolder(folder).memory["stages"]
    pipeline = Pipeline(config, RunFolder(folder), lambda text: None)
    with pipeline.writing():
        pipeline.train()
        pipeline.pack()
        pipeline.score()
    after = RunFolder(folder).memory["stages"]
    return {name for name, record in after.items() if record != before.get(name)}


@pytest.fixture
def run(smoke_run: Path, tmp_path: Path) -> Path:
    """Return a finished run that may be changed."""
    return Path(shutil.copytree(smoke_run, tmp_path / "run"))


@pytest.fixture
def quick(tiny: Tiny, smoke_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a finished run that may be changed, whose stages all do little."""
    sample_little(monkeypatch)
    return Path(shutil.copytree(quick_run(tiny, smoke_run), tmp_path / "run"))


# ---------------------------------------------------------------------------------------------
# What is kept and what is repeated


def test_nothing_is_repeated_when_nothing_changed(tiny: Tiny, run: Path) -> None:
    # The page shows earlier runs beside this one, and the copy has other neighbours.
    open_run(run, [], lambda text: None).report()
    before = {file.name: digest_file(file) for file in run.iterdir() if file.name != ".lock"}
    assert repeated_by(tiny(), run) == set()
    open_run(run, [], lambda text: None).report()
    assert before == {file: digest_file(run / file) for file in before}


@pytest.mark.long
@pytest.mark.parametrize(
    ("change", "repeated"),
    [
        ("train.checkpoint_every_s=7", set()),
        ("quant.matrix_sigmas=5", {"pack", *AFTER_PACKING}),
        ("pack.codec=lzma", {"pack", *AFTER_PACKING}),
        # The artifact carries how it is meant to be scored.
        ("ttt.lr=0.01", {"score.ttt", "audit"}),
        ("ttt.method=lora", {"score.ttt", "score.documents", "audit"}),
        ("score.stride=32", {"pack", *SCORES, *EVIDENCE}),
        (
            "data.val_bytes=1000",
            {*SCORES, "text", "baselines", *EVIDENCE},
        ),
        ("audit.tokens=65", {"audit"}),
        ("prove.bytes=0", set()),
        ("score.headline=sliding", set()),
        ("train.steps=2", ALL - {"baselines"}),
        ("seed=1", ALL - {"baselines"}),
        ("runtime.attention=sdpa", ALL - {"baselines"}),
    ],
)
def test_what_a_setting_repeats(tiny: Tiny, quick: Path, change: str, repeated: set[str]) -> None:
    # Which stages are repeated does not depend on how much they do.
    assert repeated_by(tiny(*QUICK, change), quick) == repeated


def test_a_score_that_is_no_longer_asked_for_is_forgotten(tiny: Tiny, quick: Path) -> None:
    assert repeated_by(tiny(*QUICK, "ttt.method=off"), quick) == {"audit"}
    assert "score.ttt" not in RunFolder(quick).memory["stages"]


@pytest.mark.parametrize(
    ("file", "repeated"),
    [
        ("weights.safetensors", {"train"}),
        (STEPS, {"train"}),
        ("artifact.fwy", {"pack"}),
        ("tokenizer.model", {"pack"}),
    ],
)
def test_a_changed_output_is_noticed_and_made_again(
    tiny: Tiny, quick: Path, file: str, repeated: set[str]
) -> None:
    before = {name: digest_file(quick / name) for name in ("artifact.fwy", "weights.safetensors")}
    data = bytearray((quick / file).read_bytes())
    data[len(data) // 2] ^= 1
    (quick / file).write_bytes(data)
    assert repeated_by(tiny(*QUICK), quick) == repeated
    # What is made again is the same to the bit, so that nothing after it has to be.
    assert before == {name: digest_file(quick / name) for name in before}


def test_the_embedded_text_is_built_once_and_again_when_damaged(
    tiny: Tiny, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = list(DataFolder.open(data_folder).last_train_documents())[::-1]
    built: list[int] = []

    def embedded() -> list[Document]:
        built.append(1)
        return [Document(f"doc-{n}", text) for n, text in enumerate(texts)]

    monkeypatch.setattr("fairway.pipeline.text.embedded_documents", embedded)
    config = tiny("data.source=embedded", "train.steps=1", "train.warmup_steps=0")
    for _ in range(2):
        pipeline = Pipeline(config, RunFolder(tmp_path), lambda text: None)
        with pipeline.writing():
            pipeline.train()
    assert len(built) == 1
    results = RunFolder(tmp_path).memory["stages"]["data"]["facts"]
    assert results["provenance"]["corpus"] == "embedded"

    shard = tmp_path / "data" / "fairway_train_000000.bin"
    before = shard.read_bytes()
    shard.write_bytes(before[:-2] + b"\0\0")
    pipeline = Pipeline(config, RunFolder(tmp_path), lambda text: None)
    with pipeline.writing():
        pipeline.train()
    assert (len(built), shard.read_bytes()) == (2, before)


def test_a_verb_repeats_its_stage_alone(run: Path) -> None:
    pipeline = open_run(run, ["quant.matrix_sigmas=5"], lambda text: None)
    before = pipeline.folder.memory["stages"]
    with pipeline.writing():
        facts = pipeline.pack()
    after = RunFolder(run).memory["stages"]
    assert {name for name in after if after[name] != before[name]} == {"pack"}
    assert facts["digest"] == digest_file(run / "artifact.fwy") != before["pack"]["facts"]["digest"]


# ---------------------------------------------------------------------------------------------
# What is recorded

COUNTS = "bpb nats_per_token nats tokens bytes events windows checked_positions"
STAGE = {
    *COUNTS.split(),
    "worst_sum_error",
    "worst_row_error_nats",
    "file_digest",
    "seconds",
    "spending",
    "trail",
}
TOOL = {"bytes", "bpb", "seconds", "how", "text_bytes"}
TOOL |= {"primed_bytes", "primed_bpb", "primed_with_bytes"}
SCHEMA: dict[str, set[str]] = {
    "": {
        *(
            "schema",
            "recipe",
            "recipe_hash",
            "recipe_origin",
            "seed",
            "config",
            "versions",
            "machine",
            "text",
        ),
        *("model", "train", "stages", "artifact", "baselines", "weights", "matrices", "seconds"),
        *("samples", "budget", "headline", "warnings", "proof", "audit", "published_mixture"),
        "gains",
        "memory",
    },
    "config": set(to_dict(Config())),
    "machine": {"device", "dtype", "matmul", "threads", "attention", "kernels"},
    "versions": {
        *("fairway", "python", "torch", "numpy", "sentencepiece", "brotli", "safetensors"),
        "zstandard",
    },
    "text": {
        *("bytes", "tokens", "documents", "digest", "train_tokens", "train_bytes"),
        *("train_documents", "corpus_digest", "tokenizer_digest", "data_digest"),
    },
    "model": {"parameters"},
    "train": {"looping", "steps", "tokens", "seconds", "tokens_per_s", "final_loss"},
    "stages": {"raw", "ema", "quantised", "sliding", "ttt"},
    "stages.ttt": {*STAGE, "method", "changes", "estimate_s", "budget_s", "void_fraction"},
    **{f"stages.{name}": STAGE for name in ("raw", "ema", "quantised", "sliding")},
    "artifact": {
        *("bytes", "digest", "limit_bytes", "matrix_sigmas", "level", "sections"),
        *("code_bytes", "code"),
    },
    "baselines": {"xz", "brotli", "zstd", "ppmd"},
    **{f"baselines.{name}": TOOL for name in ("xz", "brotli", "zstd", "ppmd")},
    "gains": {"side_by_side", "sliding"},
    "budget": {"used_s", "limit_s"},
    "warnings": set(),
    "audit": {"passed", "verdict", "findings", "probes"},
    "proof": {
        *("method", "streams", "tokens", "bytes", "coded_bytes", "file_bytes", "bpb"),
        *("ledger_bpb", "difference_share", "frequency_bits", "code_s", "decode_s", "equal"),
        "experts",
    },
    "seconds": {
        *ALL - {"pack"},
        "calibrate",
        "estimate",
        "quantise",
        "coding",
        "statistics",
        "pack, other",
        "total",
    },
}


@pytest.fixture(scope="module")
def results(smoke_run: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(smoke_run / "results.json")
    return found


@pytest.mark.parametrize("path", SCHEMA)
def test_results_have_exactly_these_keys(results: dict[str, Any], path: str) -> None:
    node: Any = results
    for name in path.split(".") if path else []:
        node = node[name]
    assert set(node) == SCHEMA[path]


def test_results_agree_with_one_another_and_with_the_files(
    results: dict[str, Any], smoke_run: Path
) -> None:
    artifact, file = results["artifact"], smoke_run / "artifact.fwy"
    sections = sum(section["bytes"] for section in artifact["sections"])
    assert artifact["bytes"] == file.stat().st_size == sections
    assert artifact["digest"] == digest_file(file)
    for stage in results["stages"].values():
        assert stage["bytes"] == results["text"]["bytes"]
        assert stage["tokens"] == results["text"]["tokens"]
        assert stage["bpb"] == pytest.approx(stage["nats"] / 0.6931471805599453 / stage["bytes"])
        assert stage["checked_positions"] == results["config"]["score"]["check_positions"]
    assert results["train"]["steps"] == len(read_steps(smoke_run / STEPS)) == 12
    assert results["train"]["tokens"] == 12 * results["config"]["train"]["batch_tokens"]
    assert [set(sample) for sample in results["samples"]] == [{"prompt", "text"}] * 2
    seconds = dict(results["seconds"])
    assert min(seconds.values()) >= 0 and seconds["coding"] > 0
    assert seconds.pop("total") == pytest.approx(sum(seconds.values()))


def test_the_seconds_of_packing_are_those_of_its_parts(smoke_run: Path, results: Any) -> None:
    folder = RunFolder(smoke_run)
    known = folder.facts("pack")["seconds"]
    found = {name: results["seconds"][name] for name in (*known, "pack, other")}
    assert sum(found.values()) == pytest.approx(folder.seconds()["pack"])
    # Folders of before 2026-11-27 call the coding "pack".
    former = {"pack" if name == "coding" else name: taken_s for name, taken_s in known.items()}
    assert _parts_of_packing(former, folder.seconds()["pack"]) == pytest.approx(found)


def test_void_fractions_are_of_the_weights_they_name(
    results: dict[str, Any], smoke_run: Path
) -> None:
    """Of the average as it is on disk, and of the artifact as it is loaded; learning moves it."""
    saved, _ = load_checkpoint(smoke_run / WEIGHTS)
    average = [(name, w) for name, w in saved.items() if name.startswith("ema.")]
    loaded = load(smoke_run / "artifact.fwy", plan=PLAN).model.named_parameters()
    found = results["weights"]["void_fractions"]
    assert found == {"average": void_fraction(average), "artifact": void_fraction(loaded)}
    learned = results["stages"]["ttt"]["void_fraction"]
    assert abs(learned - found["artifact"]) < 0.1
    assert len({learned, *found.values()}) == 3


@pytest.mark.long
def test_results_do_not_say_where_they_were_made(
    tiny: Tiny, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample_little(monkeypatch)
    mark = "z7f3aq"
    place = tmp_path / f"place-{mark}"
    for name in ("USER", "LOGNAME", "HOME", "HOSTNAME", "FAIRWAY"):
        monkeypatch.setenv(name, str(place))
    for name in ("socket.gethostname", "platform.node", "getpass.getuser"):
        monkeypatch.setattr(name, lambda: f"name-{mark}")
    source = shutil.copytree(data_folder, place / "data")
    config = tiny(*QUICK, f"data.source={source}")
    pipeline = Pipeline(config, RunFolder(place / "run"), lambda text: None)
    with pipeline.writing():
        pipeline.walk()
    for file in ("results.json", "report.json", "report.html", "artifact.fwy", STEPS):
        data = (place / "run" / file).read_bytes()
        assert mark.encode() not in data, file
        assert str(Path(sys.prefix)).encode() not in data, file


def test_the_place_of_the_data_changes_no_result(
    tiny: Tiny, smoke_run: Path, data_folder: Path, run: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(data_folder, tmp_path / "elsewhere")
    assert repeated_by(tiny(f"data.source={moved}"), run) == set()
    open_run(run, [], lambda text: None).report()
    assert read_json(run / "results.json") == read_json(smoke_run / "results.json")


# ---------------------------------------------------------------------------------------------
# Stopping half-way


def command(folder: Path, settings: list[str], *more: str) -> list[str]:
    options = [word for setting in settings for word in ("--set", setting)]
    return ["run", "smoke", "--out", str(folder), *options, *more]


def stopped(words: list[str], number: signal.Signals) -> tuple[int, str]:
    """Start a process, send a signal after its first step line; return exit code and errors."""
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    if any(line.startswith("step ") for line in process.stdout):
        process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


@pytest.mark.long
def test_a_run_stopped_twice_ends_like_one_that_never_stopped(
    tiny: Tiny, smoke_run: Path, settings: list[str], tmp_path: Path, forked: list[str]
) -> None:
    start = [*forked, "-c", SLOW]
    said = re.compile(r"fairway: stopped after step (\d+); --resume continues\n")
    code, errors = stopped(start + command(tmp_path, settings), signal.SIGINT)
    assert (code, bool(said.fullmatch(errors))) == (130, True), errors
    assert (tmp_path / CHECKPOINT).exists()
    first = int(said.fullmatch(errors)[1])  # type: ignore[index]

    code, errors = stopped(start + command(tmp_path, settings, "--resume"), signal.SIGTERM)
    assert (code, bool(said.fullmatch(errors))) == (130, True), errors
    assert first < int(said.fullmatch(errors)[1]) < 12  # type: ignore[index]

    said_since: list[str] = []
    pipeline = Pipeline(tiny(), RunFolder(tmp_path), said_since.append)
    with pipeline.writing():
        results = pipeline.walk(resume=True)
    assert any(line.startswith("resumed at step ") for line in said_since)
    assert not (tmp_path / CHECKPOINT).exists()

    timing = ("seconds", "tokens_per_s")
    for record, expected in zip(
        read_steps(tmp_path / STEPS), read_steps(smoke_run / STEPS), strict=True
    ):
        for name in expected:
            assert name in timing or record[name] == expected[name], name
    # The same in other processes, from the first step to the last bit of the score.
    expected = read_json(smoke_run / "results.json")
    assert results["artifact"] == expected["artifact"]
    for name, stage in expected["stages"].items():
        assert results["stages"][name]["nats"] == stage["nats"]
    assert results["samples"] == expected["samples"]


def test_limits_that_are_exceeded_are_said(tiny: Tiny, run: Path) -> None:
    said: list[str] = []
    config = tiny("pack.limit_bytes=1000", "pack.code_bytes=500")
    pipeline = Pipeline(config, RunFolder(run), said.append)
    with pipeline.writing():
        size = pipeline.pack()["bytes"]
    assert f"over the limit: artifact and code exceed 1,000 bytes by {size - 500:,}" in said[-1]


def test_a_budget_that_is_exceeded_is_said(tiny: Tiny, run: Path) -> None:
    said: list[str] = []
    limits = (*FEW, "train.clock=wall", "train.budget_s=0.1", "train.reserve_s=0.0001")
    # Training keeps to its budget: calibration must be what exceeds it.
    config = tiny(*limits, "quant.calibration_tokens=32768")
    pipeline = Pipeline(config, RunFolder(run), said.append)
    with pipeline.writing():
        pipeline.train()
        facts = pipeline.pack()
    assert any(line.startswith("over budget: training and calibration took") for line in said)
    assert facts["budget"]["used_s"] > facts["budget"]["limit_s"] == 0.1


# ---------------------------------------------------------------------------------------------
# Many processes (more in test_many_ranks.py)


def test_a_process_with_other_inputs_than_the_first_is_refused(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class First:
        def tell(self, text: str) -> str:
            return json.dumps(["a key of other files", False])

    monkeypatch.setattr("fairway.pipeline.together.peers", First)
    with pytest.raises(UserError, match="process 0 has other files or settings for 'score.raw'"):
        open_run(run, [], lambda text: None).score()


def test_more_processes_than_gpus_are_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = open_run(run, [], lambda text: None)
    pipeline.ranks = Ranks(rank=6, world=8, local=2)
    cpu = pipeline.plan()
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    gpu = replace(cpu, device="cuda")
    monkeypatch.setattr("fairway.pipeline.planning._found", lambda *inputs: gpu)
    pipeline._plan = None
    with pytest.raises(UserError, match="torch sees 2 GPUs; start at most --nproc-per-node=2"):
        pipeline.plan()
