"""What the stages of a recipe are planned to take of the present GPU beside what they take.

    python benchmarks/memory.py [--recipe best] [--share 0.3] [--documents 160] [--only train ...]
        [--text TEXT --tokenizer TOKENIZER]

Random tokens, the recipe's shapes, a share of the card's memory: for each stage a line with the
plan, how many go together, the most that tensors took, and their ratio. A ratio above 1 is a plan
that was too small. One run takes about two minutes. `--text` takes the documents of a text for the
stages that score, as many tokens as `--documents` times 900: their lengths are what LoRA's memory
follows.
"""

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from score import read_text
from torch import Tensor

from fairway.base.memory import begin_peak, free_bytes, give_back, peak_bytes
from fairway.base.timing import settle
from fairway.config.overrides import override
from fairway.config.settings import Config
from fairway.data.tokens import Tokenizer
from fairway.machine.plan import DTYPES, Plan, make_plan
from fairway.machine.ranks import Ranks
from fairway.model.cache import Cache
from fairway.model.gpt import GPT, build
from fairway.model.paths import prepare
from fairway.pipeline.memory import Planned, planned
from fairway.quantise.calibrate import collect_hessians
from fairway.quantise.gptq import grid_of
from fairway.quantise.sensitivity import curvatures
from fairway.recipes import recipe
from fairway.score.evaluation import Evaluation
from fairway.score.ledger import Text
from fairway.score.sliding import evaluate_frozen
from fairway.score.ttt import evaluate_ttt
from fairway.train.loop import Training, TrainingText

DEVICE = torch.device("cuda", 0)


def new_model(config: Config, plan: Plan) -> GPT:
    model = build(config.model, config.seed).to(DEVICE)
    prepare(model, DTYPES[plan.dtype], plan.attention, plan.kernels)
    model.set_looping(bool(config.model.loop_extra))
    return model


def tokens(config: Config, count: int, documents: int = 0) -> np.ndarray:
    """Return random tokens, in so many documents of very different lengths if asked to."""
    draw = np.random.default_rng(0)
    ids = draw.integers(2, config.model.vocab_size, count)
    if documents:
        lengths = draw.lognormal(6.3, 0.9, documents)
        ends = np.cumsum(lengths / lengths.sum() * count).astype(np.int64)
        ids[np.concatenate([[0], ends[:-1]])] = 1
    return ids


def train(config: Config, plan: Plan) -> None:
    """One step in every mode, as in the warm-up."""
    ids = tokens(config, 2 * config.train.batch_tokens + 2).astype(np.uint16)
    loop = dataclasses.replace(config.train, warmup_steps=1)
    config = dataclasses.replace(config, train=loop)
    with tempfile.TemporaryDirectory() as folder:
        text = TrainingText([ids], 3.6)
        training = Training(config, plan, Ranks(), text, Path(folder), print)
        try:
            training.warm_up()
        finally:
            training.close()


def pack(config: Config, plan: Plan) -> None:
    """A batch of calibration, and sensitivities where the recipe has them."""
    model, loop = new_model(config, plan), config.train
    state = dict(model.named_parameters())
    names = [n for n, w in state.items() if grid_of(n, w, config.quant) is not None]
    ids = torch.from_numpy(tokens(config, loop.micro_tokens)).to(DEVICE)
    rows: list[Tensor] = [ids.view(-1, loop.seq_len)]
    hessians = collect_hessians(model, rows, names)
    if config.quant.method == "trellis":
        curvatures(model, rows, hessians, loop.micro_tokens)


def score(config: Config, plan: Plan, ids: np.ndarray, sliding: bool) -> None:
    """Windows enough for a few events."""
    few = ids[: 2 * config.score.batch_windows * config.score.stride + config.score.seq_len + 1]
    chosen = few if sliding else ids[: 65 * config.score.seq_len + 1]
    evaluate_frozen(
        new_model(config, plan), Evaluation(text_of(config, chosen), config.score), sliding=sliding
    )


