"""Small trainings side by side, each driven by steps, and what each scores.

Used by `law.py` and `plan_check.py`. A trial is a list of settings over a recipe; what comes back
is its settings with bits per byte, tokens and seconds. As many processes as asked for take trials
in the order given, each with its own cores or its own GPU. A trial that would not end in time, by
the speed of its process so far, is left out and counted.
"""

import functools
import json
import multiprocessing
import os
import queue
import tempfile
import time
from pathlib import Path
from typing import Any

Trial = dict[str, Any]
# What a process is allowed beyond the time asked for, before it is ended.
GRACE_S = 20.0
# What a thread computes per second, until a process has measured its own.
GUESSED_FLOPS, GUESSED_GPU_FLOPS = 3e10, 2e14


def build_folders(documents: Path, out: Path, sizes: list[int]) -> dict[int, Path]:
    """Write a data folder per size of vocabulary, and compile the loops of a step meanwhile.

    Each document says whether it is scored.
    """
    jobs = [(documents, out / str(size), size) for size in sizes]
    with multiprocessing.get_context("spawn").Pool(len(sizes) + 2) as pool:
        warm = pool.map_async(_warm, ("float32", "bfloat16"), chunksize=1)
        folders = pool.starmap(_build, jobs, chunksize=1)
        warm.wait()
    return dict(zip(sizes, folders, strict=True))


def _warm(dtype: str) -> None:
    """Take one step in a dtype: what numba compiles is kept on disk for the other processes."""
    import torch

    from fairway.machine.plan import DTYPES
    from fairway.model.gpt import build
    from fairway.model.paths import prepare
    from fairway.recipes import recipe
    from fairway.train.muon import Optimisers

    config = recipe("demo")
    model = build(config.model, 0)
    prepare(model, DTYPES[dtype], "plain", "plain")
    optimisers = Optimisers(model, config.optim)
    ids_BT = torch.zeros(2, 257, dtype=torch.long)
    torch.autograd.backward(model(ids_BT[:, :-1], ids_BT[:, 1:]))
    optimisers.step(0.0, 0)


def _build(documents: Path, out: Path, size: int) -> Path:
    import zstandard

    from fairway.data import parallel
    from fairway.data.build import build_data
    from fairway.data.documents import Document

    # A process of a pool may start none itself.
    parallel.processes = lambda: 1
    text = zstandard.ZstdDecompressor().decompress(documents.read_bytes(), max_output_size=1 << 28)
    rows = [json.loads(line) for line in text.splitlines()]
    sides = {
        name: [Document(r["name"], r["text"]) for r in rows if r["side"] == name]
        for name in ("train", "val")
    }
    build_data(
        sides["train"], out, vocab_size=size, val_share=0.0, shard_tokens=1_000_000,
        val_documents=sides["val"], replace=True,
    )  # fmt: skip
    return out


def save_documents(folder: Path, out: Path) -> None:
    """Write the documents of a data folder, training and validation, as one compressed file."""
    import zstandard

    from fairway.data.folder import DataFolder
    from fairway.data.tokens import decode_documents

    source = DataFolder.open(folder)
    val = decode_documents(source.tokenizer, source.val_tokens())
    lines = [
        json.dumps({"side": side, "name": f"{side}/{n}", "text": text}, ensure_ascii=False)
        for side, texts in (("train", source.train_documents()), ("val", val))
        for n, text in enumerate(texts)
    ]
    out.write_bytes(zstandard.ZstdCompressor(19).compress("\n".join(lines).encode()))


