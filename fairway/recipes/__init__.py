"""Recipes: complete runs as functions that return a config. A recipe is code you can diff."""

from collections.abc import Callable

from fairway.base.errors import UserError
from fairway.config.checks import check
from fairway.config.settings import Config, unknown_name
from fairway.recipes.demo import demo, smoke
from fairway.recipes.seed import best, pr1493, pr1858, pr1858_proxy

RECIPES: dict[str, Callable[[], Config]] = {
    function.__name__: function for function in (demo, smoke, best, pr1858, pr1493, pr1858_proxy)
}


def recipe(name: str) -> Config:
    """Return the config of a named recipe, checked; an unknown name is a UserError."""
    if name not in RECIPES:
        raise UserError(unknown_name("recipe", name, RECIPES))
    config = RECIPES[name]()
    check(config)
    return config
