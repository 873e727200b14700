"""The documents cannot lie: every command in them parses, every setting they name exists."""

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

import fairway
from fairway.base.errors import UserError
from fairway.cli import main as cli
from fairway.cli.examples import EXAMPLES
from fairway.config.overrides import override
from fairway.config.settings import Config, settings, unknown_name
from fairway.recipes import RECIPES, own, recipe

ROOT = Path(fairway.__file__).parent.parent
# The log is history: what was typed then stays as it was.
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTS = [path for path in DOCUMENTS if path.exists() and path.name != "LOG.md"]
SETTINGS = [name for name, _, _ in settings(Config())]
SECTIONS = sorted({name.partition(".")[0] for name in SETTINGS if "." in name})
# Code is fenced, or indented by four.
BLOCKS = re.compile(r"^ *```(?:.|\n)*?^ *```|^ {4}.*$", re.MULTILINE)
# A prompt and variables may stand before the program.
COMMAND = re.compile(r"\s*(\$ )?(\w+=\S* +)*(\.venv/bin/)?fairway(?= |$)")


def snippets(text: str) -> Iterator[str]:
    """Yield the lines of code blocks, continued ones joined, and then all inline code."""
    lines = "\n".join(BLOCKS.findall(text))
    yield from lines.replace("\\\n", " ").splitlines()
    yield from inline_code(text)


def inline_code(text: str) -> list[str]:
    """Return what stands between single backticks, on one line or over a line's end."""
    return re.findall(r"`([^`]+)`", BLOCKS.sub("", text).replace("\n", " "))


def _words(line: str) -> list[str]:
    """Return a command line's words; prose with a lone apostrophe is no command line."""
    try:
        return shlex.split(line, comments=True)
    except ValueError:
        return []


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words after `fairway` of every command in a text."""
    for snippet in snippets(text):
        for part in re.split(r"&&|\||;", snippet):
            if command := COMMAND.match(part):
                words = shlex.split(part[command.end() :].replace("...", ""), comments=True)
                # Brackets mark what may be left out.
                yield [word.strip("[]") for word in words if word.strip("[]")]


def fault(words: list[str]) -> str | None:
    """Return what is wrong with a command: verb, option, recipe or setting; None if nothing.

    Arguments may be missing, since prose names verbs alone, and upper case stands for anything.
    """
    command: Any = typer.main.get_command(cli.app)
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        name, *words = words
        if name not in command.commands:
            return unknown_name("verb", name, command.commands)
        command = command.commands[name]
    options = {name: item for item in command.params for name in item.opts if name[0] == "-"}
    arguments, overrides = [], []
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if not word.startswith("-"):
            arguments.append(word)
        elif name not in options and name != "--help":
            return unknown_name("option", name, options)
        elif name != "--help" and not options[name].is_flag:
            value = value if equals else next(rest, "")
            overrides += [value] if name == "--set" and value != value.upper() else []
    return _wrong_arguments(command, arguments, overrides)


def _wrong_arguments(command: Any, arguments: list[str], overrides: list[str]) -> str | None:
    places = [item for item in command.params if item.param_type_name == "argument"]
    if len(arguments) > len(places) and all(item.nargs == 1 for item in places):
        return f"too many arguments: {arguments}"
    takes_recipe = bool(places) and places[0].name == "recipe"
    named = arguments[0] if takes_recipe and arguments and arguments[0].islower() else "demo"
    # A file of the reader's own; `test_own_recipes` executes the one that the documents show.
    named = "demo" if own.is_file(named) else named
    if named not in RECIPES:
        return unknown_name("recipe", named, RECIPES)
    try:
        override(recipe(named), overrides)
    except UserError as error:
        return str(error)
    return None


def unknown_settings(text: str) -> list[str]:
    """Return the settings that a text names in inline code, alone or with a value, in vain."""
    found = []
    for code in inline_code(text):
        named = re.fullmatch(rf"((?:{'|'.join(SECTIONS)})\.\w+)(?:=.*)?", code)
        if named and named[1] not in SETTINGS and not is_file(named[1]):
            found.append(named[1])
    return found


def is_file(name: str) -> bool:
    """Return whether a name is rather that of a file or of a module, such as score.ledger."""
    module = Path(fairway.__file__).parent / f"{name.replace('.', '/')}.py"
    return module.exists() or name.rpartition(".")[2] in (
        "py",
        "md",
        "json",
        "jsonl",
        "bin",
        "safetensors",
    )


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_parses(document: Path) -> None:
    faults = {" ".join(words): fault(words) for words in commands(document.read_text())}
    assert {line: wrong for line, wrong in faults.items() if wrong} == {}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_setting_exists(document: Path) -> None:
    assert unknown_settings(document.read_text()) == []


def test_every_verb_has_examples_that_parse() -> None:
    root: Any = typer.main.get_command(cli.app)
    verbs = {**root.commands, **root.commands["data"].commands}
    assert {*EXAMPLES, "data"} == set(verbs)
    shown = [words for some in EXAMPLES.values() for words in some]
    assert {words: fault(shlex.split(words)) for words in shown} == dict.fromkeys(shown)


def test_the_examples_in_python_run(
    smoke_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/api.md").read_text(), re.S | re.M)
    assert len(blocks) == 8
    shutil.copytree(smoke_run, tmp_path / "runs/demo")
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    for block in blocks:
        assert len(block.strip().splitlines()) <= 11, "an example has ten lines"
        exec(block, scope)
    assert (tmp_path / "weights/model.safetensors").is_file()


# ---------------------------------------------------------------------------------------------
# That these tests can fail

EXAMPLE = """
Type `fairway run demo` or `fairway data
build`, see `fairway.load` and `fairway/cli/main.py`.

```bash
make demo
$ fairway run demo --set train.budget_s=1200 \\
    --out runs/long   # twenty minutes
OMP_NUM_THREADS=1 .venv/bin/fairway score runs/demo --json | less
fairway train RECIPE [--resume] --set SECTION.FIELD=VALUE
fairway score ARTIFACT text.txt ...
```

or, indented,

    fairway sample runs/demo --prompt "In the"   # said aloud
"""


def test_commands_are_found() -> None:
    assert list(commands(EXAMPLE)) == [
        ["run", "demo", "--set", "train.budget_s=1200", "--out", "runs/long"],
        ["score", "runs/demo", "--json"],
        ["train", "RECIPE", "--resume", "--set", "SECTION.FIELD=VALUE"],
        ["score", "ARTIFACT", "text.txt"],
        ["sample", "runs/demo", "--prompt", "In the"],
        ["run", "demo"],
        ["data", "build"],
    ]
    assert [fault(words) for words in commands(EXAMPLE)] == [None] * 7


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("trian demo", "did you mean 'train'?"),
        ("data get", "unknown verb 'get'"),
        ("run demo --steps 3", "unknown option '--steps'"),
        ("run deno", "did you mean 'demo'?"),
        ("run demo smoke", "too many arguments"),
        ("run demo --set train.budget=3", "did you mean 'train.budget_s'?"),
        ("run demo --set train.budget_s=3", "is not below"),
        ("run demo --set=train.steps=x", "must be a whole number"),
    ],
)
def test_wrong_commands_are_found(line: str, told: str) -> None:
    assert told in str(fault(line.split()))


def test_unknown_settings_are_found() -> None:
    text = "`train.steps=3` `score.py` `fairway/api.py` `train.step` `model.gpt` `stages.raw.bpb`"
    assert unknown_settings(text) == ["train.step"]
    assert unknown_settings("the model.gain of prose, and `score.bpb + 1`") == []
