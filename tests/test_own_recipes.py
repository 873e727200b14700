"""Recipes of others: a Python file, or a package that registers one. Reading executes neither."""

import json
import shutil
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from damage import Cli
from everywhere import take_evidence
from small_run import FEW, sample_little

import fairway
from fairway.audit.records.audit import audit_record
from fairway.base.errors import UserError
from fairway.base.files import digest_file, read_json
from fairway.config.settings import Config
from fairway.pipeline.folder import RunFolder
from fairway.recipes import find, recipe
from fairway.submission.submission import DIGESTS, Claim, seal, submit
from fairway.submission.verify import verify

HEAD = """\
from dataclasses import dataclass, replace
from pathlib import Path
from fairway.config.settings import Config, ModelConfig
from fairway.recipes import recipe
"""
SMALL = """
def small() -> Config:
    with Path(__file__).with_name("executed").open("a") as log:
        log.write("x")
    base = recipe("smoke")
    return replace(base, train=replace(base.train, steps=3))
"""


def written(folder: Path, body: str, name: str = "mine.py") -> Path:
    file = folder / name
    file.write_text(HEAD + body)
    return file


def test_the_recipes_of_the_documents_work(tmp_path: Path) -> None:
    text = (Path(fairway.__file__).parents[1] / "docs/recipes.md").read_text()
    (tmp_path / "my_recipe.py").write_text(text.split("```python\n")[1].split("```")[0])
    for name, setting in (("wide", "mlp_dim"), ("deep", "num_layers")):
        found = find(f"{tmp_path / 'my_recipe.py'}:{name}").config
        assert found.recipe == name
        assert getattr(found.model, setting) > getattr(recipe("smoke").model, setting)


# ---------------------------------------------------------------------------------------------
# Which function