def measure(trial: Trial, base: str, folder: Path, device: str) -> Trial:
    """Train one trial by steps and return it with what it scored: raw, averaged, sliding."""
    import torch

    from fairway.base.memory import give_back
    from fairway.config.overrides import override
    from fairway.machine.ranks import Ranks
    from fairway.model.gpt import num_parameters
    from fairway.recipes import recipe
    from fairway.score.evaluation import Evaluation
    from fairway.score.sliding import evaluate_frozen, text_of
    from fairway.train.loop import TrainingText, train

    settings = {"train.clock": "steps", "train.warmup_steps": 1, "train.checkpoint_every_s": 0.0}
    settings |= {"optim.ema_decay": "none", "runtime.device": device}
    settings |= {name: value for name, value in trial.items() if "." in name or name == "seed"}
    config = override(recipe(base), [f"{name}={value}" for name, value in settings.items()])
    from fairway.data.folder import DataFolder

    source = DataFolder.open(folder)
    plan = _plan(config.runtime)
    plan.apply()
    text = TrainingText(source.train_shards(), source.bytes_per_token)
    start_s = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        training = train(
            config, plan, Ranks(), text, Path(place), lambda model: 0, lambda line: None
        )
    seconds = training.clock.seconds()
    data = config.data
    validation = source.sample_validation(data.val_bytes, data.val_tokens)
    scored = text_of(validation.ids, source.tokenizer.table, validation.bytes)
    model = training.model
    found: dict[str, float] = {}
    for weights in ("raw", "ema"):
        if weights == "ema":
            with torch.no_grad():
                for name, weight in model.named_parameters():
                    weight.copy_(training.average.average[name])
        score = evaluate_frozen(
            model, Evaluation(scored, config.score), sliding=weights == "ema" and device == "cpu"
        )
        found[weights] = score.bpb
    del training, model
    give_back()
    return {
        **trial, **found, "parameters": num_parameters(config.model), "seconds": seconds,
        "whole_s": time.perf_counter() - start_s, "train_bytes": source.facts()["train_bytes"],
        "train_tokens": sum(len(shard) for shard in text.shards), "plan": plan.describe(),
        "val_bytes": validation.bytes, "val_targets": len(validation.ids) - 1,
    }  # fmt: skip


@functools.lru_cache(maxsize=4)
def _plan(runtime: Any) -> Any:
    from fairway.machine.plan import make_plan

    return make_plan(runtime)


def _serve(
    number: int, threads: int, base: str, folders: dict[int, Path], device: str,
    asked: Any, answers: Any, end_s: float,
) -> None:  # fmt: skip
    cores = sorted(os.sched_getaffinity(0))
    own = [cores[(number * threads + n) % len(cores)] for n in range(threads)]
    if device == "cpu":
        os.sched_setaffinity(0, own)
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(number)
    pace = 1.0 / (GUESSED_FLOPS * threads) if device == "cpu" else 1.0 / GUESSED_GPU_FLOPS
    beside_s = 5.0
    while True:
        try:
            trial, cost = asked.get(timeout=2.0)
        except queue.Empty:
            break
        if time.time() + beside_s + cost * pace > end_s:
            answers.put({"left_out": trial})
            continue
        try:
            folder = folders[int(trial.get("model.vocab_size", next(iter(folders))))]
            found = measure({"runtime.threads": threads, **trial}, base, folder, device)
            pace, beside_s = found["seconds"] / cost, found["whole_s"] - found["seconds"]
            answers.put({**found, "cost": cost})
        except Exception as error:
            answers.put({"failed": trial, "why": repr(error)[:300]})
    answers.put(None)


def run_all(
    trials: list[tuple[Trial, float]], base: str, folders: dict[int, Path],
    processes: int, threads: int, seconds: float, out: Path, facts: dict[str, Any],
    device: str = "cpu",
) -> list[Trial]:  # fmt: skip
    """Run trials, given with their relative costs, and write all that came back to `out`."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    spawn = multiprocessing.get_context("spawn")
    asked, answers = spawn.Queue(), spawn.Queue()
    for item in trials:
        asked.put(item)
    end_s = time.time() + seconds
    workers = [
        spawn.Process(
            target=_serve,
            args=(n, threads, base, folders, device, asked, answers, end_s),
            daemon=True,
        )
        for n in range(processes)
    ]
    for worker in workers:
        worker.start()
    found: list[Trial] = []
    working, left_out, written_s = len(workers), 0, 0.0
    while working and time.time() < end_s + GRACE_S:
        try:
            answer = answers.get(timeout=1.0)
        except queue.Empty:
            continue
        if answer is None:
            working -= 1
            continue
        if "left_out" in answer:
            left_out += 1
            continue
        found.append(answer)
        if "why" in answer:
            print(answer["why"], flush=True)
        else:
            told = f"{answer['ema']:.4f} bpb, {answer['seconds']:.0f} of {answer['whole_s']:.0f} s"
            print(len(found), told, flush=True)
        if time.time() > written_s + 5.0:
            out.write_text(json.dumps({**facts, "left_out": left_out, "trials": found}))
            written_s = time.time()
    for worker in workers:
        worker.terminate()
    out.write_text(json.dumps({**facts, "left_out": left_out, "trials": found}))
    return found
