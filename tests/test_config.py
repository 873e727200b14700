"""The config tree: overrides, refusals, round trips, and the bounds of every setting."""

import dataclasses
import json
import math
from dataclasses import replace
from typing import Any

import pytest

from fairway.base.errors import UserError
from fairway.config.checks import check
from fairway.config.overrides import _FIXED, _RENAMED, override
from fairway.config.settings import Config, settings
from fairway.config.written import config_hash, fixed_digest, from_dict, to_dict
from fairway.recipes import RECIPES, recipe


def test_overrides_reach_their_field_only() -> None:
    base = Config()
    changed = override(base, ["model.qk_gain=5.5", "seed=7", "pack.with_tokenizer=on"])
    assert (changed.model.qk_gain, changed.seed, changed.pack.with_tokenizer) == (5.5, 7, True)
    differing = [
        a[0] for a, b in zip(settings(base), settings(changed), strict=True) if a[2] != b[2]
    ]
    assert differing == ["seed", "model.qk_gain", "pack.with_tokenizer"]


@pytest.mark.parametrize(
    ("text", "value"),
    [("786_432", 786_432), ("1e6", 1_000_000), ("4096", 4096)],
)
def test_whole_numbers_in_several_spellings(text: str, value: int) -> None:
    assert override(Config(), [f"train.batch_tokens={text}", "train.seq_len=2",
                               "train.micro_tokens=2"]).train.batch_tokens == value  # fmt: skip


REFUSED = [
    ("score.headline=mixture", "score.headline is mixture, which this run does not score; set mix"),
    ("score.headline=best", "score.headline is 'best'; choose one of auto, sliding, ttt, mixture"),
    ("model.qkgain=3", "unknown setting 'model.qkgain'; did you mean 'model.qk_gain'?"),
    ("qk_gain=3", "did you mean 'model.qk_gain'?"),
    ("modle.dim=3", "did you mean 'model.dim'?"),
    ("model.dim", "has no '='"),
    ("model.dim=abc", "model.dim must be a whole number, got 'abc'"),
    ("model.dim=8.5", "model.dim must be a whole number, got '8.5'"),
    ("model.qk_gain=x", "model.qk_gain must be a number, got 'x'"),
    ("model.qk_gain=nan", "model.qk_gain is not a number"),
    ("model.qk_gain=inf", "model.qk_gain is inf; it must be between 0.01 and 100"),
    ("model.smear=maybe", "model.smear must be true or false, got 'maybe'"),
    ("model.dim=7", "model.dim is 7; it must be between 8 and 16,384"),
    ("seed=4294967296", "seed is 4,294,967,296; it must be between 0 and 4,294,967,295"),
    ("seed=1e30", "seed is a number of about 31 digits; it must be between 0 and 4,294,967,295"),
    ("seed=1e300", "seed is a number of about 301 digits; it must be between 0 and 4,294,967,295"),
    ("seed=1e999", "seed is a number of about 1,000 digits; it must be between 0 and"),
    ("model.dim=1e300", "model.dim is a number of about 301 digits; it must be between 8 and"),
    ("seed=" + 5000 * "9", "seed must be a number of at most 100 characters, got 5,000"),
    ("ttt.lora_alpha=2e6", "is 2,000,000; it must be between 0 and 1,000,000"),
    ("ttt.lora_factors=mlp,2", "separate names by blanks, not commas"),
    ("ttt.lora_targets=q,v", "'q,v' is no adapter target in ttt.lora_targets; separate names by"),
    ("mixture.experts=ppm,match", "'ppm,match' is no expert in mixture.experts; separate"),
    ("ttt.lora_factors=emb 2", "unknown adapter target in ttt.lora_factors"),
    ("ttt.lora_factors=mlp", "write each matrix once with a number above 0 and at most 1000"),
    ("ttt.lora_logit_factor=0", "ttt.lora_logit_factor is 0; it must be between 0.1 and 10"),
    ("ttt.lora_frozen_share=1", "ttt.lora_frozen_share is 1; it must be between 0 and 0.99"),
    ("ttt.lora_lr=2", "ttt.lora_lr is 2; it must be between 0 and 1"),
    ("data.val_bytes=1e30", "it must be between 0 and 9,223,372,036,854,775,807"),
    ("train.budget_s=inf", "train.budget_s is inf; it must be between 0.1 and 9,223,372,036,854"),
    ("train.reserve_s=1234567", "train.reserve_s 1,234,567 is not below train.budget_s 600"),
    ("train.clock=walls", "train.clock is 'walls'; choose one of wall, steps, replay"),
    ("model.num_heads=7", "model.dim 512 does not divide into model.num_heads 7"),
    ("model.num_kv_heads=3", "model.num_heads 8 is not a multiple of model.num_kv_heads 3"),
    ("model.rope_dims=15", "model.rope_dims 15 must be even and at most the head width 64"),
    ("model.rope_dims=66", "model.rope_dims 66 must be even and at most the head width 64"),
    ("model.window=²", "model.window is '²'; write up to model.num_layers"),
    ("model.window=" + 99 * "9", "model.window is '999"),
    ("train.windows=²@1", "train.windows is '²@1'; write numbers of tokens"),
    ("train.windows=256@²", "train.windows is '256@²'; write numbers of tokens"),
    ("train.windows=256@nan", "train.windows is '256@nan'; write numbers of tokens"),
    ("ttt.lora_chunks=٣", "ttt.lora_chunks is '٣'; write one size"),
    ("ttt.lora_chunks=8@² 48", "ttt.lora_chunks is '8@² 48'; write one size"),
    ("model.loop_last=11", "the recurrence runs over blocks 3 to 11, but the model has 11"),
    ("model.loop_first=6", "the recurrence runs over blocks 6 to 5"),
    ("optim.ema_decay=none", "set exactly one of optim.ema_decay and optim.ema_share"),
    ("optim.ema_share=0.1", "set exactly one of optim.ema_decay and optim.ema_share"),
    ("train.reserve_s=600", "is not below train.budget_s 600"),
    ("train.clock=replay", "train.clock=replay and train.replay=RUN_FOLDER go together"),
    ("train.replay=x", "train.clock=replay and train.replay=RUN_FOLDER go together"),
    ("train.seq_len=2047", "train.batch_tokens 786432 is not a multiple of train.seq_len 2047"),
    ("train.micro_tokens=65536", None),
    ("train.micro_tokens=141312", "train.batch_tokens 786432 is not a multiple of train.micro_tok"),
    ("score.stride=4096", "score.stride 4096 is longer than score.seq_len 2048"),
]


