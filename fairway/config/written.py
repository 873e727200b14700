"""A config as plain values and back, and the digests that identify it."""

import dataclasses
import types
import typing
from typing import Any

from fairway.base.errors import UserError, shown
from fairway.base.files import digest_json
from fairway.config.settings import Config


def to_dict(config: Any) -> dict[str, Any]:
    """Return a config node as nested plain dictionaries, ready for JSON."""
    return dataclasses.asdict(config)


def config_hash(config: Config) -> str:
    """Return the first 16 hex digits of a digest of every setting of a run.

    It combines the digest of the fixed settings with those that the command line of a bundle may
    change: seed, text, clock and initial weights.
    """
    data, train = config.data, config.train
    free = (config.seed, data.source, train.clock, train.init, train.replay)
    return digest_json([fixed_digest(config), *free])[:16]


def fixed_digest(config: Config) -> str:
    """Return a digest of every setting but seed, text, clock and initial weights."""
    values = to_dict(config)
    del values["seed"], values["data"]["source"]
    del values["train"]["clock"], values["train"]["init"], values["train"]["replay"]
    return digest_json(values)


def from_dict(values: dict[str, Any], kind: type[Any] = Config, path: str = "") -> Any:
    """Rebuild a config node from `to_dict`; unknown or missing names and wrong types are errors."""
    if not isinstance(values, dict):
        raise UserError(f"config section '{path or 'root'}' must be an object, got {shown(values)}")
    fields = {item.name: item for item in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    for name in values:
        if name not in fields:
            raise UserError(
                f"unknown config field '{f'{path}{name}'[:60]}'; another version of Fairway wrote "
                "this, or it was edited; make it again"
            )
    built: dict[str, Any] = {}
    for name in fields:
        if name not in values:
            raise UserError(
                f"config field '{path}{name}' is missing; an older version of Fairway wrote this, "
                "or it was edited; make it again"
            )
        hint, value = hints[name], values[name]
        if dataclasses.is_dataclass(hint):
            built[name] = from_dict(value, typing.cast(type[Any], hint), f"{path}{name}.")
        else:
            built[name] = _typed(hint, value, f"{path}{name}")
    return kind(**built)


def _typed(hint: Any, value: Any, name: str) -> Any:
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if float in kinds and type(value) is int and abs(value) < 2**53:
        return float(value)
    if type(value) not in kinds:
        raise UserError(f"config field '{name}' has the wrong type: {shown(value)}")
    return value
