"""Ways to lose less that the package does not have, by the second-order model (docs/LOG.md).

    python benchmarks/pack_trials.py FOLDER [--tokens 20480] [--costs FILE]

FOLDER as for pack.py. Every line: bits per weight (ideal), half the sum of tr(G E H E^T) in nats
per token, and that at the bits of the line above it that ends in "base", at 6.02 dB a bit. Moments
of fit and of measurement are the same, which flatters whatever has parameters. --costs keeps the
moments, which take a CPU ten minutes.
"""

import argparse
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from pack import WEIGHTS, batches, calibration_ids, ideal_bytes
from seed_model import load_state
from torch import Tensor

from fairway.api import model_from
from fairway.config.settings import ModelConfig, QuantConfig, RuntimeConfig
from fairway.data.tokens import Tokenizer
from fairway.machine.plan import make_plan
from fairway.pack.cabac import Side, encode_codes
from fairway.pack.codec import compress
from fairway.quantise import dependent
from fairway.quantise.calibrate import collect_hessians
from fairway.quantise.dependent import Plan
from fairway.quantise.gptq import Matrix, QuantisedModel, dequantise, gptq_all, quantise_model
from fairway.quantise.grid import Grid, QuantisedTensor
from fairway.quantise.sensitivity import Curvature, curvatures

RANK = 4
# Row permutations and factors are stored beside the codes: bytes that are added to a trial's own.
Trial = tuple[Mapping[str, Tensor], float]


def costs_of(folder: Path, state: dict[str, Tensor], tokens: int) -> dict[str, Curvature]:
    plan = make_plan(RuntimeConfig())
    plan.apply()
    tokenizer = Tokenizer.load(folder / "sp8192.model")
    ids_BT = calibration_ids(folder, tokenizer, 20_000, tokens)
    model = model_from(state, ModelConfig(), plan, True)
    names = [n for n, w in state.items() if n.endswith(".weight") and w.ndim == 2]
    hessians = collect_hessians(model, batches(ids_BT, tokens, plan.device), names)
    found = curvatures(model, batches(ids_BT, tokens, plan.device), hessians, ids_BT.numel())
    return {
        name: Curvature(
            cost.inputs.cpu(),
            None if cost.outputs is None else cost.outputs.cpu(),
            cost.rows.cpu(),
        )
        for name, cost in found.items()
    }


