"""Fit the law of `fairway plan` to measured trials: `law.py fit`.

Robust least squares over trials on a CPU, and anchors: runs of a large model on a GPU, whose text
is another and whose level therefore is a coefficient of its own. The trials alone do not settle
every coefficient, so each is held near what is known of such models (`CORE`, `BEST`), by as many
deviations as it lies away. Settings that the law leaves to the recipe (gates, momentum, decay ...)
are levels beside it: each gets its own effect against the recipe's level, is printed with its
error, and is not part of the law.
"""

from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import least_squares
from trials import Trial, read_rows

from fairway.config.overrides import override
from fairway.config.settings import Config, settings
from fairway.planning.cost import step_flops
from fairway.planning.grid import momentum_warmup
from fairway.planning.law import Reading, expected, features, stacked
from fairway.recipes import recipe

# What is expected before any trial, and its deviation: of logarithms of positive coefficients ...
CORE = {
    "floor": (0.7, 0.15), "size": (0.25, 0.5), "size_power": (0.35, 0.3), "embedding": (0.3, 0.7),
    "text": (0.7, 0.5), "text_power": (0.45, 0.3), "batch": (4000.0, 0.7), "repeats": (10.0, 0.3),
    "vocab": (0.02, 0.7), "length": (0.01, 0.7), "depth": (0.01, 0.7), "rate": (0.03, 0.7),
    "embed": (0.01, 0.7), "batch_off": (0.01, 0.7),
}  # fmt: skip
# ... and of where settings are best, and of what may help or harm.
BEST = {
    "vocab_best": (7.6, 0.5), "vocab_text": (0.0, 0.3), "length_best": (6.3, 0.7),
    "length_text": (0.0, 0.3), "depth_best": (0.3, 0.5), "rate_best": (-2.9, 0.3),
    "rate_steps": (-0.1, 0.15), "rate_width": (0.0, 0.3), "embed_best": (-2.9, 0.3),
    "embed_steps": (0.0, 0.15), "batch_best": (7.6, 0.5), "batch_text": (0.5, 0.4),
    "loops": (0.0, 0.02), "marks": (0.05, 0.05), "vocab_marks": (0.0, 0.3),
}  # fmt: skip
LEVEL_BPB, ANCHOR_BPB = 0.02, 0.3
# Settings whose levels are told apart beside the law.
LEVELS = (
    "model.num_kv_heads", "model.mlp_dim", "model.rope_dims", "model.parallel_from", "model.smear",
    "model.gate_features", "optim.matrix_wd", "optim.momentum", "optim.momentum_warmup_steps",
    "optim.beta2", "optim.grad_clip", "optim.warmdown_share",
    "optim.ema_share",
)  # fmt: skip
# Settings of the trials that no longer exist: the level that is the only one today. Models with
# others had a few more weights than the law counts now.
FORMER = {"model.x0_values": "False", "model.attn_gate": "off", "model.xsa_layers": "all"}
COVERED = ("matrices", "embedding", "seen", "batch", "steps", "vocab", "length", "depth")
# A run is off by this share of what it scores above the level of a well trained model: runs that
# have learned little differ more (seeds of a run of 20 s: 0.013 bpb at 1.88).
NOISE, LEVEL_OF_MUCH, LEAST_NOISE_BPB = 0.015, 1.1, 0.01
# The law has no term for every way to be far from the best, and proposals need the order near it:
# a run counts less by how far it is behind the best of about its work (logarithms this near).
BEHIND, SAME_WORK = 0.3, 0.35
# Residuals are also told of runs that are behind by no more than this.
NEAR_BPB = 0.06
FOLDS = 5


def config_of(trial: Trial, base: Config) -> Config:
    known = {name for name, _, _ in settings(base)}
    return override(base, [f"{k}={v}" for k, v in trial.items() if k in known])


# A level that follows the number of steps.
PLANNED = "as planned"


def former(name: str, trial: Trial) -> str:
    """Return the level of a setting that no longer exists."""
    value = trial.get(name, FORMER[name])
    return ("all" if value else "none") if name == "model.xsa_layers" else str(value)


