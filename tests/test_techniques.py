"""Credits follow from settings; the recipe hash notices every setting."""

import dataclasses
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as speed
from hypothesis import strategies as st

from fairway.config.settings import Config, settings
from fairway.config.written import config_hash
from fairway.recipes import recipe
from fairway.submission.techniques import techniques


def names(config: Config) -> list[str]:
    return [name for name, _ in techniques(config)]


def test_credits_follow_the_settings() -> None:
    base = recipe("pr1858")
    assert "score-first test-time training by chunks" in names(base)
    assert "depth recurrence" in names(base) and "Polar Express" not in names(base)
    off = replace(
        base, ttt=replace(base.ttt, method="off"), model=replace(base.model, loop_extra=0)
    )
    assert not {"depth recurrence", "score-first test-time training by chunks"} & set(names(off))
    assert all("#" in credit or credit[0].isupper() for _, credit in techniques(base))


BASE = recipe("pr1858")
SETTINGS = {name: value for name, _, value in settings(BASE)}


def changed(name: str, value: Any) -> Config:
    section, _, leaf = name.rpartition(".")
    if not section:
        return replace(BASE, **{leaf: value})
    node = getattr(BASE, section)
    return replace(BASE, **{section: dataclasses.replace(node, **{leaf: value})})


def other_value(draw: st.DrawFn, old: Any) -> Any:
    if isinstance(old, bool):
        return not old
    if isinstance(old, int):
        return draw(st.integers(0, 10**6).filter(lambda n: n != old))
    if isinstance(old, float) or old is None:
        return draw(st.floats(0, 1e3).filter(lambda x: x != old))
    return draw(st.text(max_size=8).filter(lambda s: s != old))


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_is_in_the_hash(name: str) -> None:
    old = SETTINGS[name]
    value = (not old) if isinstance(old, bool) else 0.123 if old is None else f"{old}x"
    if isinstance(old, int | float) and not isinstance(old, bool):
        value = old + 1
    assert config_hash(changed(name, value)) != config_hash(BASE)


@speed(max_examples=100, deadline=None)
@given(st.data())
def test_different_settings_have_different_hashes(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(SETTINGS)))
    first, second = (data.draw(st.composite(other_value)(SETTINGS[name])) for _ in range(2))
    same = (first, type(first)) == (second, type(second))
    assert (config_hash(changed(name, first)) == config_hash(changed(name, second))) == same
