"""`fairway ablate`: which runs it makes, what it says of them, and what it refuses."""

import json
import math
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from damage import Cli, Outcome
from studies.fake import FakePlace, noisy

from fairway.data.documents import Document
from fairway.data.folder import DataFolder
from fairway.pipeline.folder import locked
from fairway.studies.arms import study
from fairway.studies.intervals import smallest_seen
from fairway.studies.lines import LINES, read_lines
from fairway.studies.running import Where, _host, keeps_pairs

Ablate = Callable[..., Outcome]
EFFECTS = {"good": -0.02, "bad": 0.02, "same": 0.0}
ARMS = "--arm good:optim.matrix_lr=0.01 --arm bad:optim.matrix_lr=0.03,optim.momentum=0.9"


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> FakePlace:
    made = FakePlace(noisy(EFFECTS))
    # Such runs end at once, and nothing is to be waited for.
    monkeypatch.setattr("fairway.pipeline.jobs._LOOK_S", 0.0)
    monkeypatch.setattr("fairway.studies.running._host", lambda study, where: made)
    return made


@pytest.fixture
def ablate(cli: Cli, settings: list[str], tmp_path: Path) -> Ablate:
    def call(line: str, out: Path = tmp_path / "study") -> Outcome:
        sets = [word for text in settings for word in ("--set", text)]
        return cli("ablate", "smoke", *sets, "--out", out, *shlex.split(line))

    return call


def test_pairs_share_a_seed_and_an_order_and_decided_arms_stop(
    ablate: Ablate, place: FakePlace, tmp_path: Path
) -> None:
    done = ablate(f"{ARMS} --arm same:optim.beta2=0.9 --pairs 8 --noise")
    assert done.code == 0, done.err
    names = place.names()
    assert names[:5] == ["base-1", "noise-1", "good-1", "bad-1", "same-1"]
    assert "good-8" not in names and len(set(names)) == len(names)
    assert "noise-4" in names and "noise-5" not in names
    for job in place.jobs:
        sets = job.words[1 + job.words.index("--set") :: 2]
        assert [s for s in sets if "seed" in s] == [
            f"seed={job.name.rpartition('-')[2]}", "data.order_seed=seed",
        ]  # fmt: skip
        assert job.words[:4] == ("run", "smoke", "--until", "train")
    lines = read_lines(tmp_path / "study" / LINES)
    assert [f"{line.arm}-{line.seed}" for line in lines] == names
    assert "good: better; no more runs of it" in done.out
    assert re.search(r"^good +-0\.0\d+ \[-0\.\d+, -0\.\d+\] ", done.out, re.MULTILINE)
    table = done.out.partition("valid at every look\n")[2].partition("noise floor")[0]
    assert table.count("\n") > 12 and all(len(text) <= 80 for text in table.splitlines())
    page = (tmp_path / "study/study.html").read_text()
    assert "<svg" in page and "hopeless" in page and "optim.momentum=0.9" in page


def test_a_stopped_study_goes_on_and_repeats_nothing(
    ablate: Ablate, place: FakePlace, tmp_path: Path
) -> None:
    place.stop_after = 4
    assert ablate(f"{ARMS} --pairs 4").code == 130
    before = (tmp_path / "study" / LINES).read_bytes()
    assert len(before.splitlines()) == 4
    place.stop_after = 10**9
    assert ablate(f"{ARMS} --pairs 4").code == 0
    names = place.names()
    assert len(set(names)) == len(names) and names[4] == "good-2"
    after = (tmp_path / "study" / LINES).read_bytes()
    assert after.startswith(before)
    count = len(place.jobs)
    again = ablate(f"{ARMS} --pairs 4 --json")
    assert again.code == 0 and len(place.jobs) == count
    found = json.loads(again.out)
    assert found["done"] and {arm["arm"] for arm in found["arms"]} == {"good", "bad"}


def test_a_line_that_was_cut_off_gives_way(
    ablate: Ablate, place: FakePlace, tmp_path: Path
) -> None:
    place.stop_after = 3
    ablate(f"{ARMS} --pairs 2")
    file = tmp_path / "study" / LINES
    whole = file.read_bytes()
    file.write_bytes(whole[:-9])
    place.stop_after = 10**9
    assert ablate(f"{ARMS} --pairs 2").code == 0
    assert place.names().count("bad-1") == 2 and file.read_bytes().startswith(whole[:500])
    assert all(text.endswith("}") for text in file.read_text().splitlines())