def text_of(config: Config, ids: np.ndarray) -> Text:
    count = len(ids) - 1
    return Text(ids, np.ones(count, np.int64), count, config.model.vocab_size)


def adapt(config: Config, plan: Plan, ids: np.ndarray) -> None:
    """As a run does: an estimate comes before."""
    text = text_of(config, ids)
    evaluate_ttt(new_model(config, plan), Evaluation(text, config.score, config.ttt))


def code(config: Config, plan: Plan, streams: int) -> None:
    """Prompts of all streams read at once, then tokens one by one."""
    model, T = new_model(config, plan), config.score.seq_len
    cache = Cache(model, streams, T, T, steady=True)
    with torch.no_grad():
        cache.last(torch.zeros(streams, T // 2, dtype=torch.long, device=DEVICE))
        for _ in range(4):
            states = cache.last(torch.zeros(streams, 1, dtype=torch.long, device=DEVICE))
            model.logits(states).double().log_softmax(-1).exp().cumsum(-1)


def measured(name: str, stage: Planned, work: Callable[[], None]) -> None:
    give_back()
    begin_peak("cuda")
    start_s = time.perf_counter()
    work()
    settle()
    need, peak = stage.need.at(stage.count), peak_bytes("cuda")
    kept = torch.cuda.max_memory_reserved()
    print(f"{name:16} {stage.line()}", flush=True)
    print(
        f"{'':16} took {peak / 1e9:.1f} GB, {peak / need:.2f} of the plan, {kept / 1e9:.1f} GB "
        f"with what PyTorch kept for later, {time.perf_counter() - start_s:.1f} s",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="best")
    parser.add_argument("--share", type=float, default=1.0, help="share of the GPU's memory")
    parser.add_argument("--documents", type=int, default=160)
    parser.add_argument("--text", type=Path, help="a .jsonl.zst of documents, with --tokenizer")
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--set", nargs="*", default=[], help="overrides of the recipe")
    chosen = parser.parse_args()
    torch.cuda.set_per_process_memory_fraction(chosen.share)
    if not hasattr(torch.cuda, "get_per_process_memory_fraction"):
        # PyTorch 2.11 cannot be asked for it.
        torch.cuda.get_per_process_memory_fraction = lambda device=None: chosen.share
    config = override(recipe(chosen.recipe), [*chosen.set, "prove.bytes=5000000"])
    plan = make_plan(config.runtime)
    plan.apply()
    ids = tokens(config, 900 * chosen.documents, chosen.documents)
    if chosen.text:
        ids = read_text(Tokenizer.load(chosen.tokenizer), chosen.text, len(ids) - 1).ids
    total = torch.cuda.get_device_properties(DEVICE).total_memory
    # Not every PyTorch can be asked for the share.
    free = min(free_bytes(DEVICE), chosen.share * total)
    plans = planned(config, plan, free, ids=ids)
    sgd = dataclasses.replace(config, ttt=dataclasses.replace(config.ttt, method="sgd", epochs=1))
    other = planned(sgd, plan, free)["score.ttt"]
    coded = plans["proof"]
    works: dict[str, tuple[Planned, Callable[[], None]]] = {
        "train": (plans["train"], partial(train, config, plan)),
        "pack": (plans["pack"], partial(pack, config, plan)),
        "score.quantised": (plans["score.quantised"], partial(score, config, plan, ids, False)),
        "score.sliding": (plans["score.sliding"], partial(score, config, plan, ids, True)),
        "sgd": (other, partial(adapt, sgd, plan, ids[: 2 * 32_768 + 2049])),
        "proof": (coded, partial(code, config, plan, coded.count)),
    }
    if config.ttt.method == "lora":
        works["lora"] = plans["score.ttt"], partial(adapt, config, plan, ids)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {plan.describe()}")
    for name, (stage, work) in works.items():
        if not chosen.only or name in chosen.only:
            measured(name, stage, work)


if __name__ == "__main__":
    main()
