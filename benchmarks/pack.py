"""What dependent quantisation gains on the trained seed model, part by part, at equal bytes.

    python benchmarks/pack.py FOLDER [--real] [--only NAME ...] [--calibration 2097152] ...

FOLDER holds sp8192.model, val.jsonl.zst, the trained weights (`seed_model`) and maybe
train-*.jsonl.zst. Without training text the Hessians and sensitivities are made from validation
text beyond what is scored, which only a comparison of quantisers may do.

A row's bytes are the seed's, by a level solved from one cheap pass; damage (bits per byte lost by
quantising) is brought to exactly equal bytes by 6.02 dB a bit. Bytes are ideal (entropy of codes
given their row's class and grid, without parameters' cost); with --real they are those of written
artifacts, which are read back, and what was read is scored. Processes beside this one (--jobs)
write and read while the next row is quantised. --rows FILE gets a JSON object per row. On a CPU,
`--targets 4096 --calibration 8192 --gradient 4096 --only gptq trellis` takes about ten minutes.
"""

import argparse
import json
import math
import multiprocessing
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from score import read_text
from seed_model import load_state
from torch import Tensor

from fairway.api import model_from
from fairway.config.settings import ModelConfig, PackConfig, QuantConfig, RuntimeConfig, ScoreConfig
from fairway.config.written import to_dict
from fairway.data.sources import read_documents
from fairway.data.tokens import Tokenizer
from fairway.machine.plan import make_plan
from fairway.pack.artifact import load_artifact, save_artifact
from fairway.pack.cabac import Side, encode_codes
from fairway.quantise import dependent
from fairway.quantise.calibrate import collect_hessians
from fairway.quantise.dependent import Group, Plan
from fairway.quantise.gptq import QuantisedModel, dequantise, quantise_model
from fairway.quantise.grid import QuantisedTensor
from fairway.quantise.rates import row_classes, shifted
from fairway.quantise.sensitivity import Curvature, curvatures
from fairway.quantise.trellis import GRIDS, TRELLIS
from fairway.score.evaluation import Evaluation
from fairway.score.sliding import evaluate_frozen

LENGTH = 2048
CODER = "cabac"
WEIGHTS = 35_913_728
# What the seed's grid gives the embedding more than the matrices: 12.85 / 31 over 20 / 127.
EMBEDDING_FINER = (12.85 / 31) / (20 / 127)


@dataclass(frozen=True)
class Row:
    """A way to quantise: settings and constants, what is left out of it, and the text behind it.

    calibration: share of the tokens. looping: whether calibration reads with the recurrence on.
    columns: whether columns have steps of their own.
    """

    settings: dict[str, object]
    uniform_steps: bool = False
    one_sided: bool = False
    calibration: float = 1.0
    looping: bool = True
    columns: bool = False


# What rows may change, as it is in the package.
CONSTANTS = {
    "STATES": dependent.STATES, "STRIPE": dependent.STRIPE, "DAMP": dependent.DAMP,
    "OUTPUT_DAMP": dependent.OUTPUT_DAMP, "FINEST": dependent.FINEST,
    "COARSEST": dependent.COARSEST,
}  # fmt: skip
PARTS = {
    "trellis": Row({}),
    "without feedback over rows": Row({}, one_sided=True),
    "without steps by sensitivity": Row({}, uniform_steps=True),
    "without a trellis": Row({"STATES": 1}),
    "and bits weighed 0.12": Row({"rate_price": 0.12}),
    "4 states": Row({"STATES": 4}),
    "8 states": Row({"STATES": 8}),
    "plain grid, bits weighed": Row({"STATES": 1, "rate_price": 0.1}, True, True),
    "and steps by column": Row({}, columns=True),
    "columns and bits weighed 0.12": Row({"rate_price": 0.12}, columns=True),
}
CHOICES = {
    "trellis alone": Row({}, uniform_steps=True, one_sided=True),
    "stripes of 16 rows": Row({"STRIPE": 16}),
    "stripes of 256 rows": Row({"STRIPE": 256}),
    "damping of outputs 0.03": Row({"OUTPUT_DAMP": 0.03}),
    "damping of outputs 0.3": Row({"OUTPUT_DAMP": 0.3}),
    "bits weighed 0.03": Row({"rate_price": 0.03}),
    "bits weighed 0.25": Row({"rate_price": 0.25}),
}
CALIBRATION = {
    "a quarter of the text": Row({}, calibration=1 / 4),
    "a sixteenth of the text": Row({}, calibration=1 / 16),
    "read without recurrence": Row({}, looping=False),
    "damping of inputs 0.001": Row({"DAMP": 0.001}),
    "damping of inputs 0.1": Row({"DAMP": 0.1}),
}
ROWS = PARTS | CHOICES | CALIBRATION
SETS = {"parts": ["gptq", *PARTS], "choices": list(CHOICES), "calibration": list(CALIBRATION)}


