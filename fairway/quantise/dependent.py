"""Dependent quantisation of a whole model: steps by sensitivity, paths through a trellis.

One number, the level, sets every step. The cost of a row's error is rows_R times the cost from its
inputs. So at the level m the row's step is m / sqrt(rows_R c), where c is the mean cost of a
column's error under feedback. Then one bit less costs the same loss in every row of every matrix.
Steps lie on the logarithmic grid of `grid`, between LOW and HIGH deviations of their row. A step
exceeds HIGH only at levels where every row has reached it.

The columns of a matrix also have different steps. A column has a smaller step if its errors cost
more after compensation by later columns, within FINEST and COARSEST octaves of the rows' steps.

Errors are fed back over columns (GPTQ, in their order) and over rows: the other factor of the
Fisher information mixes outputs, so a stripe of rows compensates for the errors of earlier stripes.
(Two-sided feedback: Tseng et al. 2025, arXiv 2505.22988.)

Shapes: L matrices of one shape, R rows (outputs), C columns (inputs), S rows of a stripe, A
additions of columns.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fairway.base.errors import UserError
from fairway.base.floats import double
from fairway.base.progress import progress
from fairway.config.settings import QuantConfig
from fairway.quantise.gptq import (
    QuantisedModel,
    as_half,
    full_precision,
    inverse_factor,
    is_coded,
)
from fairway.quantise.grid import LARGEST_STEP, QuantisedTensor, largest_code, scale_of
from fairway.quantise.rates import (
    CODE_BITS,
    PER_OCTAVE,
    WIDE_BITS,
    code_bits,
    expected_bits,
    row_classes,
    shifted,
)
from fairway.quantise.sensitivity import Curvature
from fairway.quantise.trellis import codes_of
from fairway.quantise.viterbi import Encoder, Problem

# States of the trellis; 1 is a plain grid. Columns whose path is found together. Rows that later
# rows make up for together. The shares of the mean diagonals that are added to the moments of
# inputs and of outputs. The cost of other values is in benchmarks/README.md, from
# benchmarks/pack.py.
STATES, BLOCK, STRIPE = 32, 128, 64
DAMP, OUTPUT_DAMP = 0.01, 0.1
# Bounds of a step in deviations of its row. The second-order model is not valid beyond them.
LOW, HIGH = 0.04, 0.5
# The coarsest level has this many times the steps of the one at which every row is at HIGH.
_COARSEST = 16.0
# Bounds of a column's step, in octaves. Where codes would end, damage would be large.
FINEST, COARSEST = -3.0, 1.0
# Columns' steps lie on every other sixteenth of an octave, as far apart as classes of rows.
_PER_CLASS = 16 // PER_OCTAVE
# An estimate of bits reads one row in this many, and at least this number of rows.
_ROWS_PER_SAMPLE, _LEAST_SAMPLE = 8, 32
# The bounds of the factor on the price of a bit in a row whose step is bounded.
_PRICE_RANGE = 8.0
_HALVINGS = 40


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Matrices of one shape, ready to be quantised at any level.

    feed_LCC and weight_LC as `viterbi` wants them; columns_LC (int16): what a column adds to its
    rows' steps; additions_A: these numbers, and counts_LA (float64) how many columns have each;
    mix_LRR is the upper factor of the inverse of the outputs' moments, None if rows do not mix;
    cost_LR: rows_R times c; spread_LR.
    """

    names: list[str]
    weights: Tensor
    feed: Tensor
    weight: Tensor
    columns: Tensor
    additions: Tensor
    counts: Tensor
    mix: Tensor | None
    cost: Tensor
    spread: Tensor


