"""A config as a recipe: a Python file whose function returns it, for `fairway run`."""

import dataclasses
import textwrap
from typing import Any

from fairway.config.settings import Config

# The first line of a planned recipe; only a file with this line is replaced.
MARK = '"""Planned by `fairway plan`'
_WIDTH = 96


def recipe_text(config: Config, name: str, why: list[str]) -> str:
    """Return a Python file with one recipe: the settings that differ from the defaults, by section.

    `why` are lines of its docstring.
    """
    default, sections, classes = Config(), [], ["Config"]
    for item in dataclasses.fields(config):
        value, usual = getattr(config, item.name), getattr(default, item.name)
        if not dataclasses.is_dataclass(value):
            sections += [f"{item.name}={value!r}"] if value != usual else []
            continue
        changed = _changed(value, usual)
        if changed:
            kind = type(value).__name__
            classes.append(kind)
            inner = "".join(f"    {line},\n" for line in changed)
            sections.append(f"{item.name}={kind}(\n{inner})")
    told = "\n".join(line for text in why for line in textwrap.wrap(text, _WIDTH))
    imports = "".join(f"    {kind},\n" for kind in sorted(classes))
    body = textwrap.indent("".join(f"{section},\n" for section in sections), " " * 8)
    return (
        f'{MARK}.\n\n{told}\n"""\n\n'
        f"from fairway.config.settings import (\n{imports})\n\n\n"
        f'def {name}() -> Config:\n    """Return what `fairway plan` proposed."""\n'
        f"    return Config(\n{body}    )\n"
    )


def _changed(value: Any, usual: Any) -> list[str]:
    names = [item.name for item in dataclasses.fields(value)]
    pairs = [(name, getattr(value, name)) for name in names]
    return [f"{name}={own!r}" for name, own in pairs if own != getattr(usual, name)]
