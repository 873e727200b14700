"""The page of all runs: a table that sorts, curves, what sets runs apart, what cannot be read."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from damage import Cli

from fairway.pipeline import overview as collecting
from fairway.pipeline.overview import write_overview
from fairway.report.derive import curve_of
from fairway.report.overview import Row, is_page, overview

HOSTILE = '<script>alert("1")</script> \x1b[31m'


def facts(name: str, bpb: float | None = None, *changed: str, **more: Any) -> dict[str, Any]:
    scores = {} if bpb is None else {"sliding": bpb}
    known = {"recipe": "demo", "seed": 42, "differences": list(changed), "bytes": 560_000}
    return {"name": name, **known, "train_s": 200.5, "steps": 80, "scores": scores, **more}


def good(name: str, bpb: float | None = None, *changed: str, **more: Any) -> Row:
    return Row(facts(name, bpb, *changed, **{"state": "scored", **more}))


def bad(name: str, why: str) -> Row:
    nothing = dict.fromkeys(("recipe", "seed", "differences", "bytes", "train_s", "steps"))
    return Row({"name": name, "scores": {}, "state": why, **nothing})


def steps(count: int) -> list[dict[str, Any]]:
    return [
        {"step": i, "seconds": 2.0 * i, "loss": 5.0 - i / count, "lr": 1.0} for i in range(count)
    ]


def test_what_all_runs_of_a_recipe_share_is_told_once_and_the_best_is_bold() -> None:
    rows = [good("a", 1.5, "x=1", "y=2"), good("b", 1.25, "x=1", "y=3"), good("c", 1.0, recipe="d")]
    page = overview(rows)
    assert "All runs of demo shown: x=1." in page and "y=2" in page and page.count("x=1") == 1
    best = re.findall(r'<span class="best"><data value="([\d.]+)"', page)
    assert best == ["1.0"] and "3 runs</h1>" in page and is_page(page.encode())


def test_a_curve_stands_for_its_run_and_many_fit_one_picture() -> None:
    rows = [
        Row(facts(f"run-{n}", 2.0 - 0.01 * n, state="scored"), curve_of(steps(300), 50))
        for n in range(20)
    ]
    page = overview(rows)
    assert page.count('<svg class="curve"') == 20 and "the 12 best of 20 runs" in page
    for drawn in ("run-19", "run-8"):
        assert page.count(f">{drawn}</text>") == 2, "wide and narrow"
    assert ">run-7</text>" not in page


def test_nothing_of_a_run_is_obeyed_and_long_texts_are_cut() -> None:
    rows = [good(HOSTILE, 1.0, HOSTILE, "z=" + "9" * 100_000, state=HOSTILE), bad(HOSTILE, HOSTILE)]
    page = overview([*rows, bad("b", "why " * 10_000)])
    assert page.count("<script>") == 1 and "\x1b" not in page and len(page) < 30_000
    assert "1 run, 2 without results" in page and "Unfinished runs" in page


@pytest.mark.parametrize("rows", [[], [bad("b", "it is damaged")]])
def test_a_page_without_a_finished_run_says_so(rows: list[Row]) -> None:
    page = overview(rows, left_out=3, without_curve=2)
    assert (
        "There is no finished run here" in page and "not shown: 3." in page and "<table" not in page
    )
    assert ("it is damaged" in page) == bool(rows)


# ---------------------------------------------------------------------------------------------
# Of a folder


@pytest.fixture
def folder(smoke_run: Path, tmp_path: Path) -> Path:
    runs = tmp_path / "runs"
    shutil.copytree(smoke_run, runs / "a")
    (runs / "a/report.html").write_text("x")
    for name, text in (("broken", "{"), ("foreign", '{"schema": 7}'), ("empty", "")):
        (runs / name).mkdir()
        (runs / name / "run.json").write_text(text)
    (runs / "cut").mkdir()
    shutil.copy(smoke_run / "run.json", runs / "cut")
    return runs


def test_every_run_is_there_and_none_ends_the_page(cli: Cli, folder: Path) -> None:
    page = folder.parent / "page.html"
    done = cli("runs", str(folder), "--html", str(page))
    assert done.code == 0 and "5 of 5 runs, 3 of them without results" in done.out, done
    text = page.read_text()
    assert '<a href="runs/a/report.html">a</a>' in text
    assert text.count('<svg class="curve"') == 1, "the steps of the other are gone"
    for name in ("broken", "foreign", "empty"):
        assert re.search(rf"<li><b>{name}</b>: [^<]+</li>", text)
    assert cli("runs", str(folder), "--html", str(page)).code == 0, "its own page is replaced"


def test_a_page_of_another_program_is_kept(cli: Cli, folder: Path) -> None:
    for name, words in (("other.html", ()), ("new.html", ("--export", "csv"))):
        page = folder / name
        if not words:
            page.write_text("<html>mine</html>")
        done = cli("runs", str(folder), "--html", str(page), *words)
        assert done.code == 2 and done.err.count("fairway: ") == 1, done
    assert (folder / "other.html").read_text() == "<html>mine</html>"
    assert not (folder / "new.html").exists()


def test_budgets_are_kept_and_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "MOST_STEPS_BYTES", 10)
    monkeypatch.setattr(collecting, "MOST_RUNS", 4)
    page = folder.parent / "page.html"
    assert write_overview(folder, page)["shown"] == 4
    text = page.read_text()
    assert "not shown: 1." in text and "there are too many: 1." in text
    assert '<svg class="curve"' not in text


@pytest.mark.slow
def test_a_head_sorts_by_its_numbers_with_what_lacks_one_last(tmp_path: Path) -> None:
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("there is no Chromium here")
    page = overview([good("a", 1.5), good("none"), good("b", 1.25), good("c", 12.0)])
    clicks = "for (const n of [4, 4]) document.querySelectorAll('th button')[n].click();"
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    for count, order in ((1, "b a c none"), (2, "c a b none")):
        file = tmp_path / f"{count}.html"
        script = clicks.replace("[4, 4]", str([4] * count))
        file.write_text(page.replace("</body>", f"<script>{script}</script></body>"))
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom"]
        done = subprocess.run([browser, *options, file.as_uri()], capture_output=True, timeout=120)
        text = done.stdout.decode()
        assert " ".join(re.findall(r'<th scope="row">(\w+)</th>', text)) == order
        assert f'aria-sort="{"ascending" if count == 1 else "descending"}"' in text