class Plan:
    """The matrices of a model and the costs of their errors; it gives codes at any level,
    repeatedly."""

    def __init__(
        self, state: Mapping[str, Tensor], costs: Mapping[str, Curvature], config: QuantConfig
    ) -> None:
        """Factorise once. Raises UserError, with the tensor's name, for values that cannot be
        stored."""
        self.config = config
        self.kept: QuantisedModel = {}
        shapes: dict[tuple[int, ...], list[str]] = {}
        for name, weight in state.items():
            if is_coded(name, weight, config.min_numel):
                shapes.setdefault((*weight.shape, costs[name].outputs is None), []).append(name)
            else:
                self.kept[name] = as_half(name, weight)
        self.order = list(state)
        self.groups = [_group(names, state, costs) for names in shapes.values()]
        device = self.groups[0].weights.device if self.groups else "cpu"
        self.bits = code_bits(WIDE_BITS).to(device)
        self._encoder = Encoder(STATES, BLOCK)
        self._expected = expected_bits(self.bits)
        free = [float((group.spread * group.cost.sqrt()).max()) for group in self.groups]
        self._all_high = HIGH * max(free, default=1.0)

    def expected_bits(self, level: float) -> float:
        """Return the bits that all codes at a level take, if rows are Gaussian."""
        return sum(self._expected_bits(group, level) for group in self.groups)

    def _expected_bits(self, group: Group, level: float) -> float:
        classes_LR = row_classes(group.spread / scale_of(self.steps(group, level)))
        nearby_LRA = shifted(classes_LR[..., None], -group.additions // _PER_CLASS)
        bits_LA = double(self._expected[nearby_LRA]).sum(1)
        return float((bits_LA * group.counts).sum())

    def sampled_bits(self, level: float) -> float:
        """Return the same, corrected by the codes of a sample of rows without row feedback.

        An eighth of the work of `quantise`, and on a GPU less: its stripes cost more than its rows.
        """
        total = self.expected_bits(level)
        with full_precision():
            for group in self.groups:
                rows = group.weights.shape[1]
                every = max(1, min(_ROWS_PER_SAMPLE, rows // _LEAST_SAMPLE))
                sample = replace(
                    group,
                    weights=group.weights[:, ::every],
                    cost=group.cost[:, ::every],
                    spread=group.spread[:, ::every],
                    mix=None,
                )
                beyond = self._bits(sample, level) - self._expected_bits(sample, level)
                total += beyond * rows / sample.weights.shape[1]
        return total

    def _bits(self, group: Group, level: float) -> float:
        """Return the bits of a group's codes if they follow their expected rates."""
        steps_LR = self.steps(group, level)
        multiples_LRC = torch.cat(list(self._paths(group, steps_LR, level)), 1).long()
        classes_LR = row_classes(group.spread / scale_of(steps_LR))
        finer_LC = -group.columns.long() // _PER_CLASS
        classes_LRC = shifted(classes_LR[:, :, None], finer_LC[:, None])
        found_LRC = self.bits[classes_LRC, multiples_LRC & 1, (multiples_LRC.abs() + 1) >> 1]
        return float(double(found_LRC).sum())

    def level_for(self, bits_per_weight: float) -> float:
        """Return the level at which codes are expected to take this many bits per weight."""
        wanted = bits_per_weight * sum(group.weights.numel() for group in self.groups)
        low, high = self.levels()
        for _ in range(_HALVINGS):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if self.expected_bits(middle) > wanted else (low, middle)
        return high

    def levels(self) -> tuple[float, float]:
        """Return the finest level, below which steps no longer shrink, and the coarsest."""
        if not self.groups:
            return 1.0, 1.0
        free = [group.spread * group.cost.sqrt() for group in self.groups]
        return LOW * min(float(f.min()) for f in free), _COARSEST * self._all_high

    def steps(self, group: Group, level: float) -> Tensor:
        """Return steps_LR of a group, in sixteenths of an octave (int16)."""
        low_LR, high_LR = LOW * group.spread, HIGH * group.spread
        wanted_LR = level * group.cost.rsqrt()
        bounded_LR = torch.minimum(torch.maximum(wanted_LR, low_LR), high_LR)
        bounded_LR = bounded_LR * max(1.0, level / self._all_high)
        # A margin for the columns' additions, and the plain grid of one state.
        most = LARGEST_STEP - 64
        steps_LR = (16 * bounded_LR.log2()).round().clamp(-most, most)
        return steps_LR.to(torch.int16)

    def quantise(self, level: float) -> QuantisedModel:
        """Return every tensor of the model as codes or as float16, on the CPU, in its order."""
        found = dict(self.kept)
        rows = sum(len(group.names) * group.weights.shape[1] for group in self.groups)
        with progress("quantise", rows) as advance, full_precision():
            for group in self.groups:
                found |= self._quantise_group(group, self.steps(group, level), level)
                advance(len(group.names) * group.weights.shape[1])
        return {name: found[name] for name in self.order}

    def _quantise_group(
        self, group: Group, steps_LR: Tensor, level: float
    ) -> dict[str, QuantisedTensor]:
        codes_LRC = torch.cat([codes_of(m) for m in self._paths(group, steps_LR, level)], 1).cpu()
        # A plain grid has no second grid between its points, so its step is two steps of the
        # trellis.
        steps_LR = steps_LR + 16 if STATES == 1 else steps_LR
        scale_LR = scale_of(steps_LR)
        columns_LC = group.columns.to(torch.int8).cpu()
        found = {}
        for i, name in enumerate(group.names):
            codes_RC, bits = _narrowed(codes_LRC[i])
            found[name] = QuantisedTensor(
                codes_RC,
                scale_LR[i].cpu(),
                bits,
                steps_LR[i].cpu().clone(),
                STATES if STATES > 1 else 0,
                columns=columns_LC[i].clone(),
            )
        return found

    def _paths(self, group: Group, steps_LR: Tensor, level: float) -> Iterator[Tensor]:
        """Yield multiples_LSC of the steps, a stripe of rows at a time."""
        scale_LR = scale_of(steps_LR)
        # A bit has the same cost in loss in every row. Where the step is bounded, its price in
        # errors differs.
        price_LR = level**2 / (scale_LR.square() * group.cost)
        price_LR = self.config.rate_price * price_LR.clamp(1 / _PRICE_RANGE, _PRICE_RANGE)
        classes_LR = row_classes(group.spread / scale_LR)
        left_LRC = group.weights.clone()
        rows = left_LRC.shape[1]
        stripe = STRIPE if group.mix is not None else rows
        for first in range(0, rows, stripe):
            last = min(first + stripe, rows)
            here_LSC = left_LRC[:, first:last]
            step_LSC = scale_of(steps_LR[:, first:last, None] + group.columns[:, None])
            problem = Problem(
                (here_LSC / step_LSC).mT.contiguous(),
                group.feed,
                group.weight,
                price_LR[:, first:last].contiguous(),
                self.bits,
                classes_LR[:, first:last].contiguous(),
                -group.columns.long() // _PER_CLASS,
            )
            multiples_LSC = self._encoder.cheapest_paths(problem).mT
            yield multiples_LSC
            if group.mix is not None and last < rows:
                error_LSC = here_LSC - step_LSC * multiples_LSC
                _make_up(left_LRC, group.mix, error_LSC, first, last)


def _group(names: list[str], state: Mapping[str, Tensor], costs: Mapping[str, Curvature]) -> Group:
    device = costs[names[0]].inputs.device
    factors: dict[int, Tensor] = {}
    mixes, rows = [], []
    for name in names:
        cost = costs[name]
        if not torch.isfinite(state[name]).all():
            raise UserError(f"{name} holds a weight that is not finite; did the training diverge?")
        if id(cost.inputs) not in factors:
            factors[id(cost.inputs)] = inverse_factor(_alive(cost.inputs), DAMP, name)
        if cost.outputs is None:
            floor = 1e-6 * float(cost.rows.mean()) + 1e-30
            rows.append(cost.rows.float().clamp_min(floor))
            continue
        mix_RR = inverse_factor(_alive(cost.outputs), OUTPUT_DAMP, name)
        mixes.append(mix_RR)
        rows.append(_conditional(mix_RR, STRIPE))
    weights_LRC = torch.stack([state[name].to(device, torch.float32) for name in names])
    upper_LCC = torch.stack([factors[id(costs[name].inputs)] for name in names])
    diagonal_LC = upper_LCC.diagonal(dim1=1, dim2=2)
    weight_LC = diagonal_LC.square().reciprocal()
    columns_LC = _columns(weight_LC)
    additions_A = torch.unique(columns_LC)
    wider_LC = scale_of(columns_LC)
    weight_LC *= wider_LC.square()
    mean_L1 = weight_LC.mean(1, keepdim=True)
    spread_LR = weights_LRC.std(2, unbiased=False)
    peak_LR = weights_LRC.abs().amax(2).clamp_min(2.0**-30)
    return Group(
        names=names,
        weights=weights_LRC,
        # The error of a column is in units of its own step, and so is its effect on another column.
        feed=upper_LCC / diagonal_LC[..., None] * (wider_LC[..., None] / wider_LC[:, None]),
        weight=weight_LC / mean_L1,
        columns=columns_LC,
        additions=additions_A,
        counts=double((columns_LC[..., None] == additions_A).sum(1)),
        mix=torch.stack(mixes) if mixes else None,
        cost=torch.stack(rows) * mean_L1,
        # A row without spread is coded like a row whose deviation is its largest weight.
        spread=torch.where(spread_LR > 1e-6 * peak_LR, spread_LR, peak_LR),
    )


def _narrowed(codes_RC: Tensor) -> tuple[Tensor, int]:
    """Return codes as int8 if they fit, else unchanged; and their width in bits."""
    if int(codes_RC.abs().max()) <= largest_code(CODE_BITS):
        return codes_RC.to(torch.int8), CODE_BITS
    return codes_RC.clone(), WIDE_BITS


def _columns(weight_LC: Tensor) -> Tensor:
    """Return columns_LC, the steps that give the errors of all columns the same cost (int16)."""
    octave_LC = -weight_LC.log2() / 2
    octave_LC -= octave_LC.mean(1, keepdim=True)
    classes_LC = (PER_OCTAVE * octave_LC.clamp(FINEST, COARSEST)).round()
    return (_PER_CLASS * classes_LC).to(torch.int16)


def _alive(moments_CC: Tensor) -> Tensor:
    """Return moments in which inputs that were always zero have the mean moment."""
    moments_CC = moments_CC.float().clone()
    diagonal_C = moments_CC.diagonal()
    mean = diagonal_C.mean().clamp_min(1e-30)
    diagonal_C.copy_(torch.where(diagonal_C <= 0, mean, diagonal_C))
    return moments_CC


def _conditional(mix_RR: Tensor, stripe: int) -> Tensor:
    """Return the cost of each row's error after compensation by later stripes."""
    rows = []
    for first in range(0, len(mix_RR), stripe):
        within_SS = mix_RR[first : first + stripe, first : first + stripe]
        eye_SS = torch.eye(len(within_SS), device=mix_RR.device)
        inverse_SS = torch.linalg.solve_triangular(within_SS, eye_SS, upper=True)
        rows.append(inverse_SS.square().sum(1))
    return torch.cat(rows)


def _make_up(left_LRC: Tensor, mix_LRR: Tensor, error_LSC: Tensor, first: int, last: int) -> None:
    """Compensate in place for the errors of a stripe in the rows after it."""
    within_LSS = mix_LRR[:, first:last, first:last].mT
    shared_LSC = torch.linalg.solve_triangular(within_LSS, error_LSC, upper=False)
    left_LRC[:, last:].baddbmm_(mix_LRR[:, first:last, last:].mT, shared_LSC, alpha=-1.0)
