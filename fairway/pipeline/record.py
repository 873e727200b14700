"""The settings in a run's record."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fairway.base.errors import UserError
from fairway.base.terminal import command
from fairway.config.settings import Config, settings
from fairway.config.written import from_dict
from fairway.pipeline.folder import RunFolder
from fairway.recipes import RECIPES


def config_of(folder: RunFolder) -> Config:
    """Return the config of a run's record; without one, UserError with the command to continue."""
    memory, path = folder.memory, folder.path
    if "config" in memory and "plan" in memory:
        config: Config = from_dict(memory["config"])
        return config
    if "begun" in memory:
        begun: Config = from_dict(memory["begun"]["config"])
        again = command_of(begun, path, memory["begun"].get("origin"))
        raise UserError(f"the training of {path} is unfinished; run `{again}`")
    raise UserError(
        f"{path} has no finished training yet; run the command that began it again, with --resume"
    )


def differences(
    config: Config, origin: dict[str, Any] | None, without: Callable[[str], bool]
) -> list[str]:
    """Return the settings, except some, in which a config differs from its recipe.

    For a recipe that is not Fairway's, `origin` holds the returned config; its code is not executed
    again.
    """
    if origin is None and config.recipe not in RECIPES:
        return []
    base = RECIPES[config.recipe]() if origin is None else from_dict(origin["config"])
    own = {name: value for name, _, value in settings(base)}
    return [
        f"{name}={value}"
        for name, _, value in settings(config)
        if value != own[name] and not without(name)
    ]


def command_of(config: Config, path: Path, origin: dict[str, Any] | None) -> str:
    """Return the command that continues a run of this config in a folder."""
    sets = differences(config, origin, lambda name: name == "recipe")
    words = (word for text in sets for word in ("--set", text))
    named = config.recipe if origin is None else origin["argument"]
    return command("run", named, "--out", path, "--resume", *words)