def level(name: str, config: Config) -> str:
    """Return a setting's level, sizes as what they are a part of."""
    model = config.model
    warmup = config.optim.momentum_warmup_steps
    planned = warmup == momentum_warmup(config.train.steps)
    relative = {
        "optim.momentum_warmup_steps": PLANNED if planned else str(warmup),
        "model.num_kv_heads": "one" if model.num_kv_heads == 1 else "all",
        "model.mlp_dim": f"{model.mlp_dim / model.dim:g} x width",
        "model.rope_dims": "head" if model.rope_dims == model.dim // model.num_heads else "16",
        "model.parallel_from": "none" if model.parallel_from >= model.num_layers else "late",
    }
    if name in relative:
        return relative[name]
    values = {key: value for key, _, value in settings(config)}
    return str(values[name])


def known_of(trial: Trial, config: Config) -> dict[str, float]:
    each = trial["train_bytes"] / trial["train_tokens"]
    text = Reading(trial["train_bytes"], each, trial.get("case_ops", False))
    return features(config, config.train.steps, text)


class Design:
    """Trials and anchors as arrays: features, scores, and which level of what each has."""

    def __init__(
        self, trials: list[Trial], base: Config, anchors: list[Trial], anchor: Config
    ) -> None:
        configs = [config_of(trial, base) for trial in trials]
        far = [config_of(trial, anchor) for trial in anchors]
        both = [*zip(trials, configs, strict=True), *zip(anchors, far, strict=True)]
        self.features = stacked([known_of(trial, config) for trial, config in both])
        self.scores = np.array([trial["ema"] for trial, _ in both])
        self.own = np.arange(len(both)) < len(trials)
        usual = {name: level(name, base) for name in LEVELS} | FORMER
        usual["optim.momentum_warmup_steps"] = PLANNED
        rows = [
            {name: level(name, config) for name in LEVELS}
            | {name: former(name, trial) for name in FORMER}
            for trial, config in zip(trials, configs, strict=True)
        ]
        pairs = sorted({(name, row[name]) for row in rows for name in usual})
        levels = [(name, value) for name, value in pairs if value != usual[name]]
        has = [[row[name] == value for name, value in levels] + [False] for row in rows]
        has += [[False] * len(levels) + [True]] * len(anchors)
        self.has = np.array(has, float)
        self.levels = [*(f"{name}={value}" for name, value in levels), "large model, other text"]
        held = [(np.log(value), off) for value, off in CORE.values()] + list(BEST.values())
        held += [(0.0, LEVEL_BPB)] * len(levels) + [(0.0, ANCHOR_BPB)]
        self.start, self.held = np.array(held).T
        self.behind = self._behind([config for _, config in both])
        noise = np.maximum(LEAST_NOISE_BPB, NOISE * (self.scores - LEVEL_OF_MUCH))
        self.noise = noise + BEHIND * self.behind

    def _behind(self, configs: list[Config]) -> Any:
        """Return how far every run is behind the best of its kind with about its work, in bpb."""
        work = np.log([step_flops(config) * config.train.steps for config in configs])
        near = np.abs(work[:, None] - work) < SAME_WORK
        alike = near & (self.own[:, None] == self.own)
        return self.scores - np.where(alike, self.scores, np.inf).min(1)

    def coefficients(self, x: Any) -> dict[str, float]:
        count = len(CORE)
        positive = dict(zip(CORE, np.exp(x[:count]), strict=True))
        return positive | dict(zip(BEST, x[count : count + len(BEST)], strict=True))

    def residuals(self, x: Any) -> Any:
        apart = self.has @ x[len(CORE) + len(BEST) :]
        return expected(self.coefficients(x), self.features) + apart - self.scores

    def fitted(self, rows: Any) -> Any:
        """Return what fits some rows: residuals beyond their noise count by their size alone."""

        def objective(x: Any) -> Any:
            far = (self.residuals(x) / self.noise)[rows]
            soft = np.sign(far) * np.sqrt(2.0 * (np.sqrt(1.0 + far**2) - 1.0))
            return np.concatenate([soft, (x - self.start) / self.held])

        return least_squares(objective, self.start, max_nfev=4000)

    def unseen(self) -> Any:
        """Return the residuals of the trials by fits that left them out, a fifth at a time."""
        order = np.random.default_rng(0).permutation(np.flatnonzero(self.own))
        off = np.zeros(len(self.scores))
        for fold in range(FOLDS):
            out = order[fold::FOLDS]
            rows = np.setdiff1d(np.arange(len(self.scores)), out)
            off[out] = self.residuals(self.fitted(rows).x)[out]
        return off[self.own]


