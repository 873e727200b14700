"""The machine plan of a run: stored, so that later stages and processes compute alike."""

from fairway.config.settings import Config
from fairway.config.written import to_dict
from fairway.machine.plan import Plan, make_plan, own_device
from fairway.machine.ranks import Ranks
from fairway.pipeline.folder import RunFolder, key_of
from fairway.pipeline.inputs import replayed
from fairway.train.steps import Say


def plan_of_run(config: Config, folder: RunFolder, ranks: Ranks, say: Say) -> Plan:
    """Return the machine plan of a run; a replay takes the plan of the run that it replays.

    Raises UserError if a host has fewer GPUs than processes.
    """
    plan = _found(config, folder, say)
    own_device(plan, ranks)
    plan.apply()
    return plan


def _found(config: Config, folder: RunFolder, say: Say) -> Plan:
    key, followed, memory = plan_key(config), replayed(config), folder.memory
    begun = memory.get("begun", {}).get("plan")
    for kept in (folder.proposed.get("plan"), begun, memory.get("plan")):
        if kept is not None and kept["key"] == key:
            return Plan.recalled(kept)
    plan = Plan.recalled(followed["plan"]) if followed else make_plan(config.runtime)
    say(f"machine: {plan.describe()}")
    return plan


def keep_plan(plan: Plan, config: Config, folder: RunFolder) -> None:
    """Give a run without a plan this one, under which its speed was measured."""
    folder.propose(plan={"key": plan_key(config), **plan.as_dict()})


def plan_key(config: Config) -> str:
    """Return a digest of the settings and the machine that decide a plan."""
    return key_of(to_dict(config.runtime), replayed(config))
