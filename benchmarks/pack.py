"""Rate and distortion: what packing adds to a trained model's bpb, at one number of bytes.

    python benchmarks/pack.py FOLDER [--targets 786432] [--only trellis ...] [--real]

FOLDER holds the weights (a .safetensors of 8-bit codes, see seed_model.py), sp8192.model and
val.jsonl.zst. Scored are the first `--targets` targets of the validation text. Calibration reads
the first train-*.jsonl.zst of the folder or, if there is none, the documents of val.jsonl.zst that
lie beyond the scored ones; which, is printed. Every row is brought near the seed's bytes (GPTQ
int6 and int8, Brotli); `at equal bytes` corrects the rest, 6.02 dB a bit. Bytes are ideal (order-0
entropy of the codes given the row's class and grid, 10 bits a row, vectors in float16) unless
--real writes and reads artifacts. On a CPU, `--targets 4096 --calibration 8192 --gradient 4096
--only gptq trellis` takes about ten minutes.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from score import read_text
from seed_model import load_state
from torch import Tensor

from fairway.api import model_from
from fairway.config import ModelConfig, PackConfig, QuantConfig, RuntimeConfig, ScoreConfig, to_dict
from fairway.data.sources import read_documents
from fairway.data.tokens import Tokenizer
from fairway.pack.artifact import load_artifact, save_artifact
from fairway.quantise.calibrate import collect_hessians
from fairway.quantise.dependent import Group, Plan
from fairway.quantise.gptq import QuantisedModel, dequantise, needs_hessian, quantise_model
from fairway.quantise.grid import QuantisedTensor
from fairway.quantise.rates import row_classes
from fairway.quantise.sensitivity import Curvature, curvatures
from fairway.quantise.trellis import GRIDS, TRELLIS
from fairway.runtime import make_plan
from fairway.score.sliding import evaluate

LENGTH = 2048
CODER = "cabac"
# What the seed's grid gives the embedding more than the matrices: 12.85 / 31 over 20 / 127.
EMBEDDING_FINER = (12.85 / 31) / (20 / 127)


@dataclass(frozen=True)
class Row:
    """A way to quantise: settings, and what is left out of it."""

    settings: dict[str, object]
    uniform_steps: bool = False
    one_sided: bool = False


ROWS = {
    "trellis": Row({}),
    "without feedback over rows": Row({}, one_sided=True),
    "without steps by sensitivity": Row({}, uniform_steps=True),
    "trellis alone": Row({}, uniform_steps=True, one_sided=True),
    "without a trellis": Row({"states": 1, "rate_price": 0.1}),
    "without weighing bits": Row({"rate_price": 0.0}),
    "4 states": Row({"states": 4}),
    "plain grid, bits weighed": Row({"states": 1, "rate_price": 0.1}, True, True),
    "stripes of 16 rows": Row({"stripe": 16}),
    "damping of outputs 0.03": Row({"gradient_damp": 0.03}),
    "damping of outputs 0.3": Row({"gradient_damp": 0.3}),
    "bits weighed 0.05": Row({"rate_price": 0.05}),
    "bits weighed 0.25": Row({"rate_price": 0.25}),
}
DEFAULT = list(ROWS)[:7]


# ---------------------------------------------------------------------------------------------
# Bytes


def ideal_bytes(state: Mapping[str, Tensor], quantised: QuantisedModel) -> float:
    """Return the entropy of the codes given their row's class and grid, and the rest as stored."""
    total = 0.0
    for name, tensor in quantised.items():
        if isinstance(tensor, Tensor):
            total += 2 * tensor.numel()
            continue
        classes_R = row_classes(state[name].cpu().std(1) / tensor.scale)
        codes_RC = tensor.codes.int() + 128
        keys = ((classes_R[:, None] * 2 + grids_of(tensor)) * 256 + codes_RC).flatten()
        counts = torch.bincount(keys, minlength=256).double().cpu()
        counts = torch.nn.functional.pad(counts, (0, -len(counts) % 256)).view(-1, 256)
        bits = torch.special.xlogy(counts.sum(1), counts.sum(1)).sum()
        bits -= torch.special.xlogy(counts, counts).sum()
        total += float(bits) / math.log(2) / 8 + 1.25 * len(classes_R)
    return total


def grids_of(tensor: QuantisedTensor) -> Tensor:
    """Return the grid of every code, [R, C]."""
    grids_RC = torch.zeros(tensor.codes.shape, dtype=torch.long)
    if tensor.trellis:
        next_N2 = torch.from_numpy(TRELLIS[tensor.trellis]).long()
        grid_N = torch.from_numpy(GRIDS[tensor.trellis]).long()
        state_R = torch.zeros(len(grids_RC), dtype=torch.long)
        for column, code_R in enumerate(tensor.codes.T.long()):
            grids_RC[:, column] = grid_N[state_R]
            state_R = next_N2[state_R, code_R & 1]
    return grids_RC


