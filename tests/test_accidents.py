"""Accidents: refused and killed commands, damaged and unfinished runs, readers that leave."""

import contextlib
import json
import random
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from damage import Call, Place, contents, refused, untouched
from small_run import sample_little

from fairway.base.files import digest_json, read_json
from fairway.base.names import CHECKPOINT
from fairway.pipeline import folder as stages
from fairway.pipeline.folder import LOCK, MEMORY, RunFolder
from fairway.pipeline.run import Pipeline
from fairway.train.checkpoint import load_checkpoint, save_checkpoint
from fairway.train.steps import STEPS, read_steps

HERE = Path(__file__).parents[1]

pytestmark = pytest.mark.usefixtures("evidence_at_once")


@pytest.fixture(autouse=True)
def _samples(monkeypatch: pytest.MonkeyPatch) -> None:
    sample_little(monkeypatch)


def quiet(text: str) -> None:
    pass


# ---------------------------------------------------------------------------------------------
# What is refused, fails or is killed leaves no settings behind


REFUSED = [
    ("pack run --budget 1000", ""),
    ("pack run --set quant.matrix_sigmas=1 --set pack.limit_bytes=1000 --set quant.fit=true", ""),
    ("pack run --set model.dim=128", "run `fairway train`"),
    ("score run --set score.stride=32", "run `fairway pack`"),
    ("score run --set runtime.attention=sdpa", "run `fairway train`"),
    ("audit run --set ttt.lr=0.5", "made with other ttt"),
    ("audit run --set mixture.experts=ppm", "no finished 'score.mixture' stage"),
    ("train smoke --out run SMOKE --set train.batch_tokens=1000000", ""),
    ("train smoke --out run SMOKE --set model.vocab_size=299", "has 300 pieces"),
]


def on_its_data(place: Place) -> None:
    """Let the fixture's run find its data where it lies now."""
    folder = RunFolder(place / "run")
    config = folder.memory["config"]
    folder.remember("config", {**config, "data": {**config["data"], "source": "data"}})


@pytest.mark.parametrize(("line", "told"), REFUSED)
def test_a_refused_command_leaves_the_record_as_it_was(
    place: Place, call: Call, line: str, told: str
) -> None:
    on_its_data(place)
    before = (place / "run" / MEMORY).read_bytes()
    code, errors = call(line)
    assert code == 2 and told in errors, errors
    assert (place / "run" / MEMORY).read_bytes() == before
    assert call("report run") == (0, "")
    results = read_json(place / "run" / "results.json")
    assert results["recipe_hash"] == read_json_of_artifact(place)["recipe_hash"]


def read_json_of_artifact(place: Place) -> dict[str, Any]:
    from fairway.pack.artifact import load_artifact

    provenance: dict[str, Any] = load_artifact(place / "run" / "artifact.fwy").header["provenance"]
    return provenance


@pytest.mark.parametrize(
    ("stage", "sets", "command"),
    [
        ("score.raw", ["data.val_bytes=1000"], "fairway score"),
        ("score.sliding", ["data.val_bytes=1000"], "fairway score"),
        ("score.ttt", ["ttt.lr=0.5"], None),
        ("proof", ["prove.bytes=100"], None),
        ("audit", ["ttt.method=off"], "fairway score"),
    ],
)
def test_a_score_that_ends_half_way_is_reported_as_it_was_or_not_at_all(
    place: Place,
    call: Call,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    sets: list[str],
    command: str | None,
) -> None:
    """Killed before one of its stages: what was scored until then has other settings than the
    rest, unless nothing was scored yet."""
    on_its_data(place)
    before = RunFolder(place / "run").memory["config"]
    real = RunFolder.stage

    def killed(folder: RunFolder, name: str, *more: Any) -> Any:
        if name == stage and not folder.is_done(name, more[0]):
            raise KeyboardInterrupt
        return real(folder, name, *more)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "stage", killed)
        words = " ".join(f"--set {text}" for text in sets)
        assert call(f"score run {words}")[0] == 130
    code, errors = call("report run")
    if command is None or RunFolder(place / "run").memory["config"] == before:
        assert (code, errors) == (0, "")
        config = read_json(place / "run" / "results.json")["config"]
        section, _, rest = sets[0].partition(".")
        # A path is told as the digest of what it holds.
        del config["data"]["source"], before["data"]["source"]
        assert config[section] == before[section], rest
    else:
        assert code == 2 and f"run `{command} run` first" in errors, errors
        # The command that is offered is the one that helps.
        assert call("score run")[0] == 0
        assert call("report run") == (0, "")
        config = read_json(place / "run" / "results.json")["config"]
        section, name = sets[0].partition("=")[0].split(".")
        assert config[section][name] != before[section][name]


