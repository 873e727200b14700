"""Settings from the command line: `section.field=value` texts over a config tree."""

import dataclasses
import re
import types
import typing
from collections.abc import Iterable
from typing import Any

from fairway.base.errors import UserError
from fairway.base.outputs import why_no_path
from fairway.base.terminal import line
from fairway.config.checks import check
from fairway.config.settings import Config, settings, unknown_name

# Settings that name a folder of this machine.
_PATHS = ("data.source", "train.init", "train.replay")

# Settings of earlier versions. All except one are now constants in the code.
_FIXED = {
    "data": "shard_tokens",
    "model": "leak layer_scale embed_std reads embed_dim xsa_layers softcap softcap_skew skips "
    "skip_gates tie_embeddings x0_values rope_base",
    "optim": "newton_schulz_steps eps radius momentum_end momentum_fall grad_power embed_beta2 "
    "cool_power row_normalise head_lr row_floor beta1 embed_wd scalar_wd",
    "train": "log_every_s rate_bits rate_share rate_errors rate_weight float8",
    "quant": "damp block act_order states gradient_damp stripe tune_lr tune_steps column_steps "
    "lqer_matrices lqer_norm",
    "pack": "shuffle",
    "ttt": "momentum grad_clip batch_seqs confidence lora_eps lora_phase_lr lora_confidence "
    "lora_beta2 lora_peers lora_context lora_rope lora_warm lora_fade",
    "prove": "streams",
    "mixture": "weights weight order per_document low_weight threshold switch method exclusion "
    "match_min match_rate tilt_beta tilt_bits published_order published_tokens "
    "published_threshold published_low published_high published_hijack",
}
_RENAMED = {"quant.fill": "quant.fit", "model.attn_gate": "model.gate_features"}

# Longer numbers fit no setting, and Python refuses numbers of thousands of digits.
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
        if not name:
            raise UserError(f"override '{text}' names no setting; write section.field=value")
        # The name of a folder may end in a blank or a newline.
        config = _assign(config, name, value if name in _PATHS else value.strip())
    check(config)
    return config


def _assign(config: Config, name: str, text: str) -> Config:
    known = [key for key, _, _ in settings(config)]
    section, _, leaf = name.rpartition(".")
    if name not in known:
        _refuse_former(name, section, leaf)
        raise UserError(unknown_name("setting", name, known))
    node: Any = getattr(config, section) if section else config
    value = _parse(typing.get_type_hints(type(node))[leaf], text, name)
    node = dataclasses.replace(node, **{leaf: value})
    return dataclasses.replace(config, **{section: node}) if section else typing.cast(Config, node)


def _refuse_former(name: str, section: str, leaf: str) -> None:
    if name in _RENAMED:
        raise UserError(f"the setting '{name}' no longer exists; set {_RENAMED[name]} instead")
    if leaf in _FIXED.get(section, "").split():
        raise UserError(
            f"the setting '{name}' no longer exists; its value is fixed, so leave it out"
        )


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
        return _words(text, name)
    if len(text) > MAX_CHARACTERS:
        raise UserError(
            f"{name} must be a number of at most {MAX_CHARACTERS} characters, got {len(text):,}"
        )
    try:
        number = float(text.replace("_", "")) if kind is float else _whole(text)
    except ValueError:
        if str in kinds:
            # A word in the place of a number; `check` has the list of these words.
            return text
        word = "a number" if kind is float else "a whole number"
        raise UserError(f"{name} must be {word}, got '{text}'") from None
    return number


def _words(text: str, name: str) -> str:
    """Return a text that is allowed in files and on pages, or a path."""
    if name not in _PATHS:
        if text != line(text):
            raise UserError(f"{name} is '{text}', which has characters that cannot be shown")
    elif text and (why := why_no_path(text)):
        raise UserError(f"{name} is '{text}': {why}")
    return text


def _whole(text: str) -> int:
    number = whole_number(text)
    if number is None:
        raise ValueError(text)
    return number


_WHOLE = re.compile(
    r"(?P<sign>[+-]?)(?P<whole>\d+(_\d+)*)(\.(?P<fraction>\d*))?([eE]\+?(?P<power>\d{1,3}))?",
    re.ASCII,
)
# More digits than an exponent of three digits adds to a short number, and fewer than Python
# refuses.
_MOST_DIGITS = 1200


def whole_number(text: str) -> int | None:
    """Return the exact whole number of a text, or None: 16_000_000, 1.5e6.

    If it has more digits than any bound, only the first ones are read, which exceed all bounds.
    """
    if not (found := _WHOLE.fullmatch(text)):
        return None
    whole, fraction = found["whole"].replace("_", ""), (found["fraction"] or "").rstrip("0")
    zeros = int(found["power"] or 0) - len(fraction)
    if zeros < 0:
        return None
    digits = f"{whole}{fraction}{'0' * zeros}".lstrip("0") or "0"
    number = int(digits[:_MOST_DIGITS])
    return -number if found["sign"] == "-" else number
