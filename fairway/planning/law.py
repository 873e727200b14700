"""A law of loss: bits per byte of a small model by its size, the text it reads, and its settings.

    bpb = floor + (size (M + w E)^-a + text D^-b (1 + B / batch)^b) (1 - marks) + penalties

M and E are millions of parameters in matrices and in the embedding. D is the training text in
millions of bytes, in which each repetition counts less (Muennighoff et al. 2023). B is the tokens
of a step. Penalties are squared distances of a setting from its best value, in logarithms of the
vocabulary, the sequence's length, the depth over the width, the tokens of a step, and the rates.
The best vocabulary depends on the amount of text: with little text a model learns more from long
tokens. It is another, and the loss is lower, with a unigram tokenizer that has marks for capitals.
The best step grows with the amount of text, because many tiny steps are too noisy. The coefficients
are fitted to measured runs (benchmarks/law.py); law.json has them, with their command and date.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np

from fairway.base.arrays import FloatArray
from fairway.config.settings import Config
from fairway.planning.cost import size_of

# 90 % of a normal distribution are within this many deviations of the mean.
_NINETY = 1.645
DAMAGE_BITS = 3.4


@dataclass(frozen=True, slots=True)
class Reading:
    """A training text: its bytes, its bytes per token, and whether marks stand for capitals."""

    train_bytes: float
    bytes_per_token: float
    case_ops: bool = False


def features(config: Config, steps: float, text: Reading) -> dict[str, float]:
    """Return the features of a run of this many steps for the law."""
    model, train, optim = config.model, config.train, config.optim
    size = size_of(model, train.seq_len)
    return {
        "matrices": size.matrices / 1e6,
        "embedding": size.embedding / 1e6,
        "seen": steps * train.batch_tokens * text.bytes_per_token / 1e6,
        "whole": text.train_bytes / 1e6,
        "batch": float(train.batch_tokens),
        "steps": float(steps),
        "vocab": math.log(model.vocab_size),
        "length": math.log(train.seq_len * text.bytes_per_token),
        "depth": math.log(model.num_layers * 64 / model.dim),
        "width": math.log(model.dim / 192),
        "rate": math.log(optim.matrix_lr),
        "embed_rate": math.log(optim.embed_lr),
        "loops": float(model.loop_extra),
        "marks": float(text.case_ops),
    }


Features = Mapping[str, Any]


def expected(c: Mapping[str, float], f: Features) -> Any:
    """Return bits per byte by coefficients, for the features of a run or arrays of them."""
    again = np.maximum(f["seen"] / f["whole"] - 1.0, 0.0)
    worth = c["repeats"] * -np.expm1(-again / c["repeats"])
    text = np.minimum(f["seen"], f["whole"]) + f["whole"] * worth
    size = f["matrices"] + c["embedding"] * f["embedding"]
    crowding = 1.0 + f["batch"] / c["batch"]
    above = c["size"] * size ** -c["size_power"]
    above = above + c["text"] * (text / crowding) ** -c["text_power"]
    return c["floor"] + above * (1.0 - c["marks"] * f["marks"]) + penalties(c, f)


def penalties(c: Mapping[str, float], f: Features) -> Any:
    """Return the penalties of settings, in bits per byte."""
    steps, text = np.log(f["steps"] / 500.0), np.log(f["seen"] / 5.0)
    off = {
        "vocab": f["vocab"] - (
            c["vocab_best"] + c["vocab_text"] * text + c["vocab_marks"] * f["marks"]
        ),
        "length": f["length"] - (c["length_best"] + c["length_text"] * text),
        "depth": f["depth"] - c["depth_best"],
        "batch_off": np.log(f["batch"]) - (c["batch_best"] + c["batch_text"] * text),
        "rate": f["rate"] - (
            c["rate_best"] + c["rate_steps"] * steps + c["rate_width"] * f["width"]
        ),
        "embed": f["embed_rate"] - (c["embed_best"] + c["embed_steps"] * steps),
    }  # fmt: skip
    return c["loops"] * f["loops"] + sum(c[name] * far**2 for name, far in off.items())


@dataclass(frozen=True, slots=True)
class Prediction:
    """The expected score of a run, and the range that contains it in 9 of 10 cases."""

    bpb: float
    low_bpb: float
    high_bpb: float
    inside: bool


@dataclass(frozen=True, slots=True)
class Law:
    """Fitted coefficients, the spread of runs about them, and the runs that they were fitted to.

    `covers` has the minimum and maximum of every feature among those runs. `sizes` has runs of
    recipes by name, as steps and difference of the score from the law: these recipes are compared
    by their own runs, and the law is used between and beyond them. `damage_bpb` is the loss from
    rounding by a trellis at `DAMAGE_BITS` bits per weight. With one bit less it is four times as
    large, because the errors are twice as large and the loss grows with their squares. `gptq_bpb`
    is the loss from GPTQ.
    """

    coefficients: dict[str, float]
    spread_bpb: float
    covers: dict[str, list[float]]
    sizes: dict[str, list[list[float]]]
    damage_bpb: float
    gptq_bpb: float
    runs: int
    told: str

    def predict(self, config: Config, steps: float, text: Reading, bits: float) -> Prediction:
        """Return the expected score of a run of this many steps; `bits` per weight, 0 for GPTQ."""
        found = features(config, steps, text)
        own = self._own(config.recipe, steps)
        bpb = float(expected(self.coefficients, found)) + own + self.damage(bits)
        near = _NINETY * self.spread_bpb
        inside = all(
            low - 1e-9 <= found[name] <= high + 1e-9 for name, (low, high) in self.covers.items()
        )
        return Prediction(bpb, bpb - near, bpb + near, inside)

    def _own(self, recipe: str, steps: float) -> float:
        """Return the difference of a recipe's own runs from the law, between the nearest two."""
        runs = self.sizes.get(recipe)
        if not runs:
            return 0.0
        known, off = np.array(runs).T
        return float(np.interp(math.log(steps), np.log(known), off))

    def damage(self, bits: float) -> float:
        """Return the loss from rounding to this many bits per weight; 0: GPTQ, usual range."""
        return self.damage_bpb * 4.0 ** (DAMAGE_BITS - bits) if bits else self.gptq_bpb

    def rates(self, config: Config, steps: float) -> tuple[float, float]:
        """Return the rates of matrices and embedding at which the penalty is least."""
        c, late = self.coefficients, math.log(max(steps, 1.0) / 500.0)
        width = math.log(config.model.dim / 192)
        matrix = c["rate_best"] + c["rate_steps"] * late + c["rate_width"] * width
        return math.exp(matrix), math.exp(c["embed_best"] + c["embed_steps"] * late)


def fitted_law() -> Law:
    """Return the law that is part of Fairway."""
    text = resources.files("fairway.planning").joinpath("law.json").read_text()
    return law_of(json.loads(text))


def law_of(record: Mapping[str, Any]) -> Law:
    """Return the law of a record that `benchmarks/law.py fit` wrote."""
    return Law(
        coefficients=dict(record["coefficients"]),
        spread_bpb=record["spread_bpb"],
        covers=dict(record["covers"]),
        sizes=dict(record["sizes"]),
        damage_bpb=record["damage_bpb"],
        gptq_bpb=record["gptq_bpb"],
        runs=record["runs"],
        told=f"{record['runs']} runs of {record['date']}, {record['command']}",
    )


def stacked(rows: list[dict[str, float]]) -> dict[str, FloatArray]:
    """Return the features of many runs as one array each."""
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}