@pytest.mark.parametrize(("text", "fragment"), REFUSED)
def test_bad_overrides_are_refused_in_one_sentence(text: str, fragment: str | None) -> None:
    if fragment is None:
        override(Config(), [text])
        return
    with pytest.raises(UserError) as caught:
        override(Config(), [text])
    assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)


FORMER = [
    "data.shard_tokens", "model.leak", "optim.eps", "train.rate_errors", "quant.block",
    "ttt.momentum", "pack.shuffle", "mixture.method", "mixture.published_low", "mixture.tilt_bits",
]  # fmt: skip


@pytest.mark.parametrize("name", FORMER)
def test_former_settings_are_refused_as_such(name: str) -> None:
    told = f"the setting '{name}' no longer exists; its value is fixed, so leave it out"
    for value in ("1", "none", ""):
        with pytest.raises(UserError, match=told):
            override(Config(), [f"{name}={value}"])


def test_former_settings_are_none_of_today_and_a_new_name_is_told() -> None:
    known = {name for name, _, _ in settings(Config())}
    former = {f"{section}.{leaf}" for section, names in _FIXED.items() for leaf in names.split()}
    assert not known & (former | _RENAMED.keys()) and set(_RENAMED.values()) <= known
    with pytest.raises(UserError, match=r"'quant\.fill' no longer exists; set quant\.fit instead"):
        override(Config(), ["quant.fill=true"])
    with pytest.raises(UserError, match="set model.gate_features instead"):
        override(Config(), ["model.attn_gate=head"])


def test_there_are_at_most_120_settings() -> None:
    assert len(list(settings(Config()))) <= 120