def test_stages_say_what_they_were_made_with(smoke_run: Path) -> None:
    memory = RunFolder(smoke_run).memory
    # Which score is claimed is no setting of a stage.
    score = {name: v for name, v in memory["config"]["score"].items() if name != "headline"}
    for stage, record in memory["stages"].items():
        if "score" in record["reads"]:
            assert record["reads"]["score"] == score, stage
    assert memory["stages"]["score.ttt"]["reads"]["ttt"] == memory["config"]["ttt"]
    assert memory["stages"]["pack"]["reads"]["quant"] == memory["config"]["quant"]


# ---------------------------------------------------------------------------------------------
# Damage


@pytest.fixture(scope="module")
def unfinished(
    tiny: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """Return the folder of a training that was stopped after its first step."""
    import threading

    from fairway.base.errors import InterruptedRun
    from fairway.train import loop as train

    @contextlib.contextmanager
    def at_once() -> Iterator[threading.Event]:
        event = threading.Event()
        event.set()
        yield event

    folder = tmp_path_factory.mktemp("unfinished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "stop_requested", at_once)
        pipeline = Pipeline(tiny("train.steps=2", "train.warmup_steps=0"), RunFolder(folder), quiet)
        with pytest.raises(InterruptedRun), pipeline.writing():
            pipeline.train()
    yield folder


@pytest.mark.parametrize("at", [0.0, 0.002, 0.01, 0.1, 0.3, 0.6, 0.9, 1.0])
@pytest.mark.parametrize("bit", [0, 6])
def test_one_bit_of_a_checkpoint_is_noticed(
    unfinished: Path, tmp_path: Path, at: float, bit: int
) -> None:
    from fairway.base.errors import UserError

    data = bytearray((unfinished / CHECKPOINT).read_bytes())
    data[min(int(at * len(data)), len(data) - 1)] ^= 1 << bit
    (tmp_path / "c").write_bytes(data)
    with pytest.raises(UserError, match="is a damaged checkpoint"):
        load_checkpoint(tmp_path / "c")


def test_any_bit_of_a_small_checkpoint_is_noticed(tmp_path: Path) -> None:
    import torch

    from fairway.base.errors import UserError

    path = tmp_path / "c"
    save_checkpoint(path, {'"digest":"': torch.ones(3)}, {"x": '"digest":"' + "0" * 64})
    assert load_checkpoint(path)[1] == {"x": '"digest":"' + "0" * 64}
    good = path.read_bytes()
    for place in range(len(good)):
        for bit in (1, 64):
            path.write_bytes(good[:place] + bytes([good[place] ^ bit]) + good[place + 1 :])
            with pytest.raises(UserError, match="is a damaged checkpoint"):
                load_checkpoint(path)
    for cut in (0, 7, 9, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:cut])
        with pytest.raises(UserError, match="is a damaged checkpoint"):
            load_checkpoint(path)


@pytest.mark.parametrize("change", [(b'"loss": ', b'"loss": 1'), (b"\n", b" \n"), (b"{", b"[")])
def test_step_records_of_an_unfinished_training_are_those_of_its_checkpoint(
    unfinished: Path, tmp_path: Path, tiny: Callable[..., Any], change: tuple[bytes, bytes]
) -> None:
    from fairway.base.errors import UserError

    run = Path(shutil.copytree(unfinished, tmp_path / "run"))
    (run / STEPS).write_bytes((run / STEPS).read_bytes().replace(*change, 1))
    pipeline = Pipeline(tiny("train.steps=2", "train.warmup_steps=0"), RunFolder(run), quiet)
    with pytest.raises(UserError, match="steps.jsonl is damaged.*--restart"), pipeline.writing():
        pipeline.train(resume=True)


@pytest.mark.parametrize("file", ["artifact.fwy", "ledger-sliding.jsonl.gz", "proof.fwp"])
def test_a_damaged_file_is_named_with_the_command_that_makes_it_anew(
    place: Place, call: Call, file: str
) -> None:
    """Not the stage that reads it, and not other settings: nobody gave any."""
    path = place / "run" / file
    good = path.read_bytes()
    command = "pack" if file == "artifact.fwy" else "score"
    for spoil, what in (
        (lambda: path.write_bytes(good[:-1] + bytes([good[-1] ^ 1])), "is not what was written"),
        (lambda: path.write_bytes(b""), "is not what was written"),
        (path.unlink, "is gone"),
    ):
        spoil()
        untouched(place, call, "report run", f"{file} {what}")
        _, said = call("report run")
        assert said.rstrip().endswith(f"run `fairway {command} run` again")
        path.write_bytes(good)
    assert call("report run") == (0, "")


def test_weights_that_are_gone_are_no_obstacle_and_damaged_ones_are(
    place: Place, call: Call
) -> None:
    weights = place / "run/weights.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    untouched(place, call, "report run", "weights.safetensors is not what was written")
    weights.unlink()
    assert call("report run") == (0, "")


def test_damaged_step_records_are_not_reported(place: Place, call: Call) -> None:
    on_its_data(place)
    data = (place / "run" / STEPS).read_bytes()
    (place / "run" / STEPS).write_bytes(data.replace(b'"loss": ', b'"loss": 1', 1))
    untouched(place, call, "report run", "steps.jsonl is not what was written")


@pytest.mark.parametrize("split", ["val"])
def test_damaged_validation_text_is_not_scored(place: Place, call: Call, split: str) -> None:
    on_its_data(place)
    shard = place / "data" / f"fairway_{split}_000000.bin"
    data = bytearray(shard.read_bytes())
    data[-1001] ^= 1
    shard.write_bytes(data)
    untouched(place, call, "score run", "is not the file that was recorded")


# ---------------------------------------------------------------------------------------------
# Runs that are not complete, and memories of strangers

VERBS = ("pack", "score", "audit", "report")


@pytest.mark.parametrize("line", [f"{verb} new" for verb in VERBS])
def test_an_unfinished_training_tells_how_to_go_on(
    place: Place, call: Call, unfinished: Path, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(unfinished, place / "new")
    code, errors = call(line)
    assert (code, errors.count("\n")) == (2, 1)
    command = errors.partition("run `")[2].partition("`")[0]
    assert shlex.split(command)[:6] == ["fairway", "run", "smoke", "--out", "new", "--resume"]


def test_the_command_that_is_told_goes_on(place: Place, call: Call, unfinished: Path) -> None:
    shutil.copytree(unfinished, place / "new")
    command = call("report new")[1].partition("run `fairway run ")[2].partition("`")[0]
    assert call(f"train {command}") == (0, "")
    assert len(read_steps(place / "new" / STEPS)) == 2
    assert "begun" not in RunFolder(place / "new").memory
    for verb, told in (("score", "run `fairway pack`"), ("report", "run `fairway pack new` first")):
        refused(call, f"{verb} new", told)


@pytest.mark.parametrize("left", [(), (LOCK,), (LOCK, MEMORY)])
def test_a_run_killed_early_is_one_sentence(
    place: Place, call: Call, left: tuple[str, ...]
) -> None:
    (place / "new").mkdir()
    if LOCK in left:
        (place / "new" / LOCK).touch()
    if MEMORY in left:
        RunFolder(place / "new").remember("stages", {})
        RunFolder(place / "new").remember("x", 1)
    told = "--resume" if left else "is not a run folder"
    for verb in VERBS:
        refused(call, f"{verb} new", told)
    refused(call, "submit new --track non_record --out o --min-seeds 1", told)
    refused(call, "compare new pr1858", "new")
    refused(call, "sample new", "has no artifact yet" if MEMORY in left else "new/artifact.fwy")
    assert call("runs .")[0] == 0


@pytest.mark.parametrize("stage", ["train", "pack", "score.raw", "score.sliding", "text", "audit"])
def test_a_run_without_a_stage_is_one_sentence(place: Place, call: Call, stage: str) -> None:
    on_its_data(place)
    folder = RunFolder(place / "run")
    names = list(folder.memory["stages"])
    kept = {n: folder.memory["stages"][n] for n in names[: names.index(stage)]}
    folder.remember("stages", kept)
    verb = stage if stage == "pack" else "score"
    command = "fairway run smoke --out run --resume" if stage == "train" else f"fairway {verb} run"
    refused(call, "report run", f"run `{command}")
    refused(call, "submit run --track non_record --out o --min-seeds 1", f"run `{command}")
    assert call("runs .")[0] == 0


ODD = [None, True, "x", [], {}, -1, 1e300, 2**70, [None], {"a": 1}]


def odd(memory: Any, draw: random.Random) -> None:
    """Put something odd in a random place of a memory."""
    node, name = memory, draw.choice([n for n in memory if n not in ("schema",)])
    while isinstance(node[name], dict | list) and node[name] and draw.random() < 0.85:
        node = node[name]
        name = draw.choice(list(node)) if isinstance(node, dict) else draw.randrange(len(node))
    if isinstance(node, dict) and draw.random() < 0.2:
        del node[name]
    else:
        node[name] = draw.choice(ODD)


def sealed_again(run: Path, memory: dict[str, Any]) -> None:
    memory.pop("digest", None)
    (run / MEMORY).write_text(json.dumps({**memory, "digest": digest_json(memory)}))


@pytest.mark.parametrize(("line", "count"), [("report run", 16), ("runs .", 80)])
def test_odd_memories_with_a_digest_that_fits_are_one_sentence(
    place: Place, call: Call, line: str, count: int
) -> None:
    """Whatever stands in a record of a stranger: a report, or one sentence; never a traceback."""
    on_its_data(place)
    draw, good = random.Random(count), (place / "run" / MEMORY).read_text()
    for _ in range(count):
        memory = json.loads(good)
        odd(memory, draw)
        sealed_again(place / "run", memory)
        code, errors = call(line)
        assert code == 0 or (code == 2 and line != "runs ."), (errors, memory)
        assert errors.count("fairway: ") == errors.count("\n") == (code == 2), (errors, memory)


def test_one_broken_run_hides_no_other(place: Place, call: Call) -> None:
    from fairway.pipeline.index import runs

    for number, value in enumerate(ODD):
        shutil.copytree(place / "run", place / f"broken-{number}")
        memory = json.loads((place / "run" / MEMORY).read_text())
        memory["stages"]["train"]["facts"]["seconds"] = value
        sealed_again(place / f"broken-{number}", memory)
    (place / "folder" / MEMORY).mkdir(parents=True)
    found = {run["name"]: run["state"] for run in runs(place.path)}
    assert found["run"] == "scored"
    assert sum("is damaged: stages.train.facts.seconds is" in s for s in found.values()) >= 9


# ---------------------------------------------------------------------------------------------
# Resuming


def test_there_is_nothing_to_resume_where_no_run_was_begun(place: Place, call: Call) -> None:
    (place / "folder").mkdir()
    for name in ("new", "folder", "data"):
        for verb in ("run", "train"):
            untouched(place, call, f"{verb} smoke --out {name} SMOKE --resume", "holds no run to")
    assert not (place / "new").exists()


@pytest.mark.parametrize("left", [(LOCK,), (LOCK, STEPS), (LOCK, ".checkpoint.safetensors.")])
def test_a_run_without_a_checkpoint_begins_anew(
    place: Place, call: Call, capsys: pytest.CaptureFixture[str], left: tuple[str, ...]
) -> None:
    (place / "new").mkdir()
    for name in left:
        (place / "new" / (f"{name}abcd1234.part" if name.endswith(".") else name)).write_text("{")
    said: list[str] = []
    from fairway.config.overrides import override
    from fairway.recipes import recipe

    words = place.words("SMOKE")
    config = override(recipe("smoke"), [w for w in words if w != "--set"])
    pipeline = Pipeline(config, RunFolder(place / "new"), said.append)
    with pipeline.writing():
        pipeline.train(resume=True)
    assert f"{place / 'new'} has no checkpoint yet: training starts at step 1" in said
    assert sorted(contents(place / "new")) == [MEMORY, STEPS, "weights.safetensors"]
    said.clear()
    with pipeline.writing():
        pipeline.train(resume=True)
    assert said == ["train: unchanged, kept"]


# ---------------------------------------------------------------------------------------------
# Leftovers


def test_a_locked_command_sweeps_what_kills_left_and_nothing_else(tmp_path: Path) -> None:
    ours = [".artifact.fwy.abcd1234", ".proof.fwp.abcd12_4", ".data.abcd1234.part"]
    files = [
        *(".run.json.abcd1234.part", ".ledger-sliding.jsonl.gz.abcd1234.part"),
        *(".checkpoint.safetensors.abcd1234.part", ".report.html.abcd1234.part"),
    ]
    theirs = [".notes.txt.abcd1234.part", ".run.json.swp", "run.json.abcd1234.part", ".git"]
    for name in ours:
        (tmp_path / name).mkdir()
        (tmp_path / name / "0").write_text("x")
    for name in (*files, *theirs):
        (tmp_path / name).write_text("x")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".data.efgh1234.part").symlink_to(tmp_path / "elsewhere")
    with RunFolder(tmp_path).locked():
        pass
    left = {path.name for path in tmp_path.iterdir()} - {LOCK}
    assert left == {*theirs, "elsewhere"}


def test_every_file_of_a_run_is_known_to_the_sweep(smoke_run: Path) -> None:
    names = [path.name for path in smoke_run.iterdir() if path.name != LOCK]
    assert len(names) > 8 and all(map(stages._OURS.fullmatch, names)), names
