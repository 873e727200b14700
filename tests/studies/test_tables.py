"""Tables of studies: read without trust, merged, and set beside those of a dearer proxy."""

import itertools
import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from damage import Cli
from scipy import stats
from studies.fake import noisy

from fairway.base.errors import UserError
from fairway.base.files import canonical_json, digest_bytes
from fairway.config.settings import MOST_SEED
from fairway.studies.lines import (
    LINES,
    Line,
    append,
    existing,
    once_each,
    paired,
    read_lines,
    slowed,
    written,
)
from fairway.studies.table import Table, cautions, merge, summary
from fairway.studies.transfer import kendall, lines_of, spearman, transfer

LINE = Line(
    arm="base", pair=0, seed=1, planned=4, recipe="smoke", common=[], settings=[], base="b" * 16,
    config="b" * 16, until="train", clock="steps", data="d" * 16, commit="c", sources="s" * 16,
    fairway="1", torch="2", device="one", steps=4, tokens=4096, train_s=2.0, whole_s=9.0,
    bpb={"raw": 1.3, "ema": 1.2}, text_bytes=1500, artifact_bytes=None, code_bytes=None,
    peak_bytes=None, failed="",
)  # fmt: skip


def lines(
    effects: dict[str, float], pairs: int = 4, sd: float = 0.001, **fields: object
) -> list[Line]:
    """Return the runs of some arms and their base."""
    score = noisy(effects, sd)
    return [
        replace(
            LINE,
            arm=arm,
            seed=seed,
            bpb={"raw": 2.0, "ema": score(arm, seed)},
            settings=[] if arm == "base" else [f"optim.beta2={len(arm)}"],
            config="b" * 16 if arm == "base" else arm.ljust(16, "-"),
            **fields,
        )
        for seed in range(1, pairs + 1)
        for arm in ("base", *effects)
    ]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def to(name: str, *runs: Line) -> Path:
        path = tmp_path / name
        path.write_bytes(b"".join(map(written, runs)))
        return path

    return to


def test_lines_come_back_as_they_were(tmp_path: Path) -> None:
    file = tmp_path / LINES
    runs = lines({"wide": -0.01})
    for run in runs:
        append(file, run)
    assert read_lines(file) == existing(tmp_path) == existing(file) == runs


def sealed(**fields: object) -> bytes:
    """Return a line that fits its own digest, with values that no study writes."""
    return written(replace(LINE, **fields))  # type: ignore[arg-type]


