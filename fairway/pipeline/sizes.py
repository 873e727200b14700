"""Chooses a size of a recipe by the machine's speed, once for each run.

A folder with a run keeps the size of that run, independent of the machine's present load.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairway.base.errors import UserError
from fairway.base.names import WEIGHTS
from fairway.base.units import duration
from fairway.config.overrides import override
from fairway.config.settings import Config, settings
from fairway.machine.plan import Plan, make_plan
from fairway.machine.ranks import join_ranks
from fairway.pack.artifact import read_label
from fairway.pipeline.folder import RunFolder
from fairway.pipeline.initial import initial_file
from fairway.pipeline.live import Watching
from fairway.pipeline.planning import keep_plan
from fairway.pipeline.run import Pipeline
from fairway.planning.choice import Option, options_of
from fairway.planning.law import fitted_law
from fairway.planning.speed import least_step_seconds
from fairway.recipes import RECIPES, SIZES, find
from fairway.train.steps import Say


@dataclass(frozen=True, slots=True)
class Sized:
    """A recipe's name, and the machine plan of its speed measurement, or None."""

    name: str
    plan: Plan | None = None


def open_recipe(
    recipe: str,
    out: Path | None,
    overrides: Sequence[str],
    resume: bool,
    restart: bool,
    say: Say,
    watching: Watching | None = None,
) -> Pipeline:
    """Return the pipeline of a run of a recipe in a folder, by default runs/RECIPE.

    Raises UserError for a wrong recipe or setting, and if there is nothing to resume. With
    `restart` the size of an existing run is ignored.
    """
    found = find(recipe)
    config = override(found.config, overrides)
    folder = RunFolder(out or Path("runs") / found.config.recipe)
    if resume and not folder.is_begun():
        raise UserError(f"{folder.path} holds no run to resume; leave out --resume to begin one")
    size = sized(recipe, overrides, [] if restart else [folder], say)
    if size.name != recipe:
        config = override(RECIPES[size.name](), overrides)
    if size.plan:
        keep_plan(size.plan, config, folder)
    return Pipeline(config, folder, say, found.origin, watching)


def sized(name: str, overrides: Sequence[str], folders: Iterable[RunFolder], say: Say) -> Sized:
    """Return the recipe that a name means on this machine, under these overrides.

    A name of a single recipe is returned unchanged. Otherwise the first folder with a run of one of
    the sizes decides; then the run whose weights or progress are used; then the speed of this
    machine, measured for some seconds. There is no choice if the overrides set a setting in which
    the sizes differ, for a run by steps, and with several processes. Raises UserError for wrong
    overrides.
    """
    if name not in SIZES:
        return Sized(name)
    base = override(RECIPES[name](), overrides)
    kept = (folder.memory for folder in folders)
    known = next(filter(SIZES[name].__contains__, map(_recipe_in, kept)), "") or _followed(base)
    if known in SIZES[name]:
        say(f"{name} is {known}, like the run in this folder")
        return Sized(known)
    if join_ranks().world > 1 or known or _is_settled(name, base, overrides):
        return Sized(name)
    return _measured(name, overrides, say)


def _recipe_in(memory: Mapping[str, Any]) -> str:
    """Return the recipe of the run in a folder's memory, finished or begun."""
    config = memory.get("config") or memory.get("begun", {}).get("config", {})
    return str(config.get("recipe", ""))


def _followed(config: Config) -> str:
    """Return the recipe of the run or artifact that a config continues, or ''."""
    train = config.train
    if train.clock == "replay":
        return _recipe_in(RunFolder.existing(Path(train.replay)).memory)
    if not train.init:
        return ""
    file = initial_file(train.init)
    if file.name == WEIGHTS:
        return _recipe_in(RunFolder.existing(file.parent).memory)
    return str(read_label(file).header["provenance"]["recipe"])


def _is_settled(name: str, config: Config, overrides: Sequence[str]) -> bool:
    """Return whether there is no choice: no budget of seconds, or a requested shape."""
    asked = {text.partition("=")[0].strip() for text in overrides}
    shapes = [dict(_shape(RECIPES[size]())) for size in SIZES[name]]
    differ = {key for key, value in shapes[0].items() if any(s[key] != value for s in shapes)}
    return config.train.clock != "wall" or bool(asked & differ)


def _shape(config: Config) -> Iterator[tuple[str, Any]]:
    """Yield the settings of the model and its batches, except the vocabulary of the text."""
    for name, _, value in settings(config):
        if name.startswith(("model.", "train.")) and name != "model.vocab_size":
            yield name, value


def _measured(name: str, overrides: Sequence[str], say: Say) -> Sized:
    """Return and print the size with the best expected score at the speed measured now."""
    start_s = time.perf_counter()
    configs = {size: override(RECIPES[size](), overrides) for size in SIZES[name]}
    runtime, train = configs[SIZES[name][0]].runtime, configs[SIZES[name][0]].train
    plan = make_plan(runtime)
    plan.apply()
    options = options_of(configs, plan, fitted_law(), least_step_seconds)
    took = duration(time.perf_counter() - start_s)
    for option in sorted(options, key=lambda option: SIZES[name].index(option.name)):
        say(f"{option.name}: {_told(option)}")
    say(
        f"{name} is {options[0].name} here: the steps were timed for {took}, before the "
        f"{duration(train.budget_s)} of training"
    )
    return Sized(options[0].name, plan)


def _told(option: Option) -> str:
    return (
        f"{1000 * option.step_s:,.0f} ms a step, {option.steps:,} steps, {option.bpb:.3f} bits per "
        "byte expected"
    )
