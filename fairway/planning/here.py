"""A plan for this machine, from its text, its speed and the law."""

import dataclasses
from pathlib import Path

from fairway.base.units import duration
from fairway.bundle.build import bundle_bytes
from fairway.config.settings import RuntimeConfig
from fairway.data.folder import DataFolder
from fairway.machine.plan import make_plan
from fairway.planning.grid import Budget
from fairway.planning.law import fitted_law
from fairway.planning.proposal import Proposal, propose, texts_of
from fairway.planning.speed import Speed, measured_speed, step_seconds
from fairway.recipes import recipe
from fairway.train.steps import Say


def plan_here(
    seconds: float, limit_bytes: int, data: Path | None, runtime: RuntimeConfig, say: Say
) -> tuple[Proposal, Speed]:
    """Return a proposal for this many seconds and bytes on this machine, and its measured speed.

    Takes about half a minute the first time and some seconds then. Raises UserError if the data
    folder cannot be read, or if no model fits the budgets.
    """
    base = dataclasses.replace(recipe("demo"), recipe="planned", runtime=runtime)
    if data is not None:
        named = dataclasses.replace(base.data, source=str(data), val_bytes=0)
        base = dataclasses.replace(base, data=named)
    source = None if data is None else DataFolder.open(data)
    plan = make_plan(runtime)
    plan.apply()
    say(f"machine: {plan.describe()}")
    speed = measured_speed(base, plan)
    say(
        f"speed: {speed.flops / 1e9:,.0f} GFLOP/s in the products of training; a step of the demo "
        f"takes {duration(speed.step_s(recipe('demo')))}"
    )
    budget = Budget(seconds, limit_bytes, bundle_bytes(base))
    texts, law = texts_of(source, base.data.case_ops), fitted_law()
    return propose(base, budget, texts, law, speed, plan, step_seconds), speed