SPOILT = {
    "a value that was edited": lambda text: text.replace(b'"steps": 4,', b'"steps": 5,'),
    "half a line": lambda text: text[: len(text) // 2] + b"\n",
    "no JSON": lambda text: b"hello\n",
    "a list": lambda text: b"[1, 2]\n",
    "an empty line": lambda text: b"\n" + text,
    "NaN": lambda text: text.replace(b"9.0", b"NaN"),
    "a huge number": lambda text: text.replace(b"9.0", b"1e400"),
    "a score that is a word": lambda text: text.replace(b'"raw": 1.3', b'"raw": "low"'),
    "a foreign name": lambda text: text.replace(b'"pair": 0', b'"pair": 0, "more": 1'),
    "a missing name": lambda text: text.replace(b'"pair": 0, ', b""),
    "another schema": lambda text: text.replace(b'"schema": 1', b'"schema": 2'),
    "a key twice": lambda text: text.replace(b'"pair": 0', b'"pair": 0, "pair": 0'),
    "no UTF-8": lambda text: text.replace(b'"arm": "base"', b'"arm": "\xff\xfe"'),
    "no verb": lambda text: sealed(until="noon"),
    "no clock": lambda text: sealed(clock="moon"),
    "no plan": lambda text: sealed(planned=0),
    "a huge plan": lambda text: sealed(planned=2**62),
    "a pair below 0": lambda text: sealed(pair=-1),
    "a pair above all": lambda text: sealed(pair=1000),
    "a seed below 0": lambda text: sealed(seed=-1),
    "steps below 0": lambda text: sealed(steps=-1),
    "tokens below 0": lambda text: sealed(tokens=-1),
    "a training below 0 s": lambda text: sealed(train_s=-0.1),
    "a run below 0 s": lambda text: sealed(whole_s=-0.1),
    "no text": lambda text: sealed(text_bytes=0),
    "an artifact of nothing": lambda text: sealed(artifact_bytes=0),
    "code below 0": lambda text: sealed(code_bytes=-1),
    "memory below 0": lambda text: sealed(peak_bytes=-1),
    "a score of 0": lambda text: sealed(bpb={"raw": 1.3, "ema": 0.0}),
    "a score below 0": lambda text: sealed(bpb={"raw": -2.0, "ema": 1.2}),
    "an arm that is no name": lambda text: sealed(arm="a\x1b[31m"),
    "an arm that is a path": lambda text: sealed(arm="../up"),
    "deeply nested": lambda text: b"[" * 9999 + b"\n",
    "a line without end": lambda text: b" " * 70_000 + text,
}


@pytest.mark.parametrize("name", SPOILT)
def test_what_no_study_wrote_is_told_by_its_line(name: str, tmp_path: Path, cli: Cli) -> None:
    file = tmp_path / "table.jsonl"
    file.write_bytes(written(LINE) + SPOILT[name](written(LINE)))
    done = cli("ablate", "--merge", file)
    assert done.code == 2 and f"{file}, line 2: " in done.err
    assert len(done.err.strip().splitlines()) == 1 and len(done.err) < 700


@pytest.mark.parametrize(
    ("field", "value", "bound"),
    [
        ("pair", -5, "least is 0"),
        ("pair", 10**9, "most is 999"),
        ("planned", 0, "least is 1"),
        ("planned", 1001, "most is 1,000"),
        ("seed", 2**63 - 1, f"most is {MOST_SEED:,}"),
        ("text_bytes", 0, "least is 1"),
        ("train_s", -1.0, "least is 0"),
    ],
)
def test_a_number_that_no_run_has_is_told_with_its_bound(
    field: str, value: object, bound: str, tmp_path: Path
) -> None:
    (tmp_path / LINES).write_bytes(written(LINE) + sealed(**{field: value}))
    with pytest.raises(UserError, match=f"line 2: its '{field}' is {value}, but the {bound}"):
        read_lines(tmp_path / LINES)


def test_the_least_and_the_most_numbers_of_a_run_are_read(tmp_path: Path) -> None:
    least = {"pair": 0, "planned": 1, "seed": 0, "steps": 0, "train_s": 0.0, "text_bytes": 1}
    most = {"pair": 999, "planned": 1000, "seed": MOST_SEED, "bpb": {"raw": 1e-9}}
    for fields in (least, most, {"steps": None, "train_s": None, "text_bytes": None, "bpb": {}}):
        (tmp_path / LINES).write_bytes(sealed(**fields))
        assert read_lines(tmp_path / LINES) == [replace(LINE, **fields)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "does not exist"),
        (lambda path: path.touch(), "no line of a study yet"),
        (lambda path: path.write_bytes(written(LINE)[:-9]), "no line of a study yet"),
        (
            lambda path: path.write_bytes(written(replace(LINE, failed="x", bpb={}))),
            "no successful run",
        ),
    ],
)  # fmt: skip
def test_tables_without_runs(
    make: Callable[[Path], object], told: str, tmp_path: Path, cli: Cli
) -> None:
    path = tmp_path / "table"
    make(path)
    done = cli("ablate", "--merge", path)
    assert done.code == 2 and told in done.err and len(done.err.strip().splitlines()) == 1


def test_pairs_are_of_one_seed_device_and_source() -> None:
    base, wide = lines({"wide": -0.01}, pairs=1)
    assert paired([base, wide], "wide", "base", "ema") == [wide.bpb["ema"] - base.bpb["ema"]]
    for other in (
        replace(wide, seed=2), replace(wide, device="two"), replace(wide, sources="other"),
        replace(wide, failed="no"), replace(wide, bpb={}),
    ):  # fmt: skip
        assert paired([base, other], "wide", "base", "ema") == []


def test_runs_count_once_and_success_counts_before_failure() -> None:
    base, wide = lines({"wide": -0.01}, pairs=1)
    failed = replace(wide, failed="no", bpb={})
    kept, twice = once_each({Path("a"): [failed, base, base, wide]})
    assert kept == [base, wide] and twice == 1
    assert once_each({Path("a"): [failed], Path("b"): [base]}) == ([failed, base], 0)


def test_a_repetition_may_take_other_time_and_memory(write: Callable[..., Path]) -> None:
    runs = lines({"wide": -0.01})
    again = [replace(run, train_s=3.0, whole_s=8.0, peak_bytes=7, commit="e") for run in runs]
    table, said = merge([write("a", *runs), write("b", *again)], None, 0.05)
    assert table.lines == runs and "8 runs are in more than one table" in said[0]


