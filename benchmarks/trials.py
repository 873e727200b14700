"""Small trainings side by side, each driven by steps, and what each scores.

Used by `law.py` and `plan_check.py`. A trial is a list of settings over a recipe; what comes back
is its settings with bits per byte, tokens and seconds. As many processes as asked for take trials
in the order given, each with its own cores or its own GPU. A trial that would not end in time, by
the speed of its process so far, is left out and counted.

The record is a file of JSON lines, facts first. Every trial that ends is added at once, and a later
call with the same file takes only the trials that it lacks.
"""

import functools
import json
import multiprocessing
import os
import queue
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

Trial = dict[str, Any]
# What a process is allowed beyond the time asked for, before it is ended.
GRACE_S = 20.0
# What a thread computes per second, until a process has measured its own.
GUESSED_FLOPS, GUESSED_GPU_FLOPS = 5e10, 2e14
# A trial may take so much longer than the one before it, by their costs.
MARGIN = 1.15


def build_folders(documents: Path | None, out: Path, sizes: list[int]) -> dict[int, Path]:
    """Write a data folder per size of vocabulary, where there is none yet.

    Each document says whether it is scored.
    """
    folders = {size: out / str(size) for size in sizes}
    missing = [(documents, folder, size) for size, folder in folders.items() if not folder.is_dir()]
    if missing and documents is None:
        raise SystemExit(f"no folder {missing[0][1]}: name the text with --documents")
    if missing:
        with multiprocessing.get_context("spawn").Pool(len(missing)) as pool:
            pool.starmap(_build, missing, chunksize=1)
    return folders


def _build(documents: Path, out: Path, size: int) -> Path:
    import zstandard

    from fairway.data import parallel
    from fairway.data.build import build_data
    from fairway.data.documents import Document
    from fairway.recipes import recipe

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
        val_documents=sides["val"], replace=True, case_ops=recipe("demo").data.case_ops,
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
        for side, texts in (("train", source.last_train_documents()), ("val", val))
        for n, text in enumerate(texts)
    ]
    out.write_bytes(zstandard.ZstdCompressor(19).compress("\n".join(lines).encode()))


def measure(trial: Trial, base: str, folders: dict[int, Path], device: str) -> Trial:
    """Train one trial by steps and return it with what its averaged weights score."""
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

    source = DataFolder.open(folders[int(trial.get("model.vocab_size", next(iter(folders))))])
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
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(training.average.average[name])
    evaluation = Evaluation(scored, config.score)
    score = evaluate_frozen(model, evaluation, sliding=device == "cpu")
    del training, model
    give_back()
    return {
        **trial, "ema": score.bpb, "parameters": num_parameters(config.model), "seconds": seconds,
        "whole_s": time.perf_counter() - start_s, "train_bytes": source.facts()["train_bytes"],
        "train_tokens": sum(len(shard) for shard in text.shards), "plan": plan.describe(),
        "case_ops": source.tokenizer.case_ops,
        "val_bytes": validation.bytes, "val_targets": len(validation.ids) - 1,
    }  # fmt: skip


@functools.lru_cache(maxsize=4)
def _plan(runtime: Any) -> Any:
    from fairway.machine.plan import make_plan

    return make_plan(runtime)


def _end_with_parent() -> None:
    """End this process when the one that started it does, however that ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _serve(
    number: int, threads: int, base: str, folders: dict[int, Path], device: str,
    asked: Any, answers: Any, end_s: float,
) -> None:  # fmt: skip
    _end_with_parent()
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
        if time.time() + beside_s + MARGIN * cost * pace > end_s:
            answers.put({"left_out": trial})
            continue
        try:
            found = measure({"runtime.threads": threads, **trial}, base, folders, device)
            pace, beside_s = found["seconds"] / cost, found["whole_s"] - found["seconds"]
            answers.put({**found, "cost": cost})
        except Exception as error:
            answers.put({"failed": trial, "why": repr(error)[:300]})
    answers.put(None)


def read_rows(file: Path) -> tuple[dict[str, Any], list[Trial]]:
    """Return what a record says of its trials, and those that ended.

    A line that is cut off, as the last one of a killed process may be, is passed over.
    """
    lines = []
    for line in file.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines[0], [row for row in lines[1:] if "ema" in row]


def _lacking(trials: list[tuple[Trial, float]], done: list[Trial]) -> list[tuple[Trial, float]]:
    """Return the trials that no row of a record has all settings of."""
    found = []
    for trial, cost in trials:
        same = (all(row.get(name) == value for name, value in trial.items()) for row in done)
        if not any(same):
            found.append((trial, cost))
    return found


def _warm(trial: Trial, base: str, folders: dict[int, Path], device: str) -> None:
    """Take two steps of a trial in a process: what numba compiles is on disk for the others."""
    few = {**trial, "train.steps": 2, "data.val_bytes": 2000}
    spawn = multiprocessing.get_context("spawn")
    first = spawn.Process(target=measure, args=(few, base, folders, device), daemon=True)
    first.start()
    first.join()


def run_all(
    trials: list[tuple[Trial, float]], base: str, folders: dict[int, Path],
    processes: int, threads: int, end_s: float, out: Path, facts: dict[str, Any],
    device: str = "cpu",
) -> None:  # fmt: skip
    """Run trials, given with their relative costs, until a time; add to `out` what comes back."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)
    if out.exists():
        trials = _lacking(trials, read_rows(out)[1])
    else:
        out.write_text(json.dumps(facts) + "\n")
    if not trials:
        return
    _warm({"runtime.threads": threads, **trials[0][0]}, base, folders, device)
    print(f"{len(trials)} trials to run", flush=True)
    spawn = multiprocessing.get_context("spawn")
    asked, answers = spawn.Queue(), spawn.Queue()
    for item in trials:
        asked.put(item)
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
    with out.open("a") as record:
        _collect(answers, len(workers), end_s + GRACE_S, record)
    for worker in workers:
        worker.kill()
        worker.join()


def _collect(answers: Any, working: int, end_s: float, record: Any) -> None:
    """Write every answer as it comes, until all processes have ended or the time is over."""
    left_out = ended = 0
    # What was cut off before stays a line of its own.
    record.write("\n")
    while working and time.time() < end_s:
        try:
            answer = answers.get(timeout=1.0)
        except queue.Empty:
            continue
        if answer is None:
            working -= 1
        elif "left_out" in answer:
            left_out += 1
        else:
            ended += 1
            record.write(json.dumps(answer) + "\n")
            record.flush()
            print(ended, _told(answer), flush=True)
    print(f"{ended} ended, {left_out} left out, {working} cut off", flush=True)


def _told(answer: Trial) -> str:
    if "why" in answer:
        return str(answer["why"])
    return f"{answer['ema']:.4f} bpb, {answer['seconds']:.0f} of {answer['whole_s']:.0f} s"
