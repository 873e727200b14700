"""The blocks of the documents run: quick commands here, all others in slow tests, page by page.

A block that no test can run says so in its title, which readers see: "Not run by the tests: why".
"""

import ast
import importlib
import importlib.util
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from damage import Cli
from everywhere import sentence, tiny_settings
from test_docs import DOCUMENTS, ROOT

from fairway.recipes import RECIPES

BLOCK = re.compile(r"^```(\w*)(?: title=\"([^\"]*)\")?\n(.*?)^```$", re.M | re.S)
LANGUAGES = {"bash", "python", "text", "toml", "json"}
EXCUSE = "Not run by the tests"
# Blocks of Python without an excuse, and which test runs them.
PYTHON = {
    "README.md": "test_docs_run.py",
    "api.md": "test_docs.py",
    "recipes.md": "test_own_recipes.py",
    "scoring.md": "score/test_scoring_doc.py",
    "format.md": "pack/test_format_doc.py",
    "RULES.md": "audit/test_rules_doc.py",
}
# Verbs that take under a second on a tiny run.
QUICK = ("sample", "runs", "export", "unpack", "data show", "pack runs/demo --account")


class Block(NamedTuple):
    """A fenced block of a page."""

    page: str
    language: str
    title: str
    text: str


def blocks(language: str = "") -> Iterator[Block]:
    for page in DOCUMENTS:
        for kind, title, text in BLOCK.findall(page.read_text()):
            if language in ("", kind):
                yield Block(page.name, kind, title, text)


def lines(page: str) -> list[str]:
    """Return the command lines of a page that tests run, each in one line and without `fairway`."""
    found = []
    for block in blocks("bash"):
        if block.page == page and not block.title:
            text = block.text.replace("\\\n", " ").replace("; do :; done", "")
            for line in filter(None, map(str.strip, text.splitlines())):
                command = re.fullmatch(r"(?:until )?fairway ?(.*)", line)
                assert command, f"{page}: a test cannot run {line!r}; excuse the block by a title"
                found.append(command[1])
    return found


def test_every_block_has_a_language_and_an_excuse_is_one() -> None:
    for page in DOCUMENTS:
        fences = re.findall(r"^```.*$", page.read_text(), re.M)
        assert len(fences) == 2 * len(BLOCK.findall(page.read_text())), page.name
    for block in blocks():
        assert block.language in LANGUAGES, block
        assert not block.title or re.match(rf"{EXCUSE}( here)?: .{{10}}", block.title), block


def test_every_block_of_python_is_run_by_a_test() -> None:
    run = {block.page for block in blocks("python") if not block.title}
    assert run == set(PYTHON)
    assert all((ROOT / "tests" / test).is_file() for test in PYTHON.values())


@pytest.mark.parametrize("block", list(blocks("python")), ids=lambda block: block.page)
def test_every_block_of_python_compiles_and_its_names_exist(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        modules = [alias.name for alias in getattr(node, "names", [])]
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            # What an export writes, and transformers, are elsewhere.
            if importlib.util.find_spec(module.partition(".")[0]):
                found = importlib.import_module(module)
                assert all(hasattr(found, alias.name) for alias in node.names), module
        elif isinstance(node, ast.Import):
            assert all(importlib.util.find_spec(name) for name in modules), modules


@pytest.fixture
def desk(
    smoke_run: Path, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Return a folder with everything that the pages name: a run, texts, data, a recipe."""
    for name in ("demo", "mine", "a"):
        shutil.copytree(smoke_run, tmp_path / "runs" / name)
    shutil.copytree(data_folder, tmp_path / "data")
    for name in ("notes", "poems", "docs"):
        (tmp_path / name).mkdir()
        for number in range(60):
            text = "\n".join(sentence(99 * len(name) + 1000 * number + k) for k in range(20))
            (tmp_path / name / f"{number}.txt").write_text(text)
    import zstandard

    more = json.dumps({"text": "\n".join(map(sentence, range(9000, 9030)))})
    (tmp_path / "more.jsonl.zst").write_bytes(zstandard.compress(more.encode()))
    for name in ("README.md", "text.md"):
        (tmp_path / name).write_text("\n".join(map(sentence, range(7, 12))))
    recipes = (ROOT / "docs/recipes.md").read_text().split("```python\n")[1].split("```")[0]
    (tmp_path / "my_recipe.py").write_text(recipes)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def stand_in(line: str, desk: Path) -> list[str]:
    """Return the words of a line, of which recipes and vocabularies are tiny ones."""
    line = re.sub(r"(vocab[-_]size[ =])\d+", r"\g<1>300", line)
    words = shlex.split(line, comments=True)
    if words[:1] in (["run"], ["train"], ["seeds"]):
        chosen = [item for item in tiny_settings(desk / "data") if item not in line]
        if "data.source" in line:
            chosen = [item for item in chosen if not item.startswith("data.source")]
        words += [word for item in chosen for word in ("--set", item)]
        for setting in ("train.clock=steps", "train.steps=4", "train.budget_s=60"):
            words += ["--set", setting]
        if words[1] in RECIPES and "--out" not in words:
            words += ["--out", f"runs/{words[1]}"]
    # One file with two recipes needs the name of one.
    names = dict.fromkeys(RECIPES, "smoke") | {"my_recipe.py": "my_recipe.py:wide"}
    return [names.get(word, word) if at == 1 else word for at, word in enumerate(words)]


@pytest.mark.usefixtures("evidence_at_once")
def test_quick_commands_run(desk: Path, cli: Cli) -> None:
    shutil.copytree(desk / "data", desk / "my-data")
    quick = {}
    for line in dict.fromkeys(line for page in DOCUMENTS for line in lines(page.name)):
        words = stand_in(line, desk)
        # An adapter is made by a slower command.
        known = tuple(words) in quick or "--adapter" in words
        if line.startswith(QUICK) and not known:
            few = ["--tokens", "4"] if words[0] == "sample" else []
            ended = cli(*words, *few)
            quick[tuple(words)] = ended.err if ended.code else ""
    assert len(quick) > 8
    assert {words: error for words, error in quick.items() if error} == {}


def test_the_block_of_python_in_the_readme_runs(desk: Path) -> None:
    (block,) = (block for block in blocks("python") if block.page == "README.md")
    exec(block.text.replace('"This function"', '"The", max_tokens=4'), {})


@pytest.mark.slow
@pytest.mark.parametrize("page", [page.name for page in DOCUMENTS if lines(page.name)])
def test_the_commands_of_a_page_run(page: str, desk: Path, cli: Cli) -> None:
    for line in lines(page):
        if line.startswith("decompress"):
            assert cli("compress", "text.md", "--artifact", "runs/demo").code in (0, 2)
        ended = cli(*stand_in(line, desk))
        assert ended.code == 0, (line, ended.err)
