"""From runs to a record that holds; whatever a reviewer must refuse is refused before."""

import itertools
import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from digits import Place, numbers, unnoticed
from everywhere import take_evidence
from small_run import sample_little

from fairway.audit.records.audit import audit_record
from fairway.base.errors import UserError
from fairway.base.files import read_json, write_json
from fairway.base.units import bits_per_byte
from fairway.config.settings import Config
from fairway.pipeline.folder import RunFolder
from fairway.pipeline.run import Pipeline
from fairway.submission import texts
from fairway.submission.submission import CLAIM, DIGESTS, Claim, seal, submit
from fairway.submission.verify import judged, prediction_margin, verify

ONE = Claim("A tiny record", "non_record", author="A. Author", min_seeds=1, with_artifacts=True)


@pytest.fixture(scope="module")
def smoke_run(
    smoke_run: Path, tiny: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return the folder of a finished smoke run that counts its own bundle."""
    folder = Path(shutil.copytree(smoke_run, tmp_path_factory.mktemp("counted") / "smoke"))
    pipeline = Pipeline(tiny("pack.code_bytes=auto"), RunFolder(folder), lambda text: None)
    with pytest.MonkeyPatch.context() as patch, pipeline.writing():
        take_evidence(smoke_run, patch)
        sample_little(patch)
        pipeline.walk()
    return folder


@pytest.fixture(scope="module")
def made(smoke_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the record of the smoke run, whoever is working on the sources at the moment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fairway.submission.submission._commit", lambda: "0" * 40)
        out = tmp_path_factory.mktemp("records") / "one"
        submit([smoke_run], ONE, out, lambda text: None)
    return out


@pytest.fixture
def record(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "record"))


@pytest.mark.long
def test_a_record_holds_and_its_artifact_scores_the_same(
    made: Path, smoke_run: Path, data_folder: Path
) -> None:
    found = verify(made, rescore=data_folder)
    assert found.faults == () and found.holds
    assert found.notes == ("the bundle follows from the installed sources, to the byte",)
    assert found.repeated is not None and found.repeated["exact"]
    # One seed here, and the text is not that of the challenge, whose bytes are known.
    assert {finding.code for finding in audit_record(made).findings} <= {
        "few-seeds",
        "no-denominator",
    }
    claim, results = read_json(made / CLAIM), read_json(smoke_run / "results.json")
    assert claim["val_bpb"] == results["stages"]["ttt"]["bpb"]
    told, gained = (made / "README.md").read_text(), results["gains"]
    assert f"| over windows side by side | {gained['side_by_side']:.6f} |" in told
    assert f"| over the sliding window | {gained['sliding']:.6f} |" in told
    assert (
        claim["bytes_total"]
        == results["artifact"]["bytes"] + (made / "train_gpt.py").stat().st_size
    )


@pytest.mark.parametrize("step", ["_require_budgets", "_dry_run", "seal", "_require_clean"])
def test_a_refused_record_leaves_nothing(
    made: Path, smoke_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Nor does one that was killed before: the next one sweeps."""

    def refuse(*_: object) -> None:
        assert len(list(tmp_path.iterdir())) == 1, "the folder is written beside its place"
        raise UserError("refused")

    left = tmp_path / ".record.k1lled00.part"
    left.mkdir()
    (left / "train_gpt.py").write_text("half")
    monkeypatch.setattr("fairway.submission.submission._commit", lambda: "0" * 40)
    # It takes seconds, and the record above has passed it.
    monkeypatch.setattr("fairway.submission.submission._dry_run", lambda *_: None)
    monkeypatch.setattr(f"fairway.submission.submission.{step}", refuse)
    with pytest.raises(UserError, match="refused"):
        submit([smoke_run], ONE, tmp_path / "record", lambda text: None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", ["\x1b[31mred", "two\nlines", "caf\udce9"])
def test_words_that_no_page_can_hold_are_refused(tmp_path: Path, words: str) -> None:
    for claim in (replace(ONE, name=words), replace(ONE, author=words)):
        with pytest.raises(UserError, match="only printable characters are allowed"):
            submit([], claim, tmp_path / "record", lambda text: None)
    (tmp_path / "gone").symlink_to("nowhere")
    with pytest.raises(UserError, match="exists already"):
        submit([], ONE, tmp_path / "gone", lambda text: None)


def test_nothing_of_this_machine_is_in_it(made: Path, smoke_run: Path, data_folder: Path) -> None:
    for path in made.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            for text in (str(data_folder), str(smoke_run), str(Path.home()), str(Path.cwd())):
                assert text.encode() not in data, path


def beyond_proof(record: Path) -> set[Place]:
    """Return the numbers that follow from nothing in a record: the commit of the sources."""
    text = (record / CLAIM).read_text()
    first = text.index('"commit"')
    return {(CLAIM, at) for at in range(first, text.index("\n", first))}


@pytest.mark.long
def test_an_edited_number_is_found(record: Path) -> None:
    """Some of every file; with fitting digests too, but for what follows from nothing."""
    draw, known = random.Random(0), beyond_proof(record)
    for name, found in itertools.groupby(numbers(record), key=lambda place: place[0]):
        places = list(found)
        places = [places[0], places[-1], *draw.sample(places, min(1, len(places)))]
        assert not list(unnoticed(record, places, fitting=False)), name
        if name != DIGESTS:
            assert set(unnoticed(record, places, fitting=True)) <= known


# Each number is edited twice. An edit takes 0.04 s of processor time: with all of them, nearly four
# minutes of a quiet core, and half an hour of a busy machine.
SAMPLE = 600


@pytest.mark.slow
def test_every_edited_number_is_found(record: Path) -> None:
    """A sample of all numbers, the same every time; PLACES=all in the environment takes all."""
    places = numbers(record)
    assert len(places) > 2500 and {name for name, _ in places} >= {CLAIM, "results/seed42.json"}
    if os.environ.get("PLACES") != "all":
        places = sorted(random.Random(1).sample(places, SAMPLE))
    assert not list(unnoticed(record, places, fitting=False))
    places = [place for place in places if place[0] != DIGESTS]
    assert set(unnoticed(record, places, fitting=True)) <= beyond_proof(record)


@pytest.mark.parametrize(
    ("name", "old", "new", "says"),
    [
        (CLAIM, '"val_bpb": 2', '"val_bpb": 1', "does not follow"),
        ("README.md", "| sliding | 2", "| sliding | 1", "README.md does not follow"),
        ("results/seed42.json", '"bpb": 2', '"bpb": 1', "does not follow"),
        ("train_seed42.log", "val_bpb:2", "val_bpb:1", "log does not follow"),
        ("train_seed42.log", "step:3/", "stop:3/", "has 11 steps"),
    ],
)
def test_an_edit_with_fitting_digests_is_found_too(
    record: Path, name: str, old: str, new: str, says: str
) -> None:
    text = (record / name).read_text()
    assert old in text
    (record / name).write_text(text.replace(old, new))
    sealed_again(record)
    faults = verify(record).faults
    assert any(says in fault for fault in faults), faults


def sealed_again(record: Path) -> None:
    (record / DIGESTS).unlink()
    seal(record)


def written_anew(record: Path, run: dict[str, Any]) -> None:
    """Write every text of a record of one seed as it follows from results, true or not."""
    write_json(record / "results/seed42.json", run)
    path, claim = record / "train_seed42.log", read_json(record / CLAIM)
    steps = [line for line in path.read_text().splitlines() if line.startswith(texts.STEP)]
    code_bytes = read_json(record / "bundle.json")["bytes"]
    path.write_text(texts.log(run, steps, code_bytes))
    people = {n: claim[n] for n in ("name", "author", "github_id", "track", "commit", "processes")}
    manifest = read_json(record / "bundle.json")
    claim = texts.submission([run], [path.read_text()], manifest, people)
    (record / CLAIM).write_bytes(texts.as_json(claim))
    (record / "README.md").write_text(texts.readme([run], claim))
    sealed_again(record)


def test_a_score_must_follow_from_its_nats(record: Path) -> None:
    """Even where every text was written anew from an edited score."""
    run = read_json(record / "results/seed42.json")
    run["stages"]["ttt"]["bpb"] -= 0.01
    written_anew(record, run)
    assert any("its nats and bytes" in fault for fault in verify(record).faults)


@pytest.mark.parametrize(("name", "more"), [("bytes", 2), ("bytes", -1), ("tokens", 1)])
def test_all_scores_must_count_the_text_of_the_run(record: Path, name: str, more: int) -> None:
    """Even where bits per byte and nats per token were computed anew."""
    run = read_json(record / "results/seed42.json")
    score = run["stages"]["ttt"]
    score[name] += more
    score["bpb"] = bits_per_byte(score["nats"], score["bytes"])
    score["nats_per_token"] = score["nats"] / score["tokens"]
    written_anew(record, run)
    assert any("ttt counts" in fault for fault in verify(record).faults)


@pytest.mark.parametrize("edited", [{"code_bytes": 20_177}, {"code_bytes": 0, "bytes": 28_000}])
def test_the_bytes_of_code_are_those_of_the_bundle(record: Path, edited: dict[str, int]) -> None:
    run = read_json(record / "results/seed42.json")
    run["artifact"].update(edited)
    written_anew(record, run)
    size = read_json(record / "bundle.json")["bytes"]
    told = f"counts {edited['code_bytes']} bytes of code, its bundle has {size}"
    assert any(told in fault for fault in verify(record).faults)


def test_files_that_come_or_go_are_found(record: Path) -> None:
    (record / "more.txt").write_text("x")
    (record / "requirements.txt").unlink()
    assert verify(record).faults == (
        "more.txt is not listed in the record",
        "requirements.txt is missing",
    )


# ---------------------------------------------------------------------------------------------
# Refusals


@pytest.fixture
def forged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a run pass whose stages were not made with its settings, as after a forgery."""
    monkeypatch.setattr("fairway.pipeline.inputs.Inputs.require", lambda inputs, *but: None)


def changed(run: Path, tmp_path: Path, **facts: Any) -> list[Path]:
    """Return the run, and a copy whose remembered facts differ."""
    other = Path(shutil.copytree(run, tmp_path / "other"))
    folder = RunFolder(other)
    for name, value in facts.items():
        if name in folder.memory["stages"]:
            stages = dict(folder.memory["stages"])
            kept = stages[name]["facts"]
            stages[name] = {**stages[name], "facts": {**kept, **value}}
            folder.remember("stages", stages)
        else:
            folder.remember(name, {**folder.memory[name], **value})
    return [run, other]


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"config": {"seed": 43}, "audit": {"passed": False}}, "did not pass its audit"),
        (
            {"config": {"seed": 43}, "audit": {"verdict": "not decidable"}},
            r"other is not decidable; its report .* `fairway audit \S+other --budget 600` gives",
        ),
        ({"config": {"seed": 42}}, "different seeds"),
        (
            {"config": {"seed": 43}, "pack": {"bytes": 15_999_000}},
            r"above 16,000,000; run `fairway pack \S+other --budget 16000000`, then `fairway score",
        ),
        (
            {"config": {"seed": 43}, "pack": {"code_bytes": 20_177}},
            r"packed with 20,177 bytes of code, but its bundle has [\d,]+ now; run `fairway pack",
        ),
        ({"config": {"seed": 43}, "pack": {"budget": {"used_s": 9.0, "limit_s": 8.0}}}, "trained"),
        ({"config": {"seed": 43}, "text": {"digest": "0" * 64}}, "other text"),
        ({"config": {"seed": 43}, "score.ttt": {"seconds": 601.0}}, "was scored in 601.0 s"),
        ({"config": {"seed": 43}, "score.ttt": {"method": "ppm published"}}, "byte mixture"),
    ],
)
@pytest.mark.usefixtures("forged")
def test_what_a_reviewer_must_refuse_is_refused(
    smoke_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, facts: Any, says: str
) -> None:
    monkeypatch.setattr("fairway.submission.submission._commit", lambda: "0" * 40)
    paths = changed(smoke_run, tmp_path, **facts)
    with pytest.raises(UserError, match=says):
        submit(paths, replace(ONE, min_seeds=2), tmp_path / "out", lambda text: None)
    assert not (tmp_path / "out").exists()


def test_stages_must_be_made_with_the_settings_of_the_run(smoke_run: Path, tmp_path: Path) -> None:
    paths = changed(smoke_run, tmp_path, config={"seed": 43})
    with pytest.raises(UserError, match="'train' stage of .* was made with other trains"):
        submit(paths, replace(ONE, min_seeds=2), tmp_path / "out", lambda text: None)


@pytest.mark.usefixtures("forged")
def test_a_declared_figure_is_refused(smoke_run: Path, tmp_path: Path) -> None:
    declared = asdict(replace(Config().pack, code_bytes=20_177))
    other = changed(smoke_run, tmp_path, config={"pack": declared})[1]
    told = (
        f"other declares 20,177 bytes of code, .* `fairway pack {other} --set pack.code_bytes=auto`"
    )
    with pytest.raises(UserError, match=told):
        submit([other], ONE, tmp_path / "out", lambda text: None)


@pytest.mark.usefixtures("forged")
def test_settings_must_be_those_of_one_configuration(smoke_run: Path, tmp_path: Path) -> None:
    paths = changed(smoke_run, tmp_path, config={"seed": 43})
    folder = RunFolder(paths[1])
    config = json.loads(json.dumps(folder.memory["config"]))
    config["optim"]["matrix_lr"] = 0.04
    folder.remember("config", config)
    with pytest.raises(UserError, match="other settings"):
        submit(paths, replace(ONE, min_seeds=2), tmp_path / "out", lambda text: None)


def test_uncommitted_sources_and_missing_seeds_are_refused(
    smoke_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="a record needs 3"):
        submit([smoke_run], replace(ONE, min_seeds=3), tmp_path / "out", lambda text: None)
    with pytest.raises(UserError, match="track 'x' is unknown"):
        submit([smoke_run], replace(ONE, track="x"), tmp_path / "out", lambda text: None)

    class Ended:
        returncode, stdout = 0, b" M fairway/pipeline/run.py\n"

    monkeypatch.setattr("fairway.submission.submission.subprocess.run", lambda *a, **k: Ended())
    with pytest.raises(UserError, match=r"differ from their commit \(fairway/pipeline/run.py"):
        submit([smoke_run], ONE, tmp_path / "out", lambda text: None)


# ---------------------------------------------------------------------------------------------
# Repeating


@pytest.mark.slow
def test_training_again_upholds_a_claim_and_refuses_a_spoiled_one(
    record: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = verify(record, retrain=data_folder)
    assert found.holds and found.repeated is not None and found.repeated["exact"]
    assert "trained again" in found.repeated["sentence"]
    # A consistent lie: every text follows from it, and only the training knows better.
    run = read_json(record / "results/seed42.json")
    stage = run["stages"]["ttt"]
    stage.update({name: 0.999 * stage[name] for name in ("nats", "nats_per_token", "bpb")})
    written_anew(record, run)
    assert verify(record).holds
    spoiled = verify(record, retrain=data_folder)
    assert not spoiled.holds and "outside" in spoiled.faults[0]


def claim_of(scores: dict[str, float]) -> dict[str, Any]:
    return {"seeds": {seed: {"val_bpb": bpb} for seed, bpb in scores.items()}}


def test_a_repeated_score_holds_within_the_spread_of_the_seeds() -> None:
    claim = claim_of({"1": 1.00, "2": 1.01, "3": 1.02})
    margin = prediction_margin([1.00, 1.01, 1.02])
    # t of 2 degrees of freedom at 0.995 is 9.925.
    assert margin == pytest.approx(9.9248 * 0.01 * (4 / 3) ** 0.5, rel=1e-4)
    assert judged(1.01 + 0.9 * margin, claim, 1, "again")["holds"]
    assert not judged(1.01 + 1.1 * margin, claim, 1, "again")["holds"]
    assert judged(1.00, claim, 1, "again")["exact"]


def test_a_single_seed_holds_only_to_the_bit(made: Path) -> None:
    assert judged(1.0, claim_of({"1": 1.0}), 1, "again")["holds"]
    assert not judged(1.0 + 1e-9, claim_of({"1": 1.0}), 1, "again")["holds"]


def test_repeating_asks_for_what_the_record_is_of(made: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no seed 7"):
        verify(made, rescore=tmp_path, seed=7)
    with pytest.raises(UserError, match="not a record"):
        verify(tmp_path)


def _sparse(path: Path) -> None:
    path.unlink(missing_ok=True)
    with path.open("wb") as stream:
        stream.truncate(4 << 30)


def _pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("name", "make", "told"),
    [
        (DIGESTS, _sparse, r"has 4,294,967,296 bytes; at most"),
        (DIGESTS, lambda path: path.write_text("[" * 10_000), "nested more than 64 deep"),
        (DIGESTS, lambda path: path.write_text('{"a": 1, "a": 2}'), "the key 'a' twice"),
    ],
)
def test_digests_that_cannot_be_read_are_refused(
    record: Path, name: str, make: Callable[[Path], object], told: str
) -> None:
    make(record / name)
    with pytest.raises(UserError, match=told):
        verify(record)


@pytest.mark.parametrize(
    ("name", "make", "told"),
    [
        ("README.md", _pipe, "README.md is not a regular file"),
        ("more.log", _sparse, "have 4,2"),
        ("loop", lambda path: path.symlink_to("."), "loop is not a regular file"),
        ("zero", lambda path: path.symlink_to("/dev/zero"), "zero is not a regular file"),
        ("many", lambda path: [(path / str(n)).mkdir(parents=True) for n in range(2_001)], "many"),
    ],
)
def test_odd_files_of_a_record_are_faults(
    record: Path, name: str, make: Callable[[Path], object], told: str
) -> None:
    make(record / name)
    found = verify(record)
    assert any(told in fault for fault in found.faults), found.faults[:3]