@pytest.mark.parametrize(
    ("body", "chosen", "steps"),
    [
        (SMALL, "", 3),
        (SMALL + "def widths(n): return n\ndef m() -> ModelConfig: return ModelConfig()\n", "", 3),
        (SMALL + "def _base(): return Config()\n", "", 3),
        (SMALL + "def other(steps=5):\n    base = small()\n"
         "    return replace(base, train=replace(base.train, steps=steps))\n", ":other", 5),
        (SMALL + "twice = small\n", ":twice", 3),
        (SMALL + "@dataclass\nclass Widths:\n    dim: int = 64\nprint(Widths())\n", "", 3),
    ],
)  # fmt: skip
def test_the_function_that_is_meant_is_called(
    tmp_path: Path, body: str, chosen: str, steps: int, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set(sys.modules), list(sys.path)
    found = find(f"{written(tmp_path, body)}{chosen}")
    assert found.config.train.steps == steps
    assert found.config.recipe == (chosen[1:] or "small")
    assert found.origin is not None and found.origin["files"][0]["text"] == HEAD + body
    assert capsys.readouterr().out == "", "what a recipe prints must not enter --json"
    assert not (tmp_path / "__pycache__").exists()
    assert (before[0] >= {n for n in sys.modules if "own_code" in n}) and list(sys.path) == before[
        1
    ]


def test_a_name_of_its_own_is_kept_and_numbers_become_those_of_settings(tmp_path: Path) -> None:
    body = "def x():\n    base = recipe('demo')\n    return replace(base, recipe='poems-2', "
    body += "train=replace(base.train, budget_s=100))\n"
    config = find(str(written(tmp_path, body))).config
    assert config.recipe == "poems-2" and repr(config.train.budget_s) == "100.0"


def test_files_beside_it_are_imported_recorded_and_forgotten(tmp_path: Path) -> None:
    for name, steps in (("a", 3), ("b", 4)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "common.py").write_text(f"STEPS = {steps}\n")
        (tmp_path / name / "json.py").write_text("raise OSError('the wrong json')\n")
        body = "import json\nimport common\ndef x():\n    base = recipe('smoke')\n"
        body += "    return replace(base, train=replace(base.train, steps=common.STEPS))\n"
        found = find(str(written(tmp_path / name, body)))
        assert found.config.train.steps == steps
        assert found.origin is not None
        assert [file["name"] for file in found.origin["files"]] == ["mine.py", "common.py"]
        assert found.origin["files"][1]["text"] == f"STEPS = {steps}\n"
    assert "common" not in sys.modules


# ---------------------------------------------------------------------------------------------
# What is wrong is told in one sentence


@pytest.mark.parametrize(
    ("body", "chosen", "told"),
    [
        ("", "", "defines no function; write one that returns a Config"),
        ("def x(n): return Config()\n", "", "no public function that takes no arguments"),
        ("def x(): return Config()\ndef y(): return Config()\n", "",
         "defines 2 recipes (x, y); name one, as in"),
        ("def small(): return Config()\n", ":smal", "unknown function 'smal'; did you mean"),
        ("def small(): return Config()\n", ":", "unknown function ''"),
        ("config = Config()\n", ":config", "is a value of type Config and not a function"),
        ("def x(): return ModelConfig()\n", "", "returned a value of type ModelConfig, not"),
        ("def x(): pass\n", "", "returned None, not a Config"),
        ("async def x(): return Config()\n", ":x", "returned a value of type coroutine"),
        ("def x(): return Config(model=ModelConfig(width=3))\n", "",
         "raised TypeError: ModelConfig.__init__() got an unexpected keyword argument 'width' (l"),
        ("def x(): return Config(model=ModelConfig(dim='wide'))\n", "",
         "config field 'model.dim' has the wrong type"),
        ("def x(): return Config(model=ModelConfig(dim=3))\n", "", "model.dim is 3; it must be"),
        ("def x(): return Config(seed=print)\n", "", "config field 'seed' has the wrong type"),
        ("def x(): return Config(recipe='../up')\n", "", "recipe is '../up'; a name"),
        ("def x(): return recipe('dmo')\n", "", "raised UserError: unknown recipe 'dmo'"),
        ("def x(): raise SystemExit(3)\n", "", "x raised SystemExit: 3 (line 5 of mine.py)"),
        ("def x(): raise BaseException('odd')\n", "", "x raised BaseException: odd (line 5 of"),
        ("class Own(BaseException): pass\ndef x(): return Config()\nraise Own\n", ":x",
         "mine.py raised Own (line 7 of mine.py)"),
        ("async def x(): return Config()\n", "", "returned a value of type coroutine"),
        ("if True:\n    x = lambda: 3\n", "", "returned a value of type int, not a Config"),
        ("def x(): return Config()\n1 / 0\n", "", "mine.py raised ZeroDivisionError"),
        ("import nowhere_at_all\ndef x(): return Config()\n", "", "raised ModuleNotFoundError"),
        ("def x(): return x()\n", "", "raised RecursionError"),
        ("def x(:\n", "", "is not Python: invalid syntax, line 5"),
        ("\0", "", "is not Python"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_one_sentence(
    tmp_path: Path, body: str, chosen: str, told: str, cli: Cli
) -> None:
    file = written(tmp_path, body)
    for verb in ("run", "bundle"):
        found = cli(verb, f"{file}{chosen}", "--out", tmp_path / "out")
        assert found.code == 2 and found.out == ""
        assert told in found.err and found.err.count("\n") == 1, found.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: None, "does not exist"),
        (Path.mkdir, "is a folder"),
        (lambda path: path.write_bytes(b"# caf\xe9\n"), "is not UTF-8: "),
        (lambda path: path.write_text(f"#{'x' * (1 << 20)}\n"), "at most 1,048,576 are read"),
    ],
)
def test_what_is_no_file_of_python_is_told(
    tmp_path: Path, make: Callable[[Path], object], told: str, cli: Cli
) -> None:
    make(tmp_path / "mine.py")
    for verb in ("run", "train", "seeds"):
        found = cli(verb, tmp_path / "mine.py", "--out", tmp_path / "out")
        assert found.code == 2 and told in found.err and found.err.count("\n") == 1


def test_other_files_and_bundles_are_no_recipes(tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "mine.txt").write_text("def x(): pass")
    assert "a Python file that ends in .py" in cli("run", tmp_path / "mine.txt").err
    bundle = tmp_path / "train_gpt.py"
    bundle.write_text("import sys\nsys.exit('it ran')\n")
    assert "defines no function" in cli("run", bundle).err, "it is not even begun"


# ---------------------------------------------------------------------------------------------
# Packages that register recipes


def package(folder: Path, name: str, entry: str, code: str) -> None:
    """Write an installed package that registers one entry point."""
    info = folder / f"{name}-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
    (info / "entry_points.txt").write_text(f"[fairway.recipes]\n{entry} = {name}:made\n")
    (folder / f"{name}.py").write_text(HEAD + code)


def test_packages_register_recipes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    made = "def made():\n    return replace(recipe('smoke'), seed=7)\n"
    package(tmp_path, "fairway_poems", "poems", made)
    package(tmp_path, "fairway_odes", "odes", "raise OSError('no ink')\n")
    package(tmp_path, "fairway_own", "demo", made)
    for name in ("one", "two"):
        package(tmp_path, f"fairway_twice_{name}", "twice", made)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = find("poems")
    assert found.config.recipe == "poems" and found.config.seed == 7
    assert found.origin is not None and found.origin["package"] == "fairway_poems 1.5"
    assert found.origin["files"][0]["name"] == "fairway_poems.py"
    assert recipe("demo").seed == 42, "a package takes no name of Fairway's"
    for name, told in (
        ("poem", "did you mean 'poems'?"),
        ("odes", "recipe 'odes' of fairway_odes 1.5 cannot be loaded: it raised OSError: no ink"),
        ("twice", "registered 2 times, by fairway_twice_one 1.5 and fairway_twice_two 1.5"),
    ):
        assert told in (err := cli("run", name).err) and err.count("\n") == 1, err
    monkeypatch.setattr("fairway.bundle.build.bundle_bytes", lambda config: 20_000)
    dry = cli("run", "poems", "--dry-run", "--json")
    assert dry.code == 0 and json.loads(dry.out)["config"]["seed"] == 7
    assert metadata.entry_points(group="fairway.recipes", name="poems")


# ---------------------------------------------------------------------------------------------
# A run, and a record, of such a recipe


@pytest.fixture(scope="module")
def ran(
    tmp_path_factory: pytest.TempPathFactory, settings: list[str], smoke_run: Path
) -> tuple[Path, list[str], Path]:
    """Return a file, the options and the folder of a finished run of its recipe."""
    from fairway.config.overrides import override
    from fairway.pipeline.run import Pipeline

    folder = tmp_path_factory.mktemp("own")
    settings = [*settings, *FEW, "data.val_bytes=300"]
    file = written(folder, SMALL)
    found = find(str(file))
    config = override(found.config, [*settings, "pack.code_bytes=auto"])
    pipeline = Pipeline(config, RunFolder(folder / "run"), lambda text: None, found.origin)
    with pytest.MonkeyPatch.context() as patch, pipeline.writing():
        take_evidence(smoke_run, patch)
        sample_little(patch)
        pipeline.walk()
    return file, settings, folder / "run"


def executions(file: Path) -> int:
    return len(file.with_name("executed").read_text())


@pytest.mark.long
def test_a_folder_that_is_read_executes_nothing(
    ran: tuple[Path, list[str], Path], tmp_path: Path, cli: Cli
) -> None:
    file, _, run = ran
    before = executions(file)
    copy = Path(shutil.copytree(run, tmp_path / "runs" / "one"))
    for words in (
        ("report", copy),
        ("score", copy),
        ("pack", copy),
        ("runs", tmp_path / "runs"),
        ("sample", copy, "--prompt", "the", "--tokens", "5"),
        ("compare", copy, run),
    ):
        assert cli(*words).code == 0, words
    assert executions(file) == before
    origin = read_json(copy / "results.json")["recipe_origin"]
    assert origin["files"] == {"mine.py": digest_file(file)}
    assert str(file.parent) not in (copy / "results.json").read_text()
    assert digest_file(file) in (copy / "report.html").read_text()


def test_runs_tell_what_departs_from_the_recipe_and_how_to_go_on(
    ran: tuple[Path, list[str], Path], tmp_path: Path, cli: Cli
) -> None:
    file, _, run = ran
    found = json.loads(cli("runs", run, "--json").out)[0]
    assert found["recipe"] == "small"
    assert "model.vocab_size=300" in found["differences"]
    own = [text for text in found["differences"] if text.startswith("train.steps")]
    assert not own, "three steps are its own"
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    (copy / "weights.safetensors").unlink()
    (copy / "tokenizer.model").unlink(missing_ok=True)
    (copy / "steps.jsonl").write_text("")
    assert f"fairway run {file} --out" in cli("report", copy).err


def test_a_record_carries_the_file_and_nobody_executes_it(
    ran: tuple[Path, list[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, _, run = ran
    before = executions(file)
    monkeypatch.setattr("fairway.submission.submission._commit", lambda: "0" * 40)
    # tests/test_submission.py has it: seconds for a bundle that knows nothing of the file.
    monkeypatch.setattr("fairway.submission.submission._dry_run", lambda *_: None)
    out = tmp_path / "record"
    claim = submit([run], Claim("Small", "non_record", "A. B.", min_seeds=1), out, lambda _: None)
    assert claim["recipe_files"] == {"recipe/mine.py": digest_file(file)}
    assert (out / "recipe/mine.py").read_bytes() == file.read_bytes()
    assert "`small` of `recipe/mine.py`" in (out / "README.md").read_text()
    assert verify(out).faults == ()
    assert {f.code for f in audit_record(out).findings} <= {"few-seeds", "no-denominator"}
    assert executions(file) == before
    # A digest that follows the edit does not help: the results tell of another file.
    (out / "recipe/mine.py").write_text("print('another')\n")
    (out / DIGESTS).unlink()
    seal(out)
    assert "recipe/mine.py is not the recipe's file" in verify(out).faults[0]


def test_a_folder_of_another_recipe_forgets_the_file(
    ran: tuple[Path, list[str], Path], tmp_path: Path, tiny: Callable[..., Config]
) -> None:
    from fairway.pipeline.run import Pipeline

    copy = Path(shutil.copytree(ran[2], tmp_path / "run"))
    pipeline = Pipeline(tiny(), RunFolder(copy), lambda text: None)
    with pipeline.writing():
        pipeline.train()
    assert "origin" not in RunFolder(copy).memory


@pytest.mark.parametrize("value", [3, {}, {"argument": "x"}, {"files": []}])
def test_a_damaged_origin_is_refused(
    ran: tuple[Path, list[str], Path], tmp_path: Path, value: object
) -> None:
    copy = Path(shutil.copytree(ran[2], tmp_path / "run"))
    folder = RunFolder(copy)
    folder.remember("origin", value)
    with pytest.raises(UserError, match="is damaged: origin"):
        RunFolder(copy)


@pytest.mark.long
def test_seeds_run_it_in_processes_of_their_own(
    ran: tuple[Path, list[str], Path], tmp_path: Path, cli: Cli
) -> None:
    file, settings, _ = ran
    options = [
        word
        for text in [*settings, "audit.budget_s=0", "prove.bytes=0"]
        for word in ("--set", text)
    ]
    found = cli("seeds", file, "7", "--out", tmp_path / "seeds", "--json", *options)
    assert found.code == 0, found.err
    assert json.loads(found.out)["seeds"]["7"]["steps"] == 3
    assert RunFolder(tmp_path / "seeds" / "seed-7").memory["origin"]["function"] == "small"