class Trials:
    """The weights, what errors cost, and the line that others are compared with."""

    def __init__(self, state: dict[str, Tensor], costs: dict[str, Curvature]) -> None:
        self.state, self.costs = state, costs
        self.hessians = {name: cost.inputs for name, cost in costs.items()}
        self.base_bits = self.base = 0.0
        self.gptq = QuantConfig()
        self.trellis = QuantConfig(method="trellis")

    def loss(self, name: str, error_RC: Tensor) -> float:
        cost = self.costs[name]
        moved_RC = error_RC @ cost.inputs
        moved_RC = (
            moved_RC * cost.rows[:, None] if cost.outputs is None else cost.outputs @ moved_RC
        )
        return float((moved_RC * error_RC).double().sum()) / 2

    def show(self, what: str, restored: Mapping[str, Tensor], total_bytes: float) -> None:
        parts = {n: self.loss(n, self.state[n] - restored[n]) for n in self.costs}
        total, bits = sum(parts.values()), 8 * total_bytes / WEIGHTS
        if what.endswith("base"):
            self.base, self.base_bits = total, bits
        equal = total * 4 ** (bits - self.base_bits)
        embedding = parts["tok_emb.weight"]
        print(
            f"{what:44} {bits:.4f} bits  {total:.5f} nats, the embedding {embedding:.5f}"
            f"  at equal bits x {equal / self.base:.4f}",
            flush=True,
        )

    def quantised(self, what: str, quantised: QuantisedModel) -> None:
        self.show(what, dequantise(quantised), ideal_bytes(self.state, quantised))

    # -----------------------------------------------------------------------------------------
    # What is added to codes

    def refit(self, quantised: QuantisedModel, mixing: bool) -> Trial:
        """Row scales by least squares, as float16. What they cost is not counted."""
        found = dict(dequantise(quantised))
        for name, tensor in quantised.items():
            if not isinstance(tensor, QuantisedTensor):
                continue
            cost, w_RC = self.costs[name], self.state[name]
            m_RC = found[name] / tensor.scale.float()[:, None]
            moved_RC = m_RC @ cost.inputs
            if mixing and cost.outputs is not None:
                damp = 0.1 * cost.outputs.diagonal().mean() * torch.eye(len(w_RC))
                damped_RR = cost.outputs + damp
                right_R = (damped_RR * (moved_RC @ w_RC.T)).sum(1)
                scale_R = torch.linalg.solve(damped_RR * (moved_RC @ m_RC.T), right_R)
            else:
                energy_R = (moved_RC * m_RC).sum(1)
                scale_R = (moved_RC * w_RC).sum(1) / energy_R.clamp_min(1e-30)
            found[name] = m_RC * scale_R.half().float()[:, None]
        return found, 0.0

    def lqer(self, quantised: QuantisedModel, names: list[str], exact: bool, white: bool) -> Trial:
        """Rank 4 of the error: A int2 with one scale, B int4 by groups of 64 (#1797); or as it is,
        or of the error as the moments weigh it."""
        found = dict(dequantise(quantised))
        extra_bytes = 0.0
        for name in names:
            a_Rr, b_rC = self.factors(name, self.state[name] - found[name], white)
            extra_bytes += a_Rr.numel() / 4 + b_rC.numel() / 2 + 2 + b_rC.numel() / 32
            if not exact:
                a_Rr, b_rC = _int2(a_Rr), _int4(b_rC)
            found[name] = found[name] + a_Rr @ b_rC
        return found, extra_bytes

    def factors(self, name: str, error_RC: Tensor, white: bool) -> tuple[Tensor, Tensor]:
        if not white:
            u, s, v = torch.linalg.svd(error_RC, full_matrices=False)
            return u[:, :RANK] * s[:RANK], v[:RANK]
        cost = self.costs[name]
        right_CC = _root(cost.inputs, 0.01)
        left_R1 = cost.rows[:, None].sqrt()
        outputs_RR = None if cost.outputs is None else _root(cost.outputs, 0.1)
        weighed = left_R1 * error_RC if outputs_RR is None else outputs_RR.T @ error_RC
        u, s, v = torch.linalg.svd(weighed @ right_CC, full_matrices=False)
        a = u[:, :RANK] * s[:RANK]
        if outputs_RR is None:
            a = a / left_R1.clamp_min(1e-12)
        else:
            a = torch.linalg.solve_triangular(outputs_RR.T, a, upper=True)
        b = torch.linalg.solve_triangular(right_CC.T, v[:RANK].T, upper=True).T
        size = b.norm(dim=1)
        return a * size, b / size[:, None]

    def corrections(self, quantised: QuantisedModel) -> None:
        own = ideal_bytes(self.state, quantised)
        for mixing in (False, True):
            found, _ = self.refit(quantised, mixing)
            self.show(f"  scales refitted{', over rows too' if mixing else ''}", found, own)
        restored = dequantise(quantised)
        by_norm = sorted(self.costs, key=lambda n: -float((self.state[n] - restored[n]).norm()))
        choices = {"top 3 by norm": by_norm[:3], "embedding": ["tok_emb.weight"]}
        for what, names in choices.items():
            for exact, white in ((False, False), (True, False), (False, True), (True, True)):
                found, extra = self.lqer(quantised, names, exact, white)
                kind = f"{'exact' if exact else 'int2/int4'}{', weighed' if white else ''}"
                self.show(f"  LQER, {what}, {kind}", found, own + extra)

    # -----------------------------------------------------------------------------------------
    # Other grids, rotations, orders

    def by_role(self, sigmas: Callable[[str], Grid]) -> QuantisedModel:
        matrices = [Matrix(n, self.state[n], self.hessians[n], sigmas(n)) for n in self.costs]
        found: QuantisedModel = dict(gptq_all(matrices))
        return found | {n: w.half() for n, w in self.state.items() if n not in found}

    def rotated(self) -> QuantisedModel:
        """Return GPTQ's codes of weights whose inputs were rotated by signs and a Hadamard matrix,
        turned back: what is stored are the codes, so these are the bytes."""
        generator = torch.Generator().manual_seed(0)
        turned, hessians, turns = dict(self.state), {}, {}
        for name in self.costs:
            C = self.state[name].shape[1]
            signs_C = 2.0 * torch.randint(0, 2, (C,), generator=generator) - 1
            turns[name] = signs_C[:, None] * _hadamard(C)
            turned[name] = self.state[name] @ turns[name]
            hessians[name] = turns[name].T @ self.hessians[name] @ turns[name]
        quantised = quantise_model(turned, hessians, self.gptq)
        restored = {
            n: w @ turns[n].T if n in turns else w for n, w in dequantise(quantised).items()
        }
        self.show("  inputs rotated (Hadamard)", restored, ideal_bytes(turned, quantised))
        return quantised

    def ordered(self, quantised: QuantisedModel) -> None:
        """Print what rows in the order of their likeness (#1855) save two coders."""
        for name in ("blocks.4.mlp.fc.weight", "blocks.4.attn.c_q.weight"):
            tensor = quantised[name]
            assert isinstance(tensor, QuantisedTensor)
            order_R = _chain(tensor.codes)
            for what, rows_R in (("as they lie", torch.arange(len(order_R))), ("alike", order_R)):
                codes_RC = tensor.codes[rows_R]
                logs_R = (256 * tensor.scale[rows_R].float().log2()).round().long().numpy()
                own = len(encode_codes([codes_RC.numpy()], [Side(tuple(codes_RC.shape), logs_R)]))
                brotli = len(compress(codes_RC.T.contiguous().numpy().tobytes(), "brotli", 1))
                print(f"  {name}, rows {what}: cabac {own:,}, brotli {brotli:,} bytes", flush=True)
            print(
                f"  (the order takes {math.lgamma(len(order_R) + 1) / math.log(2) / 8:,.0f} bytes)"
            )


