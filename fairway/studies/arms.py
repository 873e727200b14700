"""A recipe and the arms of a study; every setting is checked before anything runs."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fairway.base.errors import UserError, shown
from fairway.base.files import digest_json
from fairway.config.overrides import override
from fairway.config.settings import MOST_SEED, Config, headline
from fairway.config.written import to_dict
from fairway.recipes import recipe as recipe_of

# The names of the unchanged recipe, and of its repetition, which measures the noise of one seed.
BASE, NOISE = "base", "noise"
MOST_ARMS = 64
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")
# A value may contain a comma; only a comma before another setting ends the value.
_BETWEEN = re.compile(r",(?=\s*[a-z0-9_.]+\s*=)")
# Settings that both runs of a pair share, and settings of the text on which all arms are scored.
_SHARED = ("recipe", "seed", "data.order_seed", "train.clock", "train.replay")
_TEXT = ("data.val_bytes", "data.val_tokens", "data.val_share")
# The scores of runs up to each verb.
SCORES = {
    "train": ("raw", "ema"),
    "pack": ("raw", "ema", "quantised"),
    "score": ("raw", "ema", "quantised", "sliding", "ttt", "mixture"),
}
# The number of warm-up steps: enough for compilation, and short for runs of seconds.
_WARMUP_STEPS = 2


@dataclass(frozen=True, slots=True)
class Arm:
    """A variant: its name, and the settings that differ from the base."""

    name: str
    settings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Study:
    """The plan of a study: its arms, their base, the number of pairs, and the score that decides.

    `recipe` is the recipe's name and `own` its settings. `common` are overrides of every arm and of
    the base. Pair p has seed `first_seed` + p. With `keep_hopeless`, an arm that cannot gain any
    more continues until it is clear whether it is worse.
    """

    recipe: str
    own: Config
    common: tuple[str, ...]
    arms: tuple[Arm, ...]
    pairs: int
    first_seed: int = 1
    until: str = "train"
    metric: str = "ema"
    error: float = 0.05
    noise: bool = False
    keep_hopeless: bool = False

    def all_arms(self) -> tuple[Arm, ...]:
        """Return the base, its repetition if `noise` is set, and the arms."""
        again = (Arm(NOISE),) if self.noise else ()
        return (Arm(BASE), *again, *self.arms)

    def overrides(self, arm: Arm, pair: int) -> tuple[str, ...]:
        """Return the overrides of one run; its order of the data has the same seed."""
        seeds = (f"seed={self.first_seed + pair}", "data.order_seed=seed")
        return (*self.common, *arm.settings, *seeds)

    def config(self, arm: Arm, pair: int = 0) -> Config:
        """Return the settings of one run."""
        return override(self.own, self.overrides(arm, pair))


def study(
    recipe: str,
    arms: Sequence[str],
    pairs: int,
    common: Sequence[str] = (),
    clock: str | None = None,
    metric: str | None = None,
    **more: Any,
) -> Study:
    """Return a study from texts of the form `NAME:section.field=value,...`.

    Raises UserError for malformed arms, for arms that are alike or change a setting that a pair
    shares, and for a score that these runs do not have.
    """
    base = recipe_of(recipe)
    shared = ("recipe", "seed", "data.order_seed", *(("train.clock",) if clock else ()))
    for text in common:
        _refuse_shared(text, shared, "--set")
    given = [*common, *([f"train.clock={clock}"] if clock else [])]
    names = [text.partition("=")[0].strip() for text in given]
    if "train.warmup_steps" not in names and base.train.warmup_steps > _WARMUP_STEPS:
        given.append(f"train.warmup_steps={_WARMUP_STEPS}")
    made = Study(recipe, base, tuple(given), tuple(map(read_arm, arms)), pairs, **more)
    _check_arms(made)
    last = made.first_seed + pairs - 1
    if last > MOST_SEED:
        raise UserError(
            f"pair {pairs} would have seed {last:,}; seeds end at {MOST_SEED:,}, so lower --pairs "
            "or --first-seed"
        )
    config = made.config(Arm(BASE))
    if config.train.clock == "replay":
        raise UserError(
            f"{recipe} follows the clock of another run, which does not suit other settings; use "
            "--clock steps or --clock wall"
        )
    return _scored(made, config, metric)


def _scored(made: Study, config: Config, metric: str | None) -> Study:
    """Return the study with the score that decides; the default is the last score of its runs."""
    last = {"train": "ema", "pack": "quantised", "score": headline(config)}[made.until]
    chosen = metric or last
    for arm in (Arm(BASE), *made.arms):
        known = _scores(made.config(arm), made.until)
        if chosen not in known:
            raise UserError(
                f"arm '{arm.name}' has no score {shown(chosen)} in runs until {made.until}, only "
                f"{', '.join(known)}; choose one with --metric, or run more stages with --until"
            )
    return replace(made, metric=chosen)


def _scores(config: Config, until: str) -> tuple[str, ...]:
    """Return the scores of a run up to a verb."""
    off = {"ttt": config.ttt.method == "off", "mixture": not config.mixture.experts}
    return tuple(name for name in SCORES[until] if not off.get(name, False))


def is_name(text: str) -> bool:
    """Return whether a text is valid as an arm's name, in names of folders and in tables."""
    return _NAME.fullmatch(text) is not None