def test_every_setting_has_help_and_a_default_inside_its_bounds() -> None:
    check(Config())
    for name, item, _ in settings(Config()):
        text = item.metadata["help"]
        assert text[0] == text[0].upper() and text[-1] == "." and len(text) > 15, name


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_recipes_are_valid_and_named(name: str) -> None:
    assert recipe(name).recipe == name


def test_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown recipe 'demmo'; did you mean 'demo'"):
        recipe("demmo")


def test_round_trip_through_json() -> None:
    config = override(recipe("demo"), ["optim.ema_share=none", "optim.ema_decay=0.9"])
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_from_dict_is_strict() -> None:
    values = to_dict(Config())
    told = "unknown config field 'model.dmi'; another version of Fairway wrote this, or it was edi"
    with pytest.raises(UserError, match=told):
        from_dict({**values, "model": {**values["model"], "dmi": 3}})
    with pytest.raises(UserError, match="'model.dim' is missing"):
        from_dict({**values, "model": {k: v for k, v in values["model"].items() if k != "dim"}})
    with pytest.raises(UserError, match="'seed' has the wrong type: '42'"):
        from_dict({**values, "seed": "42"})
    with pytest.raises(UserError, match="'seed' has the wrong type: True"):
        from_dict({**values, "seed": True})
    with pytest.raises(UserError, match="section 'model.' must be an object"):
        from_dict({**values, "model": 3})
    with pytest.raises(UserError, match="qk_gain"):
        from_dict({**values, "model": {**values["model"], "qk_gain": 10**400}})


def test_hash_follows_the_values() -> None:
    assert config_hash(Config()) == config_hash(Config())
    assert config_hash(Config()) != config_hash(Config(seed=43))
    assert len(config_hash(Config())) == 16


def nearest(item: dataclasses.Field[Any], value: Any) -> list[Any]:
    """Return other values of a setting inside its bounds, the least different ones of numbers."""
    lo, hi, choices = (item.metadata[name] for name in ("lo", "hi", "choices"))
    if value == "auto" and lo is not None:
        return [lo]
    if choices:
        return [choice for choice in choices if choice != value]
    if value is None:
        return [hi]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, str):
        return [value + "x", value + " "]
    low, high = (-math.inf if lo is None else lo), (math.inf if hi is None else hi)
    steps = [value - 1, value + 1]
    if isinstance(value, float):
        steps = [math.nextafter(value, -math.inf), math.nextafter(value, math.inf)]
    return [step for step in steps if low <= step <= high]


def with_setting(node: Any, name: str, value: Any) -> Any:
    """Return a config node with one setting changed, by its dotted name."""
    first, _, rest = name.partition(".")
    return replace(
        node, **{first: with_setting(getattr(node, first), rest, value) if rest else value}
    )


# Stands beside the digest of the rest: `config_hash`.
FREE = {"seed", "data.source", "train.clock", "train.init", "train.replay"}


@pytest.mark.parametrize("base", [Config(), recipe("demo")], ids=["published", "demo"])
def test_every_setting_changes_the_hash(base: Config) -> None:
    """No setting is documented as without effect, so none may be left out of it."""
    hashes, fixed, count = {config_hash(base)}, {fixed_digest(base)}, 1
    for name, item, value in settings(base):
        others = nearest(item, value)
        assert others, name
        for other in others:
            changed = with_setting(base, name, other)
            assert from_dict(json.loads(json.dumps(to_dict(changed)))) == changed
            hashes.add(config_hash(changed))
            count += 1
            assert len(hashes) == count, f"{name} = {other!r}"
            assert (fixed_digest(changed) in fixed) == (name in FREE), name


def test_the_hash_notices_what_a_command_line_may_say() -> None:
    base, known = Config(), set()
    for changed in (
        replace(base, seed=1),
        replace(base, data=replace(base.data, source="elsewhere")),
        replace(base, train=replace(base.train, clock="steps")),
        replace(base, train=replace(base.train, clock="replay", replay="run")),
    ):
        known.add(config_hash(changed))
        assert fixed_digest(changed) == fixed_digest(base)
    assert len(known | {config_hash(base)}) == 5


def test_configs_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().model.dim = 3  # type: ignore[misc]