def spread(off: Any) -> float:
    """Return the deviation of residuals, by their median: a tenth of the runs are strays."""
    return float(1.4826 * np.median(np.abs(off)))


def sizes_of(trials: list[Trial], off: Any) -> dict[str, list[list[float]]]:
    """Return how far the runs of every size of the demo lie off the law, by growing steps; seeds
    are averaged.

    Runs with another tokenizer than that of the recipe are in the fit alone.
    """
    own: dict[str, dict[int, list[float]]] = {}
    for trial, far in zip(trials, off, strict=True):
        if "size" not in trial:
            continue
        now = recipe(trial["size"])
        words = trial["model.vocab_size"], trial.get("case_ops", False)
        if words == (now.model.vocab_size, now.data.case_ops):
            runs = own.setdefault(trial["size"], {})
            runs.setdefault(trial["train.steps"], []).append(float(far))
    return {
        name: [[steps, round(float(np.mean(seeds)), 5)] for steps, seeds in sorted(runs.items())]
        for name, runs in sorted(own.items())
    }


def read_all(files: list[Path]) -> tuple[dict[str, Any], list[Trial]]:
    """Return what the last of some records says of its trials, and the trials of all."""
    records = [read_rows(file) for file in files]
    return records[-1][0], [trial for _, trials in records for trial in trials]


def fit(files: list[Path], anchor_file: Path, command: str) -> dict[str, Any]:
    """Print the fit with its errors and residuals, and return the law's record."""
    (said, trials), (anchors_said, anchors) = read_all(files), read_rows(anchor_file)
    design = Design(trials, recipe("demo"), anchors, recipe(anchors_said["recipe"]))
    found = design.fitted(np.arange(len(design.scores)))
    off, unseen = design.residuals(found.x), design.unseen()
    own, far = off[design.own], off[~design.own]
    errors = np.sqrt(np.diag(np.linalg.inv(found.jac.T @ found.jac)))
    coefficients = design.coefficients(found.x)
    for name, value, error in zip([*CORE, *BEST, *design.levels], found.x, errors, strict=True):
        print(f"{name:36s} {coefficients.get(name, value):9.4f}  +- {error:.4f}")
    near = design.behind[design.own] < NEAR_BPB
    good = design.scores[design.own] < np.median(design.scores[design.own])
    residuals = {
        "spread": spread(own), "root_mean_square": float(np.std(own)),
        "unseen_spread": spread(unseen), "unseen_root_mean_square": float(np.std(unseen)),
        "unseen_better_half": float(np.std(unseen[good])), "anchors": float(np.std(far)),
        "near": float(np.std(own[near])), "unseen_near": float(np.std(unseen[near])),
    }  # fmt: skip
    print("residuals, bpb:", {name: round(value, 4) for name, value in residuals.items()})
    ours = {name: values[design.own] for name, values in design.features.items()}
    plain = design.scores - expected(coefficients, design.features)
    return {
        "command": command,
        "date": said["date"],
        "trials": said["command"],
        "machine": {k: said.get(k) for k in ("machine", "cores", "processor", "torch")},
        "runs": len(trials),
        "anchors": len(anchors),
        "residuals_bpb": {name: round(value, 5) for name, value in residuals.items()},
        "coefficients": {name: round(float(v), 6) for name, v in coefficients.items()},
        "spread_bpb": round(residuals["unseen_better_half"], 5),
        "sizes": sizes_of(trials, plain[design.own]),
        "covers": {name: [float(ours[name].min()), float(ours[name].max())] for name in COVERED},
    }