def read_arm(text: str) -> Arm:
    """Return an arm from its `NAME:section.field=value,...`; UserError for a malformed text."""
    name, colon, rest = text.partition(":")
    if not colon or not is_name(name):
        raise UserError(
            f"--arm {shown(text)} is not an arm; write NAME:section.field=value,... with a name "
            "of at "
            "most 32 letters, digits, dots, dashes and underscores"
        )
    if name in (BASE, NOISE):
        raise UserError(f"every study already has an arm named '{name}'; choose another name")
    settings = tuple(part.strip() for part in _BETWEEN.split(rest) if part.strip())
    if not settings:
        raise UserError(f"arm '{name}' has no setting; write --arm {name}:section.field=value")
    names = [setting.partition("=")[0].strip() for setting in settings]
    for setting in settings:
        _refuse_shared(setting, (*_SHARED, *_TEXT), f"arm '{name}'")
        field = setting.partition("=")[0].strip()
        if names.count(field) > 1:
            raise UserError(f"arm '{name}' sets {field} twice; an arm sets it once")
    return Arm(name, settings)


def _refuse_shared(setting: str, shared: Sequence[str], who: str) -> None:
    name = setting.partition("=")[0].strip()
    if name not in shared:
        return
    if name in _TEXT:
        raise UserError(
            f"{who} sets {name}, so the scores would be of different texts; set it for all arms "
            "with --set"
        )
    remedy = {
        "train.clock": "choose it for all arms with --clock",
        "train.replay": "use --clock steps",
        "recipe": "leave it out",
    }
    raise UserError(
        f"{who} sets {name}, but the study chooses it for every pair; "
        f"{remedy.get(name, 'choose the first seed with --first-seed')}"
    )


def _check_arms(made: Study) -> None:
    if not made.arms:
        raise UserError("a study needs something to compare; add --arm NAME:section.field=value")
    if len(made.arms) > MOST_ARMS:
        raise UserError(f"{len(made.arms)} arms are too many for one study; take {MOST_ARMS}")
    seen = {_told_apart_by(made.config(Arm(BASE))): BASE}
    names: set[str] = set()
    for arm in made.arms:
        if arm.name in names:
            raise UserError(f"two arms are named '{arm.name}'; give each arm its own name")
        names.add(arm.name)
        try:
            key = _told_apart_by(made.config(arm))
        except UserError as error:
            raise UserError(f"arm '{arm.name}': {error}") from None
        if key in seen:
            raise UserError(
                f"arm '{arm.name}' has the same settings as {seen[key]}, so there is nothing to "
                "compare" + ("; --noise runs the base twice" if seen[key] == BASE else "")
            )
        seen[key] = arm.name


def _told_apart_by(config: Config) -> tuple[str, str]:
    return digest(config), config.data.source


def digest(config: Config) -> str:
    """Return 16 hex digits that identify an arm: its settings without seeds and paths."""
    values = to_dict(config)
    del values["seed"]
    del values["data"]["source"], values["data"]["order_seed"]
    # The length of the warm-up does not change results.
    del values["train"]["warmup_steps"]
    return digest_json(values)[:16]