# ---------------------------------------------------------------------------------------------
# Bytes


def ideal_bytes(state: Mapping[str, Tensor], quantised: QuantisedModel) -> float:
    """Return the entropy of the codes given their row's class and grid, and the rest as stored."""
    total = 0.0
    for name, tensor in quantised.items():
        if isinstance(tensor, Tensor):
            total += 2 * tensor.numel()
            continue
        classes_RC = row_classes(state[name].cpu().std(1) / tensor.scale)[:, None]
        if tensor.columns is not None and tensor.columns.any():
            # A column's steps take about three bits in the artifact.
            classes_RC = shifted(classes_RC, -tensor.columns.long() // 2)
            total += 3 / 8 * len(tensor.columns)
        codes_RC = tensor.codes.int() + 512
        keys = ((classes_RC * 2 + grids_of(tensor)) * 1024 + codes_RC).flatten()
        counts = torch.bincount(keys, minlength=1024).double().cpu()
        counts = torch.nn.functional.pad(counts, (0, -len(counts) % 1024)).view(-1, 1024)
        bits = torch.special.xlogy(counts.sum(1), counts.sum(1)).sum()
        bits -= torch.special.xlogy(counts, counts).sum()
        total += float(bits) / math.log(2) / 8 + 1.25 * len(codes_RC)
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
# Artifacts, written and read by other processes


@dataclass(frozen=True)
class Written:
    """An artifact's bytes, and the seconds to write and to read it."""

    bytes: int
    encode_s: float
    decode_s: float


def warm(rows: int) -> int:
    """Compile the coder, or find it compiled, before anything is timed."""
    codes_RC = np.zeros((rows, 8), np.int16)
    return len(encode_codes([codes_RC], [Side((rows, 8), np.zeros(rows, np.int64))]))


def written(folder: Path, tokenizer: Path, codec: str) -> Written:
    """Write the artifact of folder/quantised.pt; leave in folder/read.safetensors what was read."""
    torch.set_num_threads(1)
    # Our own file of a moment ago.
    quantised = torch.load(folder / "quantised.pt", weights_only=False)
    provenance = {
        "recipe": "benchmark", "recipe_hash": "0" * 16, "seed": 0, "looping": True,
        "score": to_dict(ScoreConfig()), "fairway": "0",
    }  # fmt: skip
    path = folder / "artifact.fwy"
    tokens = Tokenizer.load(tokenizer)
    start_s = time.perf_counter()
    save_artifact(path, quantised, ModelConfig(), PackConfig(codec=codec), tokens, provenance)
    written_s = time.perf_counter()
    state = load_artifact(path).state
    read_s = time.perf_counter()
    for name, restored in dequantise(quantised).items():
        assert torch.equal(state[name], restored), name
    save_file({n: w.contiguous() for n, w in state.items()}, folder / "read.safetensors")
    return Written(path.stat().st_size, written_s - start_s, read_s - written_s)


# ---------------------------------------------------------------------------------------------
# The table


@dataclass(frozen=True)
class Found:
    """A row of the table. at_equal_bytes: damage, as if the row had the seed's bytes."""

    name: str
    bytes: float
    real: bool
    predicted_nats: float
    bpb: float
    damage: float
    at_equal_bytes: float
    of_the_seed: float
    quantise_s: float
    encode_s: float
    decode_s: float


@dataclass
class Open:
    """A row whose artifact is being written."""

    name: str
    ideal_bytes: float
    predicted_nats: float
    quantise_s: float
    folder: Path
    done: "Future[Written]"


class Bench:
    """The model, its text, what errors cost, and the seed's figures to compare with."""

    def __init__(self, chosen: argparse.Namespace, folder: Path, pool: ProcessPoolExecutor) -> None:
        self.chosen, self.folder, self.pool = chosen, folder, pool
        self.open: deque[Open] = deque()
        self.start_s = time.perf_counter()
        pool.submit(warm, 8)
        [weights] = sorted(chosen.folder.glob("*.safetensors"))
        self.state = load_state(weights)
        self.tokenizer_file = chosen.folder / "sp8192.model"
        tokenizer = Tokenizer.load(self.tokenizer_file)
        self.text = read_text(tokenizer, chosen.folder / "val.jsonl.zst", chosen.targets)
        # Few: the processes that write need the cores.
        self.plan = make_plan(RuntimeConfig(threads=4))
        self.plan.apply()
        print(f"torch {torch.__version__}, {self.plan.describe()}, {chosen.targets} targets")
        self.ids_BT = calibration_ids(
            chosen.folder, tokenizer, chosen.targets + LENGTH, chosen.calibration
        )
        self.model = model_from(self.state, ModelConfig(), self.plan, True)
        self.bpb = self.score(self.state)
        self.say(f"before packing: {self.bpb:.5f} bpb")
        self.known: dict[tuple[float, bool], dict[str, Curvature]] = {}
        self.hessians = self.hessians_of(1.0, True)
        self.target_bytes = self.seed_damage = 0.0
        # Written bytes over ideal ones, of the last trellis row that was written.
        self.ratio = 1.0

    def say(self, text: str) -> None:
        print(f"[{time.perf_counter() - self.start_s:5.0f} s] {text}", flush=True)

    def ids(self, share: float) -> Tensor:
        return self.ids_BT[: max(1, round(share * len(self.ids_BT)))]

    def hessians_of(self, share: float, looping: bool) -> dict[str, Tensor]:
        names = [n for n, w in self.state.items() if n.endswith(".weight") and w.ndim == 2]
        self.model.set_looping(looping)
        all_of_it = batches(self.ids(share), 2**40, self.plan.device)
        found = collect_hessians(self.model, all_of_it, names)
        self.model.set_looping(True)
        self.say(f"Hessians of {self.ids(share).numel():,} tokens")
        return found

    def costs_of(self, share: float, looping: bool) -> dict[str, Curvature]:
        if (share, looping) not in self.known:
            first = share == 1.0 and looping
            hessians = self.hessians if first else self.hessians_of(share, looping)
            ids_BT = self.ids(share)
            few = batches(ids_BT, round(share * self.chosen.gradient), self.plan.device)
            self.model.set_looping(looping)
            self.known[share, looping] = curvatures(self.model, few, hessians, ids_BT.numel())
            self.model.set_looping(True)
            self.say("sensitivities")
        return self.known[share, looping]

    def score(self, state: Mapping[str, Tensor]) -> float:
        model = model_from(dict(state), ModelConfig(), self.plan, True)
        config = ScoreConfig(truncate=False, check_positions=0)
        return evaluate_frozen(model, Evaluation(self.text, config), sliding=False).bpb

    def predicted_nats(self, restored: Mapping[str, Tensor]) -> float:
        """Return half the sum of tr(G E H E^T): the nats per token that errors should add."""
        total = 0.0
        for name, cost in self.costs_of(1.0, True).items():
            error_RC = (self.state[name] - restored[name]).to(cost.inputs.device)
            moved_RC = error_RC @ cost.inputs
            if cost.outputs is None:
                moved_RC *= cost.rows[:, None]
            else:
                moved_RC = cost.outputs @ moved_RC
            total += float((moved_RC * error_RC).double().sum()) / 2
        return total

    # -----------------------------------------------------------------------------------------
    # Rows on their way

    def take(self, name: str, quantised: QuantisedModel, codec: str, quantise_s: float) -> None:
        """Have a row's artifact written; show those that are ready."""
        folder = self.folder / str(len(list(self.folder.iterdir())))
        folder.mkdir()
        ideal = ideal_bytes(self.state, quantised)
        restored = dequantise(quantised)
        if self.chosen.real or codec == "brotli":
            torch.save(quantised, folder / "quantised.pt")
            done = self.pool.submit(written, folder, self.tokenizer_file, codec)
        else:
            done = Future()
            save_file({n: w.contiguous() for n, w in restored.items()}, folder / "read.safetensors")
            done.set_result(Written(round(ideal), 0.0, 0.0))
        predicted = self.predicted_nats(restored)
        self.open.append(Open(name, ideal, predicted, quantise_s, folder, done))
        self.say(f"{name}: quantised in {quantise_s:.1f} s")
        while self.open and self.open[0].done.done():
            self.show(self.open.popleft())

    def finish(self) -> None:
        while self.open:
            self.show(self.open.popleft())

    def show(self, row: Open) -> None:
        """Score what was read of a row's artifact and print the row."""
        artifact = row.done.result()
        file = row.folder / "read.safetensors"
        bpb = self.score(load_file(file))
        file.unlink()
        damage = bpb - self.bpb
        if not self.target_bytes:
            self.target_bytes, self.seed_damage = artifact.bytes, damage
        elif self.chosen.real:
            self.ratio = artifact.bytes / row.ideal_bytes
        equal = damage * 2 ** (2 * 8 * (artifact.bytes - self.target_bytes) / WEIGHTS)
        found = Found(
            row.name, artifact.bytes, artifact.encode_s > 0, row.predicted_nats, bpb, damage, equal,
            equal / self.seed_damage, row.quantise_s, artifact.encode_s,
            artifact.decode_s,
        )  # fmt: skip
        self.say(
            f"{row.name:32} {artifact.bytes:12,} bytes  {row.predicted_nats:.5f} nats predicted  "
            f"{bpb:.5f} bpb  {damage:+.5f}  at equal bytes {equal:+.5f}, "
            f"x {found.of_the_seed:.3f}  quantise {row.quantise_s:.1f} s, "
            f"encode {artifact.encode_s:.1f} s, decode {artifact.decode_s:.1f} s"
        )
        if self.chosen.rows:
            with self.chosen.rows.open("a") as stream:
                stream.write(json.dumps(asdict(found)) + "\n")

    # -----------------------------------------------------------------------------------------
    # Ways to quantise

    def seed(self) -> None:
        start_s = time.perf_counter()
        quantised = quantise_model(self.state, self.hessians, QuantConfig())
        seconds = time.perf_counter() - start_s
        self.take("gptq, brotli (the seed)", quantised, "brotli", seconds)
        # All others are brought to its bytes.
        self.finish()

    def gptq(self) -> None:
        """The seed's method, its multipliers such that the better coder's bytes are the seed's."""
        config = QuantConfig()
        quantised = quantise_model(self.state, self.hessians, config)
        excess = ideal_bytes(self.state, quantised) - self.target_bytes
        factor = 2 ** (8 * excess / WEIGHTS)
        config = replace(
            config,
            matrix_sigmas=config.matrix_sigmas * factor,
            embed_sigmas=config.embed_sigmas * factor,
        )
        start_s = time.perf_counter()
        quantised = quantise_model(self.state, self.hessians, config)
        self.take("gptq, this coder", quantised, CODER, time.perf_counter() - start_s)

    def row(self, name: str) -> None:
        row = ROWS[name]
        costs = self.costs_of(row.calibration, row.looping)
        if row.one_sided:
            costs = {n: Curvature(c.inputs, None, c.rows) for n, c in costs.items()}
        own = {key: value for key, value in row.settings.items() if not key.isupper()}
        config = replace(QuantConfig(method="trellis"), **own)  # type: ignore[arg-type]
        alike = {} if row.columns else {"FINEST": 0.0, "COARSEST": 0.0}
        for key, value in (CONSTANTS | alike | row.settings).items():
            if key.isupper():
                setattr(dependent, key, value)
        plan = Plan(self.state, costs, config)
        if row.uniform_steps:
            plan.groups = [self._uniform(group) for group in plan.groups]
        level = self._level(plan)
        start_s = time.perf_counter()
        quantised = plan.quantise(level)
        self.take(name, quantised, CODER, time.perf_counter() - start_s)

    def _level(self, plan: Plan) -> float:
        """Return the level of the seed's bytes: from the sizes of codes without row feedback,
        which take a tenth of the time and as many bits."""
        bits = 8 * self.target_bytes / self.ratio / WEIGHTS
        groups = plan.groups
        plan.groups = [replace(group, mix=None) for group in groups]
        found = ideal_bytes(self.state, plan.quantise(plan.level_for(bits)))
        plan.groups = groups
        return plan.level_for(2 * bits - 8 * found / WEIGHTS)

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
    parser.add_argument("--only", nargs="*", default=["parts"], help="of gptq, rows; or sets")
    parser.add_argument("--real", action="store_true", help="bytes of artifacts, not ideal ones")
    parser.add_argument("--jobs", type=int, default=5, help="processes that write artifacts")
    parser.add_argument("--rows", type=Path, help="file that a line of JSON per row is added to")
    chosen = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(chosen.jobs, mp_context=spawn) as pool,
    ):
        bench = Bench(chosen, Path(folder), pool)
        bench.seed()
        for name in chosen.only:
            for each in SETS.get(name, [name]):
                bench.gptq() if each == "gptq" else bench.row(each)
        bench.finish()


if __name__ == "__main__":
    main()
