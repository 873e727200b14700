import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fairway.base.files import read_json
from fairway.cli import show
from fairway.config.overrides import override
from fairway.config.settings import Config, settings
from fairway.recipes import recipe


def text_of(thing: Any) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(thing)
    return console.file.getvalue()  # type: ignore[attr-defined]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.replace("┃", "│").strip().strip("│").split("│")]


@pytest.fixture(scope="module")
def results(smoke_run: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(smoke_run / "results.json")
    return found


def test_the_table_holds_every_stage_and_tool(results: dict[str, Any]) -> None:
    rows = [cells(line) for line in text_of(show.score_table(results)).splitlines()]
    for name, stage in results["stages"].items():
        assert [f"model, {name}", f"{stage['bpb']:.4f}", "", ""] in rows
    claimed = results["stages"][results["headline"]]["bpb"]
    titles = ("xz -9e", "brotli -11", "zstd -19", "PPMd, order 16")
    for name, title in zip(("xz", "brotli", "zstd", "ppmd"), titles, strict=True):
        tool = results["baselines"][name]
        against = f"{claimed / min(tool['bpb'], tool['primed_bpb']) - 1:+.1%}"
        assert [title, f"{tool['bpb']:.4f}", f"{tool['primed_bpb']:.4f}", against] in rows


def test_scores_without_compressors_or_priming(results: dict[str, Any]) -> None:
    assert "xz" not in text_of(show.score_table({**results, "baselines": None}))
    cold = {"xz": {**results["baselines"]["xz"], "primed_bpb": None}}
    rows = text_of(show.score_table({**results, "baselines": cold})).splitlines()
    assert next(cells(line)[2] for line in rows if "xz -9e" in line) == ""


def test_compressors_that_read_a_part_say_so(results: dict[str, Any]) -> None:
    assert "the compressors read" not in text_of(show.score_table(results))
    tools = {n: {**tool, "text_bytes": 1000} for n, tool in results["baselines"].items()}
    told = text_of(show.score_table({**results, "baselines": tools}))
    assert "the compressors read the first 1,000 bytes" in " ".join(told.split())


def test_the_account_adds_up_on_the_screen(results: dict[str, Any]) -> None:
    artifact = {**results["artifact"], "code_bytes": 1234, "code": "declared"}
    lines = text_of(show.account_table(artifact)).splitlines()
    shown = [cells(line) for line in lines if line.startswith("│")]
    *parts, total = [int(row[1].replace(",", "")) for row in shown]
    assert sum(parts) == total == artifact["bytes"] + 1234
    assert ["code beside it, declared", "1,234"] in shown
    assert "16,000,000 allowed" in shown[-1][0]


def test_every_setting_is_shown_and_changes_are_marked() -> None:
    table = show.config_table(override(Config(), ["train.steps=3"]))
    text = text_of(table)
    assert all(name in text for name, _, _ in settings(Config()))
    rows = dict(zip(table.columns[0].cells, table.columns[1].cells, strict=True))
    assert [name for name, cell in rows.items() if cell.style] == ["train.steps"]  # type: ignore[union-attr]


def test_a_value_is_not_markup() -> None:
    hostile = "/data/[bold]x[/nothing] :smile:"
    config = override(recipe("smoke"), [f"data.source={hostile}", f"recipe={hostile}"])
    text = text_of(show.config_table(config))
    assert text.count(hostile) == 3  # the title and two settings


def test_lines_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    line = "report [/x] :smile: " + "/a" * 200
    show.show(line)
    assert capsys.readouterr().out == line + "\n"


def test_the_summary_says_where_things_are(results: dict[str, Any]) -> None:
    lines = [thing for thing in show.run_summary(results, "runs/x") if isinstance(thing, str)]
    assert f"{results['model']['parameters']:,} parameters" in lines[0]
    assert f"{results['train']['tokens']:,} tokens" in lines[0]
    assert "runs/x/artifact.fwy" in lines[1]
    assert "runs/x/report.html" in lines[1]


@pytest.mark.parametrize("first", [["a row of several words"], []])
@pytest.mark.parametrize("columns", [3, 12, 40])
def test_no_number_is_cut(
    columns: int, first: list[str], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("COLUMNS", "80")
    numbers = [f"{1234567.125 + column:,.3f}" for column in range(columns)]
    names = [
        *["a name of several words"] * len(first),
        *(f"c{column}" for column in range(columns)),
    ]
    names[-1] = "thousandths of names"
    show.show(show.plain_table("numbers", names, [[*first, *numbers]]))
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if numbers[0] in line)
    assert cells(row)[len(first) :] == numbers and "thousandths" in out


def test_words_of_a_table_are_broken_to_fit(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    words = " ".join(["train.steps=3"] * 40)
    show.show(show.plain_table("runs", ("run", "settings", "bytes"), [("a", words, "1,234")]))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100 and any("1,234" in line for line in lines)