@pytest.mark.parametrize(
    "change",
    [
        {"bpb": {"raw": 2.0, "ema": 0.5}},
        {"bpb": {"raw": 2.0}},
        {"steps": 5},
        {"tokens": 1},
        {"text_bytes": 1501},
        {"artifact_bytes": 9},
        {"code_bytes": 9},
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_two_results_of_one_run_are_refused_in_any_order(
    change: dict[str, object], turned: bool, write: Callable[..., Path], cli: Cli
) -> None:
    runs = lines({"wide": -0.01})
    other = replace(runs[3], **change)  # type: ignore[arg-type]
    files = [write("a", *runs), write("b", *runs[:3], other, *runs[4:])][:: -1 if turned else 1]
    done = cli("ablate", "--merge", files[0], "--merge", files[1])
    told = f"arm 'wide' with seed 2 is in {files[0]} and in {files[1]}, with different results ("
    assert done.code == 2 and told in done.err and next(iter(change)) in done.err
    assert "leave one table out" in done.err and done.err.count("\n") == 1
    # In one table, too; a study itself reads its table in the same way.
    (path := write("c", *runs)).write_bytes(path.read_bytes() + written(other))
    done = cli("ablate", "--merge", path)
    assert done.code == 2 and f"is in {path} twice" in done.err and "leave" not in done.err


def test_runs_that_differ_in_what_identifies_them_are_no_contradiction(
    write: Callable[..., Path],
) -> None:
    runs = lines({"wide": -0.01})
    for change in ({"device": "two"}, {"sources": "t" * 16}):
        others = [replace(run, bpb={"raw": 3.0, "ema": 2.5}, **change) for run in runs]  # type: ignore[arg-type]
        assert len(merge([write("a", *runs), write("b", *others)], None, 0.05)[0].lines) == 16


def test_tables_of_several_people_are_joined(write: Callable[..., Path], cli: Cli) -> None:
    mine = lines({"wide": -0.01, "bad": 0.01}, pairs=4)
    theirs = lines({"wide": -0.01}, pairs=8, device="two", commit="e")
    a, b = write("a.jsonl", *mine), write("b.jsonl", *theirs, *mine[:3])
    done = cli("ablate", "--merge", a, "--merge", b, "--json")
    found = json.loads(done.out)
    assert done.code == 0, done.err
    arms = {arm["arm"]: arm for arm in found["arms"]}
    assert arms["wide"]["n"] == 12 and arms["bad"]["n"] == 4
    assert arms["wide"]["verdict"] == "better" and arms["wide"]["planned"] == 0
    said = " ".join(found["cautions"])
    assert "3 runs are in more than one table" in said
    assert "2 devices: one, two" in said and "2 commits: c, e" in said
    assert cli("ablate", "--merge", a, "--merge", b, "--json").out == done.out
    # A table alone has its plan, and with it narrower intervals.
    alone = merge([a], None, 0.05)[0].estimate("wide")
    assert alone.planned == 4 and alone.n == 4


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"base": "x" * 16}, "another 'base'"),
        ({"clock": "wall"}, "another 'clock'"),
        ({"until": "pack"}, "another 'until'"),
        ({"data": "x" * 16}, "different texts"),
    ],
)
def test_tables_of_other_questions_are_refused(
    change: dict[str, str], told: str, write: Callable[..., Path], cli: Cli
) -> None:
    runs = lines({"wide": -0.01})
    a = write("a.jsonl", *runs)
    b = write("b.jsonl", *(replace(run, **change) for run in runs))
    done = cli("ablate", "--merge", a, "--merge", b)
    assert done.code == 2 and told in done.err


def test_an_arm_of_one_name_and_two_settings_is_refused(
    write: Callable[..., Path], cli: Cli
) -> None:
    runs = lines({"wide": -0.01})
    others = [replace(r, config="x" * 16) if r.arm == "wide" else r for r in runs]
    done = cli("ablate", "--merge", write("a", *runs), "--merge", write("b", *others))
    assert done.code == 2 and "arm 'wide' is optim.beta2=4" in done.err
    # In one table, the arm as it was set last counts.
    table, said = merge([write("c", *runs, *others[1:])], None, 0.05)
    assert "4 runs are left out because of other settings" in said
    assert {line.config for line in table.of("wide")} == {"x" * 16}


def test_a_pair_of_two_devices_is_told() -> None:
    base, wide = lines({"wide": -0.01}, pairs=1)
    table = Table([base, replace(wide, device="two")], "ema", 0.05)
    assert any("1 pair is left out of wide" in text for text in cautions(table))


