"""A recipe of several sizes: the machine's speed decides, a run that is there keeps its own."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from damage import Cli

from fairway.config.settings import Config
from fairway.config.written import from_dict
from fairway.machine.plan import Plan
from fairway.pipeline import sizes
from fairway.pipeline.folder import RunFolder
from fairway.pipeline.record import command_of
from fairway.pipeline.sizes import sized
from fairway.planning.choice import options_of
from fairway.planning.cost import step_flops
from fairway.planning.law import fitted_law
from fairway.planning.proposal import embedded_text
from fairway.recipes import RECIPES, SIZES, recipe

PLAN = Plan("cpu", "float32", "highest", 1, "plain")
FIXED = ["runtime.threads=1", "runtime.dtype=float32", "runtime.matmul=highest"]
# FLOPs per second of two old cores without bfloat16, and of two of the fastest that have it.
SLOW, FAST = 8e10, 6e11
Machine = Callable[[float], list[str]]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Return a function that sets the speed; what it returns names all configs that are timed."""

    def of(flops: float) -> list[str]:
        timed: list[str] = []

        def seconds(config: Config, plan: Plan) -> float:
            timed.append(config.recipe)
            return 0.04 + step_flops(config) / flops

        monkeypatch.setattr(sizes, "least_step_seconds", seconds)
        return timed

    return of


def chosen(*overrides: str, folders: tuple[RunFolder, ...] = ()) -> tuple[str, list[str]]:
    said: list[str] = []
    return sized("demo", [*FIXED, *overrides], folders, said.append).name, said


@pytest.mark.parametrize(("flops", "size"), [(SLOW, "demo_small"), (FAST, "demo_wide")])
def test_the_speed_decides_and_is_told(flops: float, size: str, machine: Machine) -> None:
    timed = machine(flops)
    name, said = chosen()
    assert name == size and set(timed) == set(SIZES["demo"])
    assert [line.partition(":")[0] for line in said[:-1]] == [*SIZES["demo"]]
    assert f"demo is {size} here" in said[-1]


def test_a_longer_budget_gets_the_larger_model(machine: Machine) -> None:
    machine(SLOW)
    assert chosen("train.budget_s=4000")[0] == "demo_wide"


def test_a_load_that_passes_does_not_count() -> None:
    config = recipe("demo_small")
    seconds = iter([3.0, 0.5, 0.4, 2.0])
    both = {"a": config, "b": dataclasses.replace(config, seed=1)}
    found = options_of(both, PLAN, fitted_law(), lambda config, plan: next(seconds))
    assert {option.name: option.step_s for option in found} == {"a": 0.4, "b": 0.5}
    assert found[0].name == "a" and found[0].steps == 480


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.clock=steps", "train.steps=3"],
        ["model.dim=256"],
        [" train.seq_len =128", "optim.matrix_lr=0.02"],
    ],
)
def test_where_nothing_is_to_choose_nothing_is_timed(
    overrides: list[str], machine: Machine
) -> None:
    timed = machine(FAST)
    assert chosen(*overrides) == ("demo", []) and timed == []


@pytest.mark.parametrize("name", ["smoke", "demo_small", "some.py"])
def test_another_recipe_stands_for_itself(name: str, machine: Machine) -> None:
    timed = machine(FAST)
    assert sized(name, [], [], print).name == name and timed == []


def test_settings_that_no_size_has_leave_the_choice(machine: Machine) -> None:
    machine(FAST)
    assert chosen("optim.scalar_lr=0.03", "seed=7", "train.budget_s=210")[0] == "demo_wide"


def test_a_size_is_expected_where_its_own_runs_lay() -> None:
    law, config = fitted_law(), recipe("demo_wide")
    text = embedded_text(config.model.vocab_size, config.data.case_ops)
    by_law = dataclasses.replace(law, sizes={})
    runs = law.sizes["demo_wide"]
    off = [law.predict(config, n, text, 0.0).bpb - by_law.predict(config, n, text, 0.0).bpb
           for n in (100, *(steps for steps, _ in runs), 9000)]  # fmt: skip
    assert off == pytest.approx([runs[0][1], *(far for _, far in runs), runs[-1][1]])


def test_the_sizes_are_recipes_of_one_text_and_one_budget() -> None:
    for name, options in SIZES.items():
        configs = [RECIPES[option]() for option in options]
        assert [config.recipe for config in configs] == [*options]
        same = {(c.train.budget_s, c.data) for c in configs}
        assert len(same) == 1 and dataclasses.replace(configs[0], recipe=name) == recipe(name)


@pytest.mark.long
def test_a_run_holds_the_numbers_and_keeps_them(
    cli: Cli, data_folder: Path, tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = [f"data.source={data_folder}", "model.vocab_size=300", "pack.code_bytes=0"]
    short = ["train.budget_s=0.7", "train.reserve_s=0.1", "train.warmup_steps=1"]
    words = [word for pair in [*text, *short, *FIXED] for word in ("--set", pair)]
    out = tmp_path / "run"
    seconds = {"demo_small": 0.5, "demo_wide": 0.02}
    monkeypatch.setattr(sizes, "least_step_seconds", lambda config, plan: seconds[config.recipe])
    assert (told := cli("train", "demo", "--out", str(out), *words)).code == 0, told.err
    assert "demo is demo_wide here" in told.out
    folder = RunFolder.existing(out)
    config = from_dict(folder.memory["config"])
    assert config.recipe == "demo_wide" and config.model.dim == recipe("demo_wide").model.dim
    assert " demo_wide " in command_of(config, out, None)
    # On a machine that is slow now: the same run, and one that begins with its weights.
    timed = machine(1e9)
    assert (told := cli("train", "demo", "--out", str(out), *words)).code == 0, told.err
    assert "train: unchanged" in told.out and timed == []
    for path in (out, out / "weights.safetensors"):
        assert chosen(*text, *short, f"train.init={path}")[0] == "demo_wide"
    assert chosen(*text, "train.clock=replay", f"train.replay={out}")[0] == "demo_wide"
    assert timed == []