def _root(moments: Tensor, damp: float) -> Tensor:
    damped = moments + damp * moments.diagonal().mean() * torch.eye(len(moments))
    return torch.linalg.cholesky(damped)


def _int2(a: Tensor) -> Tensor:
    scale = (a.abs().max() / 1.5).half().float()
    return (a / scale).round().clamp(-2, 1) * scale


def _int4(b: Tensor) -> Tensor:
    groups = b.reshape(-1, 64)
    scale = (groups.abs().amax(1, keepdim=True) / 7.5).half().float()
    return ((groups / scale).round().clamp(-8, 7) * scale).view_as(b)


def _hadamard(size: int) -> Tensor:
    found = torch.ones(1, 1)
    while len(found) < size:
        found = torch.cat([torch.cat([found, found], 1), torch.cat([found, -found], 1)])
    return found / math.sqrt(size)


def _chain(codes_RC: Tensor) -> Tensor:
    """Return rows so that each is followed by the nearest that is left, by L1 (#1855)."""
    rows, left = codes_RC.float(), torch.ones(len(codes_RC), dtype=torch.bool)
    order = [0]
    left[0] = False
    while left.any():
        far = (rows - rows[order[-1]]).abs().sum(1).masked_fill(~left, math.inf)
        order.append(int(far.argmin()))
        left[order[-1]] = False
    return torch.tensor(order)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=int, default=20_480)
    parser.add_argument("--costs", type=Path)
    chosen = parser.parse_args()
    [weights] = sorted(chosen.folder.glob("*.safetensors"))
    state = load_state(weights)
    if chosen.costs and chosen.costs.exists():
        costs = {n: Curvature(*c) for n, c in torch.load(chosen.costs).items()}
    else:
        costs = costs_of(chosen.folder, state, chosen.tokens)
        if chosen.costs:
            torch.save({n: (c.inputs, c.outputs, c.rows) for n, c in costs.items()}, chosen.costs)
    trials = Trials(state, costs)
    seed = quantise_model(state, trials.hessians, trials.gptq)
    trials.quantised("GPTQ as the seed, base", seed)
    trials.corrections(seed)
    embedding = "tok_emb.weight"
    trials.quantised(
        "  embedding int7, 14 sigmas",
        trials.by_role(lambda n: Grid(7, 14.0) if n == embedding else Grid(6, 12.85)),
    )
    trials.quantised(
        "  and MLP 11.5, attention 13",
        trials.by_role(
            lambda n: Grid(7, 14.0) if n == embedding else Grid(6, 11.5 if ".mlp." in n else 13.0)
        ),
    )
    trials.rotated()
    trials.ordered(seed)
    bounds = dependent.FINEST, dependent.COARSEST
    dependent.FINEST = dependent.COARSEST = 0.0
    plan = Plan(state, costs, trials.trellis)
    level = plan.level_for(3.45)
    paths = plan.quantise(level)
    trials.quantised("trellis, base", paths)
    trials.corrections(paths)
    dependent.FINEST, dependent.COARSEST = bounds
    plan = Plan(state, costs, trials.trellis)
    trials.quantised("  steps by column", plan.quantise(plan.level_for(3.45)))


if __name__ == "__main__":
    main()