def test_runs_that_other_work_slowed_do_not_count() -> None:
    runs = [replace(run, clock="wall", steps=1000 + run.seed) for run in lines({"wide": -0.01}, 5)]
    clean = Table(runs[2:], "ema", 0.05)
    for first in (853, 852):
        busy = [replace(run, steps=first, bpb={"ema": 2.0 + n}) for n, run in enumerate(runs[:2])]
        table = Table([*busy, *runs[2:]], "ema", 0.05)
        assert (table.differences("wide") == clean.differences("wide")) == (first == 852)
    assert table.differences("wide") and summary(table)["arms"][0]["runs"] == 4
    assert any("in 2 runs" in text and "(852)" in text for text in cautions(table))
    # Steps that are counted have no slow runs, and two runs have no usual number of steps.
    assert not slowed([replace(run, clock="steps") for run in table.lines])
    assert not slowed(table.lines[:4])


@pytest.mark.parametrize("keep", [False, True])
def test_an_arm_without_hope_goes_on_if_that_is_asked(keep: bool) -> None:
    runs = lines({"wide": 0.002}, pairs=3, sd=0.0012)
    table = Table(runs, "ema", 0.05, pairs=4, keep_hopeless=keep)
    assert table.estimate("wide").verdict == "hopeless"
    assert table.verdict("wide") == ("open" if keep else "hopeless")
    assert table.is_over("wide") != keep


# ---------------------------------------------------------------------------------------------
# Transfer


@pytest.mark.parametrize("seed", range(4))
def test_rank_correlations_are_those_of_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 5, (2, 7)).astype(float)
    assert kendall(list(a), list(b)) == pytest.approx(stats.kendalltau(a, b).statistic)
    assert spearman(list(a), list(b)) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert kendall([1.0, 1.0], [1.0, 2.0]) is None and spearman([1.0, 1.0], [1.0, 2.0]) is None


CHEAP = {"a": -0.02, "bb": -0.01, "ccc": 0.01, "dddd": 0.02}


def test_a_ranking_that_holds_and_one_that_does_not(
    write: Callable[..., Path], cli: Cli, tmp_path: Path
) -> None:
    cheap = write("cheap", *lines(CHEAP))
    same = write(
        "same", *lines({arm: 2 * x for arm, x in CHEAP.items()}, recipe="best", base="d" * 16)
    )
    other = write(
        "other", *lines({arm: -x for arm, x in CHEAP.items()}, recipe="best", base="d" * 16)
    )
    held, lost = (json.loads(cli("transfer", cheap, dear, "--json").out) for dear in (same, other))
    assert held["kendall"]["value"] == held["spearman"]["value"] == 1.0 and held["changed"] == []
    assert lost["kendall"]["value"] == -1.0 and lost["kendall"]["high"] < 0
    assert lost["changed"] == list(CHEAP)
    assert {row["sign"] for row in lost["arms"]} == {"changes, surely"}
    told = cli("transfer", cheap, other, "--out", tmp_path / "page.html")
    assert "kendall: -1.00, 95 % [-1.00, " in told.out
    assert "arms that change sign: a, bb, ccc, dddd" in told.out
    assert all(len(text) <= 80 for text in told.out.splitlines())
    page = (tmp_path / "page.html").read_text()
    assert page.count("<svg") == 2 and "Arms that change sign: a, bb" in page
    assert cli("transfer", cheap, other, "--out", cheap).code == 2
    assert cli("transfer", cheap, other, "--out", tmp_path / "page.html").code == 0


def test_noise_widens_the_interval_of_a_rank_correlation(write: Callable[..., Path]) -> None:
    widths = []
    for sd in (0.0001, 0.02):
        paths = [write(f"{n}-{sd}", *lines(CHEAP, sd=sd, device=str(n))) for n in range(2)]
        found = transfer(*paths, None, 0.05)["kendall"]
        widths.append(found["high"] - found["low"])
    assert widths[0] == 0.0 < widths[1]


