"""Fit the law of `fairway plan` to measured trials: `law.py fit`.

Robust least squares over all trials that ended. Settings that the law leaves to the recipe (gates,
momentum, decay ...) are levels beside it: each gets its own effect against the recipe's level, is
printed with its error, and is not part of the law.
"""

import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import least_squares
from trials import Trial

from fairway.config.overrides import override
from fairway.config.settings import Config, settings
from fairway.planning.law import FREE, POSITIVE, Reading, expected, features, stacked
from fairway.recipes import recipe

# Settings whose levels are told apart beside the law.
LEVELS = (
    "model.num_kv_heads", "model.mlp_dim", "model.rope_dims", "model.parallel_from", "model.smear",
    "model.x0_values", "model.attn_gate", "model.xsa_layers", "optim.matrix_wd", "optim.momentum",
    "optim.momentum_warmup_steps", "optim.beta2", "optim.grad_clip", "optim.warmdown_share",
    "optim.ema_share",
)  # fmt: skip
COVERED = ("matrices", "embedding", "seen", "batch", "steps", "vocab", "length", "depth")
# Weights of a penalty that keeps coefficients near where they begin: data decide soon.
_HELD = 0.02


def config_of(trial: Trial, base: Config) -> Config:
    known = {name for name, _, _ in settings(base)}
    return override(base, [f"{k}={v}" for k, v in trial.items() if k in known])


def level(name: str, config: Config) -> str:
    """Return a setting's level, sizes as what they are a part of."""
    model = config.model
    relative = {
        "model.num_kv_heads": "one" if model.num_kv_heads == 1 else "all",
        "model.mlp_dim": f"{model.mlp_dim / model.dim:g} x width",
        "model.rope_dims": "head" if model.rope_dims == model.dim // model.num_heads else "16",
        "model.parallel_from": "none" if model.parallel_from >= model.num_layers else "late",
        "model.xsa_layers": "all" if model.xsa_layers else "none",
    }
    if name in relative:
        return relative[name]
    values = {key: value for key, _, value in settings(config)}
    return str(values[name])


class Design:
    """The trials as arrays: features, scores, and which level of what each has."""

    def __init__(self, trials: list[Trial], base: Config) -> None:
        rows, levels = [], []
        for trial in trials:
            config = config_of(trial, base)
            each = trial["train_bytes"] / trial["train_tokens"]
            reading = Reading(trial["train_bytes"], each)
            rows.append(features(config, config.train.steps, reading))
            levels.append({name: level(name, config) for name in LEVELS})
        self.features = stacked(rows)
        self.scores = np.array([trial["ema"] for trial in trials])
        usual = {name: level(name, base) for name in LEVELS}
        pairs = sorted({(name, row[name]) for row in levels for name in LEVELS})
        self.levels = [(name, value) for name, value in pairs if value != usual[name]]
        self.has = np.array(
            [[row[name] == value for name, value in self.levels] for row in levels], float
        )
        self.start = np.array(
            [*(np.log(value) for value in POSITIVE.values()), *FREE.values()]
            + [0.0] * len(self.levels)
        )

    def coefficients(self, x: Any) -> dict[str, float]:
        count = len(POSITIVE)
        positive = dict(zip(POSITIVE, np.exp(x[:count]), strict=True))
        return positive | dict(zip(FREE, x[count : count + len(FREE)], strict=True))

    def residuals(self, x: Any) -> Any:
        apart = self.has @ x[len(POSITIVE) + len(FREE) :]
        return expected(self.coefficients(x), self.features) + apart - self.scores

    def objective(self, x: Any) -> Any:
        return np.concatenate([self.residuals(x) / 0.01, _HELD * (x - self.start)])


def fit(files: list[Path], base_name: str) -> dict[str, Any]:
    base = recipe(base_name)
    records = [json.loads(file.read_text()) for file in files]
    trials = [trial for record in records for trial in record["trials"] if trial.get("ema", 9) < 4]
    design = Design(trials, base)
    found = least_squares(design.objective, design.start, loss="soft_l1", max_nfev=4000)
    off = design.residuals(found.x)
    spread = float(1.4826 * np.median(np.abs(off)))
    errors = np.sqrt(np.diag(np.linalg.pinv(found.jac.T @ found.jac))) * spread / 0.01
    names = [*POSITIVE, *FREE, *(f"{name}={value}" for name, value in design.levels)]
    coefficients = design.coefficients(found.x)
    print(f"{len(trials)} trials, spread {spread:.4f}, root mean square {np.std(off):.4f} bpb")
    for name, value, error in zip(names, found.x, errors, strict=True):
        shown = coefficients.get(name, value)
        print(f"{name:36s} {shown:9.4f}  +- {error:.4f}")
    worst = np.argsort(-np.abs(off))[:5]
    print("worst:", [(round(float(off[n]), 3), round(float(design.scores[n]), 3)) for n in worst])
    covers = {
        name: [float(design.features[name].min()), float(design.features[name].max())]
        for name in COVERED
    }
    return {
        "command": records[0]["command"],
        "date": records[0].get("date", datetime.date.today().isoformat()),
        "machine": {k: records[0].get(k) for k in ("cores", "processor", "torch")},
        "recipe": base_name,
        "runs": len(trials),
        "coefficients": {name: round(float(v), 6) for name, v in coefficients.items()},
        "spread_bpb": round(float(np.std(off)), 5),
        "covers": covers,
    }
