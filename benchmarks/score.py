"""Scoring the trained seed model on one GPU: sliding, and both ways of test-time training.

    python benchmarks/score.py WEIGHTS TOKENIZER TEXT [--targets 786432] [--form sp8192.model]
        [--only sgd ...]

WEIGHTS are 8-bit codes with scales (see seed_model.py) or an artifact (.fwy), TEXT a .jsonl.zst of
documents. Prints seconds, microseconds per token and bpb beside the seed's figures, and, for the
ways that adapt, whether a second run gives the same bits. On a CPU, `--targets 8192` takes minutes.
With `--form` the text is in the usual form of another tokenizer, as in proxy_data.py; a model that
learned such text needs it.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from proxy_data import beginning
from seed_model import load_state
from torch import Tensor

from fairway.api import model_from
from fairway.config.overrides import override
from fairway.config.settings import ModelConfig, RuntimeConfig, ScoreConfig
from fairway.data.sources import read_documents
from fairway.data.tokens import Tokenizer, encode_documents, prove_bytes
from fairway.machine.plan import Plan, make_plan
from fairway.model.gpt import GPT
from fairway.pack.artifact import load_artifact
from fairway.recipes import recipe
from fairway.score.evaluation import Evaluation
from fairway.score.ledger import Score, Text
from fairway.score.lora import evaluate_lora
from fairway.score.sgd import evaluate_sgd
from fairway.score.sliding import evaluate_frozen, text_of

# Microseconds of one GPU per token, as published: 8 H100, 40,540,160 tokens.
PUBLISHED = {"sliding": "18 to 22", "sgd": "50", "lora": "118 at most (600 s on 8 GPUs)"}
VARIANTS = {
    "lora": [],
    "lora, longest first": ["ttt.lora_sort=true"],
    "lora, no q v": ["ttt.lora_targets=k o mlp head"],
    "lora, growing chunks": ["ttt.lora_chunks=8@256 24@2000 48"],
    "lora, wd 0.5 rank 80": ["ttt.lora_wd=0.5", "ttt.lora_rank=80"],
    "lora, 128 side by side": ["ttt.lora_documents=128"],
    "lora, 256 side by side": ["ttt.lora_documents=256"],
    "lora, 2 phases": ["ttt.lora_phases=2"],
    "lora, lr 2e-4": ["ttt.lora_lr=2e-4"],
    "sgd, 3 epochs": ["ttt.epochs=3"],
}


def read_weights(path: Path) -> tuple[dict[str, Tensor], ModelConfig]:
    if path.suffix != ".fwy":
        return load_state(path), ModelConfig()
    artifact = load_artifact(path)
    return artifact.state, artifact.config


def read_text(
    tokenizer: Tokenizer, path: Path, targets: int, form: Path | None = None, after: int = 0
) -> Text:
    """Return the beginning of the documents' stream, whole documents plus the rest of one.

    With `form`, a tokenizer's file, it is the text that its first `targets` targets stand for, or
    those that follow the documents of its first `after` targets.
    """
    if form is not None:
        texts = beginning(form.read_bytes(), path, targets, after)
        ids = encode_documents(tokenizer, texts)
        return text_of(ids, tokenizer.table, prove_bytes(tokenizer, ids))
    texts, count = [], 0
    for document in read_documents([path]):
        texts.append(tokenizer.canonical(document.text))
        count += len(tokenizer.encode(texts[-1])) + 1
        if count > targets + 1:
            break
    ids = encode_documents(tokenizer, texts)
    whole = text_of(ids, tokenizer.table, prove_bytes(tokenizer, ids))
    bytes_ = np.asarray(whole.target_bytes)[:targets]
    return Text(whole.ids[: targets + 1], bytes_, int(bytes_.sum()), whole.vocab_size)


def timed(name: str, targets: int, work: Callable[[], Score]) -> Score:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start_s = time.perf_counter()
    score = work()
    seconds = time.perf_counter() - start_s
    peak = kept = 0.0
    if torch.cuda.is_available():
        peak, kept = (torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved())
    print(
        f"{name:28} {score.bpb:.5f} bpb  {seconds:7.2f} s  {1e6 * seconds / targets:7.2f} us/token"
        f"  rows off by {score.worst_row_error_nats:.2g}  {peak / 2**30:5.1f} GiB"
        f" ({kept / 2**30:.1f} kept)"
        f"  published: {PUBLISHED.get(name, '')}",
        flush=True,
    )
    return score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--targets", type=int, default=786_432)
    parser.add_argument("--form", type=Path)
    parser.add_argument("--only", nargs="*", default=["standard", "sliding", "sgd", "lora"])
    parser.add_argument("--twice", action="store_true", help="repeat what adapts")
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--share", type=float, help="use at most this share of the GPU's memory")
    chosen = parser.parse_args()
    if chosen.share is not None:
        torch.cuda.set_per_process_memory_fraction(chosen.share)
    state, model_config = read_weights(chosen.weights)
    text = read_text(Tokenizer.load(chosen.tokenizer), chosen.text, chosen.targets, chosen.form)
    targets, plan = len(text.ids) - 1, make_plan(RuntimeConfig(attention=chosen.attention))
    plan.apply()
    print(f"torch {torch.__version__}, {plan.describe()}, {targets} targets")
    score = ScoreConfig()

    def fresh(plan: Plan = plan) -> GPT:
        return model_from(state, model_config, plan, True)

    def run(name: str) -> Score:
        if name in ("standard", "sliding"):
            return evaluate_frozen(
                fresh(), Evaluation(text, score, description=name), sliding=name == "sliding"
            )
        if name == "sliding, plain":
            plain = fresh(replace(plan, kernels="plain"))
            return evaluate_frozen(plain, Evaluation(text, score, description=name), sliding=True)
        config = override(recipe("pr1858"), VARIANTS.get(name, [])).ttt
        config = replace(config, method=name[:4].strip(","))
        ways = {"sgd": evaluate_sgd, "lora": evaluate_lora}
        if name.startswith("sgd, plain"):
            plain = fresh(replace(plan, kernels="plain"))
            return evaluate_sgd(plain, Evaluation(text, score, config, description=name))
        return ways[config.method](fresh(), Evaluation(text, score, config, description=name))

    for name in chosen.only:
        first = timed(name, targets, lambda name=name: run(name))
        if chosen.twice and name[:3] in ("sgd", "lor"):
            again = timed(f"{name}, again", targets, lambda name=name: run(name))
            print(f"  the same to the last bit: {again == first}")


if __name__ == "__main__":
    main()
