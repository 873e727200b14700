"""Settings from the command line: `section.field=value` texts over a config tree."""

import dataclasses
import types
import typing
from collections.abc import Iterable
from typing import Any

from fairway.checks import check
from fairway.config import Config, settings, unknown_name
from fairway.errors import UserError

# Longer numbers fit no setting, and Python refuses to read those of thousands of digits.
MAX_CHARACTERS = 100


def override(config: Config, assignments: Iterable[str]) -> Config:
    """Return a config with `section.field=value` texts applied, then checked.

    Raises UserError for a text without '=', an unknown name (naming the nearest one), a value of
    the wrong type or out of its bounds.
    """
    for text in assignments:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals:
            raise UserError(f"override '{text}' has no '='; write section.field=value")
        config = _assign(config, name, value.strip())
    check(config)
    return config


def _assign(config: Config, name: str, text: str) -> Config:
    known = [key for key, _, _ in settings(config)]
    if name not in known:
        raise UserError(unknown_name("setting", name, known))
    section, _, leaf = name.rpartition(".")
    node: Any = getattr(config, section) if section else config
    value = _parse(typing.get_type_hints(type(node))[leaf], text, name)
    node = dataclasses.replace(node, **{leaf: value})
    return dataclasses.replace(config, **{section: node}) if section else typing.cast(Config, node)


def _parse(hint: Any, text: str, name: str) -> Any:
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if type(None) in kinds and text.lower() in ("none", "null"):
        return None
    kind = next(k for k in kinds if k is not type(None))
    if kind is bool:
        words = {"true": True, "on": True, "1": True, "false": False, "off": False, "0": False}
        if text.lower() not in words:
            raise UserError(f"{name} must be true or false, got '{text}'")
        return words[text.lower()]
    if kind is str:
        return text
    if len(text) > MAX_CHARACTERS:
        raise UserError(
            f"{name} must be a number of at most {MAX_CHARACTERS} characters, got {len(text):,}"
        )
    try:
        number = float(text.replace("_", "")) if kind is float else _whole(text)
    except ValueError:
        word = "a number" if kind is float else "a whole number"
        raise UserError(f"{name} must be {word}, got '{text}'") from None
    return number


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        number = float(text)
        if not number.is_integer():
            raise ValueError(text) from None
        return int(number)