def test_more_pairs_go_on_with_the_plan_that_was(ablate: Ablate, place: FakePlace) -> None:
    line = "--arm same:optim.beta2=0.9 --json --metric raw --keep-hopeless"
    first = json.loads(ablate(f"{line} --pairs 3").out)["arms"][0]
    more = json.loads(ablate(f"{line} --pairs 12").out)["arms"][0]
    assert first["verdict"] == "undecided"
    assert more["planned"] == 3 and more["n"] > 3
    line = line.replace("--json ", "")
    told = [ablate(f"{line} --pairs {pairs} --dry-run").out for pairs in (3, 16)]
    assert "when it began" not in told[0]
    assert "the study planned 3 pairs when it began" in told[1]
    assert "For 16 planned pairs begin a study in another folder (--out)" in told[1]
    shown = [float(re.findall(r"these show ([\d.]+) bpb", text)[0]) for text in told]
    sd = float(re.findall(r"by sd ([\d.]+)", told[1])[0]) * math.sqrt(2)
    assert shown[1] == pytest.approx(smallest_seen(sd, 16, 3, 0.05), rel=0.05) != shown[0]


def test_failed_runs_are_told_and_counted_and_leave_the_others(
    ablate: Ablate, place: FakePlace
) -> None:
    place.fails = {
        "good-2": "fairway: the loss became nan", "bad-1": "killed by signal 9 (SIGKILL)",
        "bad-2": "fairway: no memory",
    }  # fmt: skip
    done = ablate(f"{ARMS} --pairs 6 --json")
    found = json.loads(done.out)
    assert done.code == 1
    assert {(f["arm"], f["seed"]): f["reason"] for f in found["failed"]} == {
        ("good", 2): "fairway: the loss became nan",
        ("bad", 1): "killed by signal 9 (SIGKILL)",
        ("bad", 2): "fairway: no memory",
    }
    arms = {arm["arm"]: arm for arm in found["arms"]}
    # An arm whose runs all fail is given up; one that failed once has a pair less.
    assert arms["bad"]["verdict"] == "failing" and "bad-3" not in place.names()
    assert arms["good"]["failed"] == 1 and arms["good"]["n"] >= 3
    place.fails = {}
    assert ablate(f"{ARMS} --pairs 6").code == 1 and "bad-3" not in place.names()
    again = ablate(f"{ARMS} --pairs 6 --retry --json")
    assert again.code == 0 and json.loads(again.out)["failed"] == []


