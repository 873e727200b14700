"""A bundle's size is measured once; what stands in the way of that costs time and nothing else."""

import json
import os
from pathlib import Path

import pytest

from fairway.base.files import digest_json
from fairway.bundle import build
from fairway.bundle.build import SIZES, bundle_bytes, bundle_key
from fairway.config.overrides import override
from fairway.config.settings import Config
from fairway.recipes import recipe

KEY = digest_json(["settings", "sources"])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/fairway/bundle-bytes"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """Return the configs of which a bundle was made; its bytes are the characters of its config."""
    configs: list[Config] = []

    def file(config: Config, *rest: object) -> bytes:
        configs.append(config)
        return b"x" * len(repr(config))

    monkeypatch.setattr(build, "_file", file)
    return configs


def config(*overrides: str) -> Config:
    return override(recipe("smoke"), list(overrides))


def test_it_is_measured_once_for_settings_sources_and_versions(
    made: list[Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = bundle_bytes(config())
    free = ["seed=7", "data.source=elsewhere", "train.clock=steps"]
    assert bundle_bytes(config()) == bundle_bytes(config(*free)) == first and len(made) == 1
    wider = bundle_bytes(config("model.dim=96"))
    assert len(made) == 2 and wider == len(repr(made[1]))
    for change in ("_sources", "_tools"):
        monkeypatch.setattr(build, change, lambda: "changed")
        bundle_bytes(config())
    assert len(made) == 4
    monkeypatch.setattr(build.platform, "python_version", lambda: "3.99.0")
    bundle_bytes(config())
    assert len(made) == 5


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[:-9],
        lambda text: text.replace(" 28743", " 28742"),
        lambda text: text.replace("28743", "28743.0"),
        lambda text: text.replace("28743", "true"),
        lambda text: text.replace('"bytes"', '"byte"'),
        lambda text: text.replace(KEY, KEY[:2] + KEY[3:] + "0"),
        lambda text: "[]",
        lambda text: "",
        lambda text: "\x00" * 4096,
        lambda text: text + " " * 4096,
    ],
)
def test_a_damaged_note_is_not_used_and_is_replaced(spoil: object, cache: Path) -> None:
    SIZES.keep(KEY, 28743)
    assert SIZES.find(KEY) == 28743
    path = cache / f"{KEY[:2]}.json"
    path.write_text(spoil(path.read_text()))  # type: ignore[operator]
    assert SIZES.find(KEY) is None
    SIZES.keep(KEY, 28743)
    assert SIZES.find(KEY) == 28743


def test_a_note_of_another_size_with_the_digest_of_this_one_is_not_used(cache: Path) -> None:
    SIZES.keep(KEY, 28743)
    path = cache / f"{KEY[:2]}.json"
    note = json.loads(path.read_text())
    for size in (1, -1, 28743.5, None, "28743"):
        path.write_text(json.dumps({**note, "bytes": size}))
        assert SIZES.find(KEY) is None


def test_keys_of_one_place_take_turns(cache: Path) -> None:
    other = KEY[:2] + "0" * 62
    SIZES.keep(KEY, 1)
    SIZES.keep(other, 2)
    assert SIZES.find(other) == 2 and SIZES.find(KEY) is None
    assert len([*cache.iterdir()]) == 1


@pytest.mark.parametrize("kind", ["file", "pipe", "folder", "loop", "null"])
def test_what_is_no_folder_or_no_file_is_left_alone(
    kind: str, made: list[Config], cache: Path
) -> None:
    key = digest_json(bundle_key(config()))
    place = cache / f"{key[:2]}.json"
    cache.parent.mkdir(parents=True)
    if kind == "file":
        cache.write_text("mine")
    else:
        cache.mkdir()
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    elif kind == "loop":
        place.symlink_to(place.name)
    elif kind == "null":
        place.symlink_to("/dev/null")
    before = [(path, path.lstat().st_mode) for path in sorted(cache.parent.rglob("*"))]
    assert bundle_bytes(config()) == bundle_bytes(config()) == len(repr(made[0]))
    assert len(made) == 2
    assert [(path, path.lstat().st_mode) for path in sorted(cache.parent.rglob("*"))] == before


@pytest.mark.parametrize("named", ["", "relative/cache", "/proc/no/such/folder"])
def test_places_that_are_none(
    named: str, made: list[Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty or relative name is ignored for ~/.cache; one that cannot be written costs time."""
    monkeypatch.setenv("XDG_CACHE_HOME", named)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert bundle_bytes(config()) == bundle_bytes(config())
    noted = not named.startswith("/")
    assert len(made) == (1 if noted else 2)
    assert (tmp_path / "home/.cache/fairway/bundle-bytes").exists() == noted
    assert not (tmp_path / "relative").exists()