# ---------------------------------------------------------------------------------------------
# Text


def calibration_ids(folder: Path, tokenizer: Tokenizer, skip: int, count: int) -> Tensor:
    """Return rows of training tokens, [B, T]; of val's own text the first `skip` are left out."""
    train = sorted(folder.glob("train-*.jsonl.zst"))
    path = train[0] if train else folder / "val.jsonl.zst"
    skip = 0 if train else skip
    ids: list[int] = []
    seen = 0
    for document in read_documents([path]):
        if len(ids) >= count:
            break
        tokens = [1, *tokenizer.encode(tokenizer.canonical(document.text))]
        if seen > skip:
            ids += tokens
        seen += len(tokens)
    print(f"calibration: {len(ids):,} tokens of {path.name}, beyond the first {skip:,}", flush=True)
    rows = min(len(ids), count) // LENGTH
    return torch.from_numpy(np.asarray(ids[: rows * LENGTH], np.int64)).view(rows, LENGTH)


def batches(ids_BT: Tensor, tokens: int, device: str) -> Iterator[Tensor]:
    for rows_BT in torch.split(ids_BT[: max(1, tokens // LENGTH)], 32):
        yield rows_BT.to(device)


# ---------------------------------------------------------------------------------------------
# The table


class Bench:
    """The model, its text, what errors cost, and the seed's figures to compare with."""

    def __init__(self, chosen: argparse.Namespace) -> None:
        self.real: bool = chosen.real
        [weights] = sorted(chosen.folder.glob("*.safetensors"))
        self.state = load_state(weights)
        self.tokenizer = Tokenizer.load(chosen.folder / "sp8192.model")
        self.text = read_text(self.tokenizer, chosen.folder / "val.jsonl.zst", chosen.targets)
        self.plan = make_plan(RuntimeConfig())
        self.plan.apply()
        print(f"torch {torch.__version__}, {self.plan.describe()}, {chosen.targets} targets")
        ids_BT = calibration_ids(
            chosen.folder, self.tokenizer, chosen.targets + LENGTH, chosen.calibration
        )
        self.bpb = self.score(self.state)
        print(f"before packing: {self.bpb:.5f} bpb", flush=True)
        self._calibrate(ids_BT, chosen.gradient)
        self.target_bytes = self.seed_damage = 0.0

    def _calibrate(self, ids_BT: Tensor, gradient_tokens: int) -> None:
        model = model_from(self.state, ModelConfig(), self.plan, True)
        names = [n for n, w in self.state.items() if n.endswith(".weight") and w.ndim == 2]
        names = [n for n in names if needs_hessian(n, self.state)]
        device = self.plan.device
        start_s = time.perf_counter()
        self.hessians = collect_hessians(model, batches(ids_BT, 2**40, device), names)
        hessians_s = time.perf_counter() - start_s
        few = batches(ids_BT, gradient_tokens, device)
        self.costs = curvatures(model, few, self.hessians, ids_BT.numel())
        total_s = time.perf_counter() - start_s
        print(
            f"Hessians {hessians_s:.1f} s, sensitivities {total_s - hessians_s:.1f} s", flush=True
        )

    def score(self, state: Mapping[str, Tensor]) -> float:
        model = model_from(dict(state), ModelConfig(), self.plan, True)
        config = ScoreConfig(truncate=False, check_positions=0)
        return evaluate(model, self.text, config, sliding=False, seed=0, description="score").bpb

    def predicted_nats(self, restored: Mapping[str, Tensor]) -> float:
        """Return half the sum of tr(G E H E^T): the nats per token that errors should add."""
        total = 0.0
        for name, cost in self.costs.items():
            error_RC = (self.state[name] - restored[name]).to(cost.inputs.device)
            moved_RC = error_RC @ cost.inputs
            if cost.outputs is None:
                moved_RC *= cost.rows[:, None]
            else:
                moved_RC = cost.outputs @ moved_RC
            total += float((moved_RC * error_RC).double().sum()) / 2
        return total

    def show(self, name: str, quantised: QuantisedModel, encode_s: float, codec: str) -> None:
        restored = dequantise(quantised)
        size, pack_s, decode_s = ideal_bytes(self.state, quantised), 0.0, 0.0
        if self.real or codec == "brotli":
            size, pack_s, decode_s = self.written(quantised, codec)
        bpb = self.score(restored)
        damage = bpb - self.bpb
        if not self.target_bytes:
            self.target_bytes, self.seed_damage = size, damage
        weights = sum(t.codes.numel() for t in quantised.values() if not isinstance(t, Tensor))
        equal = damage * 2 ** (2 * 8 * (size - self.target_bytes) / weights)
        print(
            f"{name:32} {size:12,.0f} bytes  {self.predicted_nats(restored):.5f} nats predicted  "
            f"{bpb:.5f} bpb  {damage:+.5f}  at equal bytes {equal:+.5f}, "
            f"x {equal / self.seed_damage:.3f}  quantise {encode_s:.1f} s, encode {pack_s:.1f} s, "
            f"decode {decode_s:.1f} s",
            flush=True,
        )

    def written(self, quantised: QuantisedModel, codec: str) -> tuple[int, float, float]:
        """Return bytes of an artifact, seconds to write it and seconds to read it."""
        provenance = {
            "recipe": "benchmark", "recipe_hash": "0" * 16, "seed": 0, "looping": True,
            "score": to_dict(ScoreConfig()), "fairway": "0",
        }  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "artifact.fwy"
            pack = PackConfig(codec=codec)
            start_s = time.perf_counter()
            save_artifact(path, quantised, ModelConfig(), pack, self.tokenizer, provenance)
            written_s = time.perf_counter()
            state = load_artifact(path).state
            read_s = time.perf_counter()
            restored = dequantise(quantised)
            assert all(torch.equal(state[name], restored[name]) for name in restored)
            return path.stat().st_size, written_s - start_s, read_s - written_s

    def seed(self) -> None:
        start_s = time.perf_counter()
        quantised = quantise_model(self.state, self.hessians, QuantConfig())
        self.show("gptq, brotli (the seed)", quantised, time.perf_counter() - start_s, "brotli")

    def gptq(self) -> None:
        """The seed's method, its multipliers such that the better coder's bytes are the seed's."""
        config = QuantConfig()
        start_s = time.perf_counter()
        quantised = quantise_model(self.state, self.hessians, config)
        factor = 2 ** (8 * (self.size_of(quantised) - self.target_bytes) / 35_913_728)
        config = replace(
            config,
            matrix_sigmas=config.matrix_sigmas * factor,
            embed_sigmas=config.embed_sigmas * factor,
        )
        quantised = quantise_model(self.state, self.hessians, config)
        self.show("gptq, this coder", quantised, time.perf_counter() - start_s, CODER)

    def size_of(self, quantised: QuantisedModel) -> float:
        if self.real:
            return self.written(quantised, CODER)[0]
        return ideal_bytes(self.state, quantised)

    def row(self, name: str) -> None:
        row = ROWS[name]
        costs = self.costs
        if row.one_sided:
            costs = {n: Curvature(c.inputs, None, c.rows) for n, c in costs.items()}
        config = replace(QuantConfig(method="trellis"), **row.settings)  # type: ignore[arg-type]
        start_s = time.perf_counter()
        plan = Plan(self.state, costs, config)
        if row.uniform_steps:
            plan.groups = [self._uniform(group) for group in plan.groups]
        bits = 8 * self.target_bytes / 35_913_728
        level = plan.level_for(bits)
        before_s = time.perf_counter()
        quantised = plan.quantise(level)
        one_s = time.perf_counter() - before_s
        # One more, at the level that the first one's size asks for.
        bits += 8 * (self.target_bytes - self.size_of(quantised)) / 35_913_728
        quantised = plan.quantise(plan.level_for(bits))
        total_s = time.perf_counter() - start_s
        self.show(name, quantised, one_s, CODER)
        print(f"{'':32} (factorised and quantised twice in {total_s:.1f} s)", flush=True)

    @staticmethod
    def _uniform(group: Group) -> Group:
        finer = EMBEDDING_FINER if group.names == ["tok_emb.weight"] else 1.0
        return replace(group, cost=(finer / group.spread) ** 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--targets", type=int, default=786_432)
    parser.add_argument("--calibration", type=int, default=2_097_152)
    parser.add_argument("--gradient", type=int, default=1_048_576)
    parser.add_argument("--only", nargs="*", default=["gptq", *DEFAULT], help="of gptq, rows")
    parser.add_argument("--real", action="store_true", help="bytes of artifacts, not ideal ones")
    bench = Bench(parser.parse_args())
    bench.seed()
    for name in parser.parse_args().only:
        bench.gptq() if name == "gptq" else bench.row(name)


if __name__ == "__main__":
    main()