def test_a_run_that_ends_without_its_score_failed(
    ablate: Ablate, place: FakePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("studies.fake.write_json", lambda path, value: None)
    done = ablate(f"{ARMS} --pairs 2")
    assert done.code == 1 and "base, seed 1 failed: it ended without the score 'ema'" in done.out


def test_a_failed_base_costs_its_pair_and_no_more(ablate: Ablate, place: FakePlace) -> None:
    place.fails = {"base-1": "fairway: no"}
    assert ablate(f"{ARMS} --pairs 3").code == 1
    assert "good-1" not in place.names() and "good-2" in place.names()
    place.fails |= {f"base-{seed}": "fairway: no" for seed in range(9)}


def test_a_base_that_always_fails_ends_the_study(ablate: Ablate, place: FakePlace) -> None:
    place.fails = {f"base-{seed}": "fairway: no" for seed in range(9)}
    assert ablate(f"{ARMS} --pairs 5").code == 1
    assert place.names() == ["base-1", "base-2"]


def test_a_budget_begins_no_run_that_cannot_end(
    ablate: Ablate, place: FakePlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Arms that stay open: what the first pair gains, the second loses.
    place.score = lambda arm, seed: 1.2 + (arm != "base") * (-0.01 if seed % 2 else 0.006)
    # Of a clock that only runs move: 3 s each, as the stages of the fake runs say.
    now = [0.0]
    begin = place.begin

    def slow(job: object, slot: int) -> object:
        now[0] += 3.0
        return begin(job, slot)  # type: ignore[arg-type]

    monkeypatch.setattr(place, "begin", slow)
    monkeypatch.setattr("fairway.studies.running.time.monotonic", lambda: now[0])
    monkeypatch.setattr("fairway.pipeline.jobs.time.sleep", lambda seconds: None)
    done = ablate(f"{ARMS} --pairs 2 --budget 24")
    assert done.code == 3 and "run the same command again" in done.err
    # 24 s less 6 for saving; a run is expected to take 9.9 s, by the sum of its stages.
    assert place.names() == ["base-1", "good-1", "bad-1"]
    assert ablate(f"{ARMS} --pairs 2 --budget 24").code == 0
    assert place.names()[3:] == ["base-2", "good-2", "bad-2"]


def test_the_plan_is_told_before_anything_runs(ablate: Ablate, place: FakePlace) -> None:
    done = ablate(f"{ARMS} --pairs 8 --noise --dry-run --effect 0.003")
    assert done.code == 0 and place.jobs == []
    assert "28 runs: 2 beside the base, 8 pairs" in done.out
    assert "sd 0.00050" in done.out and "0.003 needs 4 pairs (12 runs)" in done.out
    ablate(f"{ARMS} --pairs 8")
    later = ablate(f"{ARMS} --pairs 8 --dry-run")
    assert "as the pairs so far do" in later.out and "a run" in later.out


def used(place: FakePlace) -> dict[str, set[int]]:
    """Return the slots of the runs of each pair, by seed."""
    found: dict[str, set[int]] = {}
    for name, slot in zip(place.names(), place.used, strict=True):
        found.setdefault(name.rpartition("-")[2], set()).add(slot)
    return found


def test_by_the_clock_a_pair_stays_on_one_gpu_and_arms_begin_in_turn(
    ablate: Ablate, place: FakePlace, tmp_path: Path
) -> None:
    line = "--arm same:optim.beta2=0.9 --arm more:optim.momentum=0.8 --keep-hopeless --clock wall"
    place.slots, place.cards, place.stop_after = 2, ("GPU-a", "GPU-b"), 7
    assert ablate(f"{line} --pairs 4").code == 130
    assert [len(slots) for slots in used(place).values()] == [1, 1, 1]
    # The next call names the GPUs in another order.
    before, place.cards, place.stop_after = dict(used(place)), ("GPU-b", "GPU-a"), 10**9
    place.jobs, place.used = [], []
    done = ablate(f"{line} --pairs 4")
    assert done.code == 0 and "different GPUs" not in done.out
    for seed, slots in used(place).items():
        assert len(slots) == 1
        if seed in before and seed != "3":
            assert slots == {1 - slot for slot in before[seed]}
    lines = read_lines(tmp_path / "study" / LINES)
    assert len(lines) == 12 and len({(line.seed, line.card) for line in lines}) == 4
    first = {seed: next(n.arm for n in lines if n.seed == seed) for seed in (1, 2, 3, 4)}
    assert first == {1: "base", 2: "same", 3: "more", 4: "base"}


def test_by_steps_runs_go_to_any_gpu(ablate: Ablate, place: FakePlace) -> None:
    place.slots, place.cards = 2, ("GPU-a", "GPU-b")
    assert ablate(f"{ARMS} --pairs 3 --keep-hopeless --clock steps").code == 0
    assert any(len(slots) == 2 for slots in used(place).values())


def test_slots_of_a_host_are_named_by_their_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """The names belong to the GPUs and not to their order, which CUDA_VISIBLE_DEVICES changes."""
    names = {0: "c1f2", 1: "07ab", 2: "99d0"}
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setattr(
        "torch.cuda.get_device_properties", lambda at: SimpleNamespace(uuid=names[at])
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,3,7")
    asked = study("smoke", ["a:optim.beta2=0.9"], 2, [], "wall", None)
    host = _host(asked, Where())
    assert (host.gpus, host.cards, host.slots) == (["5", "3", "7"], ["c1f2", "07ab", "99d0"], 3)
    assert keeps_pairs(asked, Where())
    one = Where(at_once=1)
    assert _host(asked, one).cards == () and not keeps_pairs(asked, one)
    assert not keeps_pairs(study("smoke", ["a:optim.beta2=0.9"], 2, [], "steps", None), Where())


def test_time_ahead_counts_pairs_that_wait_for_their_gpu(
    ablate: Ablate, place: FakePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fairway.studies.running._gpus", lambda study: 4)
    line = "--arm same:optim.beta2=0.9 --clock wall --set train.budget_s=70 --set train.reserve_s=0"
    assert (
        "4 at once, each pair on one GPU: 6 min 40 s in all"
        in ablate(f"{line} --pairs 6 --dry-run").out
    )
    assert (
        "2 at once, each pair on one GPU: 10 min 00 s"
        in ablate(f"{line} --pairs 6 --at-once 2 --dry-run").out
    )


BAD = [
    ("", "add --arm"),
    ("--arm wide", "is not an arm"),
    ("--arm :model.dim=8", "is not an arm"),
    (f"--arm {'w' * 33}:model.dim=8", "at most 32 letters"),
    ("--arm 'a b:model.dim=8'", "is not an arm"),
    ("--arm ../up:model.dim=8", "is not an arm"),
    ("--arm base:model.dim=128", "choose another name"),
    ("--arm noise:model.dim=128", "choose another name"),
    ("--arm a:", "has no setting"),
    ("--arm a:model.dim", "arm 'a': override 'model.dim' has no '='"),
    ("--arm a:model.dimm=64", "arm 'a': unknown setting 'model.dimm'; did you mean"),
    ("--arm a:model.dim=x", "must be a whole number"),
    ("--arm a:model.dim=-8", "arm 'a': model.dim is -8; it must be"),
    ("--arm a:model.dim=65", "does not divide into"),
    ("--arm a:model.dim=96,model.dim=128", "sets model.dim twice"),
    ("--arm a:optim.beta2=0.9 --arm a:optim.grad_clip=0.8", "two arms are named 'a'"),
    ("--arm a:optim.beta2=0.9 --arm b:optim.beta2=0.90", "same settings as a"),
    ("--arm a:train.steps=12", "same settings as base"),
    ("--arm a:train.warmup_steps=1", "same settings as base"),
    ("--arm a:seed=3", "choose the first seed"),
    ("--arm a:data.order_seed=3", "but the study chooses"),
    ("--arm a:train.clock=wall", "with --clock"),
    ("--arm a:train.replay=x", "--clock steps"),
    ("--arm a:recipe=mine", "leave it out"),
    ("--arm a:data.val_bytes=9", "scores would be of different texts"),
    ("--arm a:model.vocab_size=512", "arm 'a': the tokenizer of"),
    ("--arm a:optim.beta2=0.9 --set seed=4", "--set sets seed"),
    ("--arm a:optim.beta2=0.9 --pairs 0", "between 1 and 1,000"),
    ("--arm a:optim.beta2=0.9 --pairs 1e9", "between 1 and 1,000"),
    ("--arm a:optim.beta2=0.9 --pairs x", "not a whole number"),
    ("--arm a:optim.beta2=0.9 --pairs 2 --first-seed 4294967295", "seeds end at"),
    ("--arm a:optim.beta2=0.9 --clock moon", "none of steps, wall"),
    ("--arm a:optim.beta2=0.9 --until noon", "none of train, pack, score"),
    ("--arm a:optim.beta2=0.9 --metric sliding", "arm 'base' has no score 'sliding'"),
    ("--arm a:ttt.method=off --until score", "arm 'a' has no score 'ttt'"),
    ("--arm a:optim.beta2=0.9 --metric mixture --until score", "only raw, ema, quantised,"),
    ("--arm a:optim.beta2=0.9 --clock steps --set train.clock=wall", "with --clock"),
    ("--arm a:optim.beta2=0.9 --budget 0", "between 1 and"),
    ("--arm a:optim.beta2=0.9 --budget nan", "out of bounds"),
    ("--arm a:optim.beta2=0.9 --error 0", "out of bounds"),
    ("--merge x", "--merge joins tables and takes no recipe"),
]


@pytest.mark.parametrize(("line", "told"), BAD)
def test_a_mistake_is_one_sentence_before_anything_runs(
    ablate: Ablate, place: FakePlace, line: str, told: str
) -> None:
    done = ablate(line)
    assert done.code == 2 and told in done.err and place.jobs == []
    assert len(done.err.strip().splitlines()) == 1


def test_a_folder_that_is_not_the_studys_is_left_alone(
    ablate: Ablate, place: FakePlace, smoke_run: Path, tmp_path: Path
) -> None:
    assert "is the folder of a run" in ablate(ARMS, smoke_run).err
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "study.html").write_text("my notes")
    assert "this command did not write it" in ablate(ARMS, folder).err
    assert (folder / "study.html").read_text() == "my notes"
    (folder / "study.html").unlink()
    (folder / LINES).write_text("my notes\n")
    assert "line 1: it is not JSON" in ablate(ARMS, folder).err
    (folder / LINES).unlink()
    with locked(folder):
        assert "is being written by another process" in ablate(f"{ARMS} --pairs 1", folder).err
    assert place.jobs == [] and ablate(f"{ARMS} --pairs 1", folder).code == 0
    assert ablate(f"{ARMS} --pairs 1", folder).code == 0


def test_too_many_arms_are_refused(ablate: Ablate, place: FakePlace) -> None:
    arms = " ".join(f"--arm a{n}:optim.beta2={0.5 + n / 1000}" for n in range(65))
    assert "65 arms are too many" in ablate(arms).err


def test_a_comma_may_stand_in_a_value() -> None:
    from fairway.studies.arms import read_arm

    arm = read_arm("x:data.source=a,b/c,optim.beta2=0.9, mixture.experts=ppm match")
    assert arm.settings == ("data.source=a,b/c", "optim.beta2=0.9", "mixture.experts=ppm match")


REAL = "--arm quick:optim.matrix_lr=0.04 --pairs 1 --set train.steps=3 --json"


def random_documents() -> Iterator[Document]:
    """Return two hundred texts of random words, which suffice for a vocabulary of 600."""
    draw = random.Random(0)
    words = [
        "".join(draw.choices("abcdefghijklmnopqrst", k=draw.randint(2, 7))) for _ in range(900)
    ]
    for n in range(200):
        yield Document(str(n), " ".join(draw.choices(words, k=60)).title())


def test_arms_that_read_another_text_get_it(
    cli: Cli, place: FakePlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embedded text depends on the vocabulary, on marks, and on the tokenizer of train.init."""
    monkeypatch.setattr("fairway.pipeline.text.embedded_documents", random_documents)
    done = cli(
        *(
            "ablate",
            "smoke",
            "--out",
            tmp_path / "study",
            "--pairs",
            1,
            "--arm",
            "rate:optim.beta2=0.9",
        ),
        *("--arm", "case:data.case_ops=true", "--arm", "words:model.vocab_size=600"),
    )
    assert done.code == 0, done.err
    assert done.out.count("building the embedded text once") == 3
    folders = {}
    for job in place.jobs:
        sets = dict(word.split("=", 1) for word in job.words if "=" in word)
        folders[job.name.rpartition("-")[0]] = DataFolder.open(Path(sets["data.source"]))
    assert folders["base"].path == folders["rate"].path
    found = [folders[name].tokenizer for name in ("base", "case", "words")]
    assert [words.case_ops for words in found] == [False, True, False]
    assert [words.vocab_size for words in found] == [512, 512, 600]


@pytest.mark.long
def test_real_runs(ablate: Ablate, tmp_path: Path) -> None:
    """Two arms, one pair, by processes of their own."""
    found = json.loads(ablate(REAL).out)
    base, quick = read_lines(tmp_path / "study" / LINES)
    assert (base.arm, quick.arm, base.steps, quick.seed) == ("base", "quick", 3, base.seed)
    assert base.bpb["ema"] != quick.bpb["ema"] and base.peak_bytes and base.device
    assert found["arms"][0]["mean"] == pytest.approx(quick.bpb["ema"] - base.bpb["ema"])
    (memory,) = (tmp_path / "study/runs").glob("quick-1-*/run.json")
    config = json.loads(memory.read_text())["config"]
    assert (config["seed"], config["data"]["order_seed"]) == (1, "seed")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_study_that_is_killed_goes_on(
    settings: list[str], tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "study"
    words = [sys.executable, "-m", "fairway", "ablate", "smoke", "--out", str(out), *REAL.split()]
    for text in settings:
        words += ["--set", text]
    log = (tmp_path / "log").open("w")
    first = subprocess.Popen(words, stdout=log, stderr=log)
    while not (out / LINES).exists() and first.poll() is None:
        time.sleep(0.1)
    first.send_signal(number)
    assert first.wait() == (-9 if number == signal.SIGKILL else 130)
    before = (out / LINES).read_bytes()
    second = subprocess.run(words, capture_output=True, timeout=300, check=False)
    assert second.returncode == 0, second.stderr
    assert (out / LINES).read_bytes().startswith(before)
    assert [line.arm for line in read_lines(out / LINES)] == ["base", "quick"]
