"""What a notebook shows: a model, a score, the results of a run, and a bar meanwhile."""

import os
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from small_run import FEW, sample_little, small_run

import fairway
from fairway.base import notebook
from fairway.base.errors import UserError
from fairway.base.files import digest_file, read_json
from fairway.config.settings import Config, RuntimeConfig
from fairway.pipeline.interactive import Results

RUNTIME = RuntimeConfig(threads=1, dtype="float32", matmul="highest")


class Cells(HTMLParser):
    """The texts of a piece of HTML, and whether its tags are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attributes: object) -> None:
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_a_model_and_its_score_have_a_table(smoke_run: Path) -> None:
    model = fairway.load(smoke_run, runtime=RUNTIME)
    shown = Cells(model._repr_html_()).texts
    count = read_json(smoke_run / "results.json")["model"]["parameters"]
    assert shown[0] == f"A model of {count:,} parameters" and "300 tokens" in shown
    assert shown[-1] == model.plan.describe()
    score = model.score("The model learns.")
    shown = Cells(score._repr_html_()).texts
    assert shown[0] == f"{score.bpb:.4f} bits per byte" and "17 bytes, " in shown[2]


def test_results_show_scores_beside_compressors_the_best_first(smoke_run: Path) -> None:
    found = fairway.results(smoke_run)
    assert found == read_json(smoke_run / "results.json") and found.bpb < 10
    assert fairway.results(smoke_run / "artifact.fwy") == found
    shown = Cells(found._repr_html_()).texts
    numbers = [float(t) for t in shown if t.replace(".", "").isdigit()]
    assert numbers == sorted(numbers) and len(numbers) > 8
    claimed = shown.index(f"model, {found['headline']} (claimed)")
    assert shown[claimed + 1] == f"{found.bpb:.4f}" and f"{found.bpb:.4f} bits" in shown[0]
    with pytest.raises(UserError, match="not a run folder"):
        fairway.results(smoke_run / "data")


def test_names_of_others_are_text(smoke_run: Path) -> None:
    found = Results(
        fairway.results(smoke_run) | {"recipe": "<b>\x1b[31m", "samples": []}, Path("<i>")
    )
    page = found._repr_html_()
    assert "<b>\x1b" not in page and "<i>" not in page and "\x1b" not in page
    assert Cells(notebook.facts([("<u>", "a & b")])).texts == ["<u>", "a & b"]


@pytest.mark.long
def test_a_run_from_python_is_that_of_the_command(
    settings: list[str],
    tmp_path: Path,
    evidence_at_once: None,
    tiny: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "run"
    sample_little(monkeypatch)
    found = fairway.run("smoke", *settings, *FEW, out=out)
    assert found["artifact"]["digest"] == digest_file(small_run(tiny) / "artifact.fwy")
    assert found["stages"]["sliding"]["bpb"] > 0
    assert found.folder == out and (out / "report.html").is_file()
    with pytest.raises(UserError, match=r"model\.dimm"):
        fairway.run("smoke", "model.dimm=3", out=out)


@pytest.mark.slow
def test_a_notebook_shows_bar_model_and_results(
    settings: list[str], tmp_path: Path, smoke_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("nbclient", "ipykernel", "ipywidgets"):
        pytest.importorskip(name)
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(fairway.__file__).parents[1])]))
    sets = [*settings, "prove.bytes=0", "audit.budget_s=1"]
    cells = [
        f"import fairway\nmodel = fairway.load({str(smoke_run)!r})\nmodel",
        "model.score('The model learns.')",
        f"fairway.run('smoke', *{sets!r}, out={str(tmp_path / 'run')!r})",
    ]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(book, timeout=300, kernel_name="python3").execute()
    kinds = [{kind for out in cell.outputs for kind in out.get("data", {})} for cell in book.cells]
    assert all("text/html" in kind for kind in kinds)
    assert "application/vnd.jupyter.widget-view+json" in kinds[2], "a bar"
    # Rich prints what is said beside a bar as HTML of its own, wherever its widget is.
    assert "step 00012" in str(book)
