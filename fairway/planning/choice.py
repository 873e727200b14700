"""Chooses the config that suits this machine, by timed steps and the fitted law."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fairway.config.settings import Config
from fairway.data.folder import DataFolder
from fairway.machine.plan import Plan
from fairway.planning.law import Law, Reading
from fairway.planning.proposal import embedded_text, texts_of
from fairway.planning.speed import Measure

# Configs are timed in turn, each this many times, and the shortest time counts, so that a temporary
# load has no effect.
_ROUNDS = 2


@dataclass(frozen=True, slots=True)
class Option:
    """A config by its name: seconds per step here, steps in its budget, expected score."""

    name: str
    step_s: float
    steps: int
    bpb: float


def options_of(
    configs: Mapping[str, Config], plan: Plan, law: Law, measure: Measure
) -> list[Option]:
    """Return the expected results of configs in their budgets on this machine, the best first."""
    rounds = [
        {name: measure(config, plan) for name, config in configs.items()} for _ in range(_ROUNDS)
    ]
    least_s = {name: min(seconds[name] for seconds in rounds) for name in configs}
    found = [_option(name, config, least_s[name], law) for name, config in configs.items()]
    return sorted(found, key=lambda option: option.bpb)


def _option(name: str, config: Config, step_s: float, law: Law) -> Option:
    steps = max(1, int((config.train.budget_s - config.train.reserve_s) / step_s))
    return Option(name, step_s, steps, law.predict(config, steps, reading_of(config), 0.0).bpb)


def reading_of(config: Config) -> Reading:
    """Return the facts of a config's training text for the law; UserError for a broken folder."""
    vocab_size = config.model.vocab_size
    if config.data.source == "embedded":
        return embedded_text(vocab_size, config.data.case_ops)
    return texts_of(DataFolder.open(Path(config.data.source)))[vocab_size]