def test_what_cannot_be_ranked_is_told(write: Callable[..., Path], cli: Cli) -> None:
    cheap = write("cheap", *lines(CHEAP))
    few = write("few", *lines({"a": 0.1, "eeeee": 0.2}, device="another"))
    assert "have 1 arm with pairs in common" in cli("transfer", cheap, few).err
    runs = lines({"a": 0.1, "bb": 0.1, "ccc": 0.2})
    changed = [replace(r, settings=["model.dim=8"]) if r.arm == "a" else r for r in runs]
    changed = [replace(r, device="another", train_s=1e-3) for r in changed]
    found = transfer(cheap, write("changed", *changed), None, 0.05)
    assert "the first table has the longer runs" in lines_of(found)[-1]
    assert found["left_out"] == [
        "a has different settings in the two tables", "dddd is in one table only",
    ]  # fmt: skip
    assert "have 20 runs in common, which agree in any case" in cli("transfer", cheap, cheap).err
    for line in ("x y", f"{shlex.quote(str(cheap))} y"):
        assert cli("transfer", *shlex.split(line)).code == 2


def test_an_arm_that_stopped_early_is_ranked_by_the_pairs_it_has(
    write: Callable[..., Path],
) -> None:
    cheap = [r for r in lines(CHEAP, pairs=6) if r.arm != "a" or r.seed < 3]
    dear = lines(CHEAP, device="another")
    found = transfer(write("cheap", *cheap), write("dear", *dear), None, 0.05)
    counts = {row["arm"]: row["cheap"]["n"] for row in found["arms"]}
    assert counts == {"a": 2, "bb": 6, "ccc": 6, "dddd": 6}
    assert found["kendall"]["value"] == 1.0 and found["kendall"]["low"] is not None


def test_hostile_sizes_are_refused(tmp_path: Path, cli: Cli, write: Callable[..., Path]) -> None:
    file = tmp_path / "lines"
    file.write_bytes(b"\n" * 100_001)
    assert "has 100,001 lines; a table has at most 100,000" in cli("ablate", "--merge", file).err
    with file.open("wb") as stream:
        stream.truncate(2**28 + 1)
    assert "at most 268,435,456 are read" in cli("ablate", "--merge", file).err
    arms = write("arms", *(replace(LINE, arm=f"a{n}") for n in range(300)))
    assert "300 arms are too many" in cli("ablate", "--merge", arms).err


def test_many_pairs_are_ranked(write: Callable[..., Path]) -> None:
    paths = [write(str(n), *lines({"a": 0.1, "bb": 0.2}, 300, device=str(n))) for n in range(2)]
    assert transfer(*paths, None, 0.05)["kendall"]["value"] == 1.0


def test_a_table_that_does_not_exist_is_told_without_reading_it_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        transfer(tmp_path / "a", tmp_path / "b", None, 0.05)
    assert list(itertools.islice(tmp_path.iterdir(), 1)) == []


def test_what_a_merge_does_not_take_is_refused(cli: Cli) -> None:
    for words, told in (
        (("--merge", "a", "b"), "takes no recipe; leave 'b' out"),
        (("--merge", "a", "--set", "seed=1"), "--set has no effect with --merge, which joins"),
        (("--merge", "a", "--keep-hopeless"), "--keep-hopeless has no effect"),
        (("--merge", "a", "--pairs", "8", "--retry"), "--pairs and --retry have no effect"),
        (("demo", "b"), "unexpected extra argument"),
    ):
        done = cli("ablate", *words)
        assert done.code == 2 and told in done.err


def test_lines_without_a_card_are_read_as_they_were_written(tmp_path: Path) -> None:
    facts = json.loads(written(LINE))
    del facts["card"], facts["id"]
    facts["id"] = digest_bytes(canonical_json(facts))[:16]
    (tmp_path / LINES).write_text(json.dumps(facts) + "\n")
    assert read_lines(tmp_path / LINES) == [LINE]


def test_pairs_by_the_clock_on_two_gpus_are_told() -> None:
    runs = lines({"wide": -0.01}, clock="wall")
    assert not any("different GPUs" in text for text in cautions(Table(runs, "ema", 0.05)))
    apart = [
        replace(line, card="GPU-a" if line.arm == "base" or line.seed == 1 else "GPU-b")
        for line in runs
    ]
    (told,) = (text for text in cautions(Table(apart, "ema", 0.05)) if "different GPUs" in text)
    assert "the two runs of 3 pairs used" in told
    faster = [replace(line, card=f"GPU-{line.seed}", steps=1000 + 4 * line.seed) for line in runs]
    told = cautions(Table(faster, "ema", 0.05))
    assert told == ["the GPUs differ: on them the base made 1,004 to 1,016 steps"]
    assert not cautions(Table([replace(line, steps=1000) for line in faster], "ema", 0.05))
    by_steps = [replace(line, clock="steps") for line in apart]
    assert not any("different GPUs" in text for text in cautions(Table(by_steps, "ema", 0.05)))
