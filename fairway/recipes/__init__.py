"""Recipes: functions that return the config of a complete run."""

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fairway.base.errors import UserError
from fairway.config.checks import check
from fairway.config.settings import Config, unknown_name
from fairway.config.written import from_dict, to_dict
from fairway.recipes.demo import demo, demo_small, demo_wide, smoke
from fairway.recipes.own import Called, call_in_file, call_registered, is_file, registered
from fairway.recipes.seed import (
    best,
    best_8,
    best_600,
    pr1493,
    pr1858,
    pr1858_proxy,
    pr1874,
    small,
)

RECIPES: dict[str, Callable[[], Config]] = {
    function.__name__: function
    for function in (
        *(demo, demo_small, demo_wide, smoke, best, best_600, best_8, small),
        *(pr1858, pr1493, pr1874, pr1858_proxy),
    )
}
# A recipe with several sizes, smallest first; the speed of the machine decides which is used.
SIZES = {"demo": ("demo_small", "demo_wide")}
# The entry points by which an installed package registers recipes.
GROUP = "fairway.recipes"
# The name of a recipe is also the name of a folder.
_NAME = re.compile(r"\w[\w.-]{0,99}")


@dataclass(frozen=True, slots=True)
class Found:
    """A recipe that an argument names: its checked config and its origin.

    `origin` is None for a recipe of Fairway. It is ready for JSON otherwise: the argument, the
    function, the package that registers it (empty for a file), the executed files with their
    digests and texts, and the settings that the function returned.
    """

    config: Config
    origin: dict[str, Any] | None = None


def find(argument: str) -> Found:
    """Return the recipe that an argument names; a wrong argument or recipe is a UserError.

    An argument is the name of a recipe of Fairway or of an installed package, or a Python file:
    `my_recipe.py` with one recipe, `my_recipe.py:name` for one of several. This executes a file.
    """
    if argument in RECIPES:
        config = RECIPES[argument]()
        check(config)
        return Found(config)
    if is_file(argument):
        called: Called | None = call_in_file(argument, "recipe", Config)
    else:
        called = call_registered(GROUP, argument, "recipe", Config)
    if called is None:
        raise UserError(_unknown(argument))
    config = _checked(called, argument)
    files = [asdict(file) for file in called.files]
    origin = {"argument": argument, "function": called.name, "package": called.package}
    return Found(config, {**origin, "files": files, "config": to_dict(config)})


def recipe(argument: str) -> Config:
    """Return the config of the recipe that an argument names, checked: see `find`."""
    return find(argument).config


def _unknown(argument: str) -> str:
    if Path(argument).exists() or "/" in argument:
        return (
            f"{argument} is not a recipe: name one, such as demo, or a Python file that ends in .py"
        )
    return unknown_name("recipe", argument, [*RECIPES, *registered(GROUP)])


def _checked(called: Called, argument: str) -> Config:
    """Return the config of a foreign recipe after checks of types and bounds.

    A recipe without a name gets the name of its function.
    """
    given = called.value
    if given.recipe in (Config().recipe, *RECIPES):
        given = replace(given, recipe=called.name)
    try:
        config: Config = from_dict(to_dict(given))
        check(config)
    except UserError as error:
        raise UserError(f"{argument}: {error}") from None
    except Exception as error:
        # A foreign value in the place of a setting may not support copying.
        raise UserError(
            f"{argument} returned settings that are not plain values: {error}"
        ) from None
    if not _NAME.fullmatch(config.recipe):
        raise UserError(
            f"{argument}: recipe is {config.recipe[:60]!r}; a name has at most 100 letters, digits "
            "and . _ -, and begins with a letter or a digit"
        )
    return config
