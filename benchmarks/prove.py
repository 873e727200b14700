"""Compression with a model, both ways: seconds by part, speed, ratio, the walk beside the scorer.

    python benchmarks/prove.py ARTIFACT TEXT [--bytes 1e6] [--streams N] [--dtype float32] [--parts]

TEXT is any file; its first bytes are coded as `fairway compress` codes them, then decoded by a
session of their own and compared. `--parts` codes once more with a wait for the device around every
part, so that seconds can be told apart; the totals above it are without. `--unrecorded` launches
single tokens one operation at a time instead of replaying CUDA graphs.
"""

import argparse
import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fairway.base.timing import settle
from fairway.base.units import nats_to_bits
from fairway.config.settings import RuntimeConfig
from fairway.data.pieces import Packer
from fairway.model.cache import Cache, Single
from fairway.prove import walk
from fairway.prove.archive import decompress, header_of
from fairway.prove.coder import Decoder, Encoder
from fairway.prove.coding import Session, Sliding, open_session
from fairway.prove.container import ARCHIVE, coded_file, open_coded, open_file
from fairway.prove.machine import coding_plan
from fairway.score.evaluation import Evaluation
from fairway.score.ledger import Text
from fairway.score.sliding import evaluate_frozen

SCORED = 4


class Parts:
    """Seconds by name, and calls."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        settle()
        start_s = time.perf_counter()
        yield
        settle()
        self.seconds[name] += time.perf_counter() - start_s
        self.calls[name] += 1

    def watch(self, owner: Any, method: str, name: Callable[..., str]) -> None:
        """Time a method, or a module's function, from now on."""
        plain = getattr(owner, method)

        @functools.wraps(plain)
        def timed(*arguments: Any) -> Any:
            with self.part(name(*arguments)):
                return plain(*arguments)

        setattr(owner, method, timed)

    def report(self, total_s: float) -> None:
        for name, seconds in self.seconds.items():
            calls = self.calls[name]
            print(f"  {name:28} {seconds:8.2f} s  {calls:7} x {1e3 * seconds / calls:8.3f} ms")
        rest_s = total_s - sum(self.seconds.values())
        print(f"  {'the rest of the walk':28} {rest_s:8.2f} s", flush=True)


def watch_all(parts: Parts) -> None:
    parts.watch(
        Cache,
        "last",
        lambda cache, ids_ST: "single tokens" if ids_ST.shape[1] == 1 else "windows read anew",
    )
    parts.watch(walk.Frozen, "logits", lambda *a: "logits")
    parts.watch(walk, "shares_of", lambda *a: "frequencies")
    parts.watch(walk.Coded, "_fetched", lambda *a: "shares to the host")
    parts.watch(Encoder, "encode_all", lambda *a: "range coder, writing")
    parts.watch(Decoder, "decode_rows", lambda *a: "range coder, reading")


def scorer_nats(session: Session, stream: np.ndarray, packer: Packer) -> float:
    """Return what the scorer's batched windows make of a stream."""
    language = session.language
    score = replace(language.score_config, truncate=False, check_positions=0)
    lengths = np.array([len(packer.unpack(stream[n : n + 1])) for n in range(len(stream))])
    ids = np.insert(stream, 0, language.tokenizer.bos_id)
    text = Text(ids, lengths, int(lengths.sum()), language.tokenizer.vocab_size)
    return evaluate_frozen(
        language.model, Evaluation(text, score, description="scoring"), sliding=True
    ).nats


def memory() -> str:
    if not torch.cuda.is_available():
        return ""
    return f", at most {torch.cuda.max_memory_allocated() / 1e9:.1f} GB on the device"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("artifact", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--bytes", type=float, default=1e6)
    parser.add_argument("--streams", type=int)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--parts", action="store_true")
    parser.add_argument("--unrecorded", action="store_true")
    arguments = parser.parse_args()
    if arguments.unrecorded:
        Single.read = lambda self, cache, ids_S1: cache._states(ids_S1, slice(None))  # type: ignore
    data = arguments.text.read_bytes()[: int(arguments.bytes)]
    parts = Parts()
    with parts.part("loading"):
        runtime = RuntimeConfig(dtype=arguments.dtype, attention=arguments.attention)
        session = open_session(arguments.artifact, None, coding_plan(runtime, exact=False))
    print(f"torch {torch.__version__}, {session.plan.describe()}")
    with parts.part("bytes to tokens"):
        packer = Packer(session.language.tokenizer)
        ids = packer.pack(data)
    count = arguments.streams or session.streams(len(ids), 16)
    streams = np.array_split(ids, min(count, len(ids)))
    with parts.part("fingerprint"):
        session.fingerprint(len(streams))
    parts.report(sum(parts.seconds.values()))
    code(session, data, streams, arguments, packer)


def code(
    session: Session,
    data: bytes,
    streams: list[np.ndarray],
    arguments: argparse.Namespace,
    packer: Packer,
) -> None:
    start_s = time.perf_counter()
    payload, walked = session.encode(streams, len(streams), Sliding())
    encode_s = time.perf_counter() - start_s
    longest = max(map(len, streams))
    print(
        f"{len(data):,} bytes, {sum(map(len, streams)):,} tokens, {len(streams)} streams of at "
        f"most {longest}: {len(payload):,} bytes, {len(payload) / len(data):.4f}{memory()}"
    )
    print(f"coding    {encode_s:8.2f} s  {len(data) / encode_s / 1e3:8.1f} kB/s", flush=True)
    ours = sum(float(nats.sum()) for nats in walked.nats[:SCORED])
    theirs = sum(scorer_nats(session, stream, packer) for stream in streams[:SCORED])
    print(f"the walk costs {ours / theirs - 1:+.2e} of the scorer's windows", flush=True)
    rounding_bits = walked.frequency_bits - nats_to_bits(sum(float(n.sum()) for n in walked.nats))
    print(f"whole numbers cost {rounding_bits:+.3f} bits of {walked.frequency_bits:,.0f}")
    decode(session, data, streams, arguments, payload)
    if arguments.parts:
        parts = Parts()
        watch_all(parts)
        start_s = time.perf_counter()
        again, _ = session.encode(streams, len(streams), Sliding())
        print(f"coding, by parts; the same bytes: {again == payload}")
        parts.report(time.perf_counter() - start_s)
        parts.seconds.clear(), parts.calls.clear()
        start_s = time.perf_counter()
        decode(session, data, streams, arguments, payload)
        parts.report(time.perf_counter() - start_s)


def decode(
    session: Session,
    data: bytes,
    streams: list[np.ndarray],
    arguments: argparse.Namespace,
    payload: bytes,
) -> None:
    """Decode as `decompress` does, and compare."""
    header = header_of(session, data, streams)
    file = coded_file(ARCHIVE, header, payload)
    assert open_coded(open_file(file)[1])[0] == header
    start_s = time.perf_counter()
    restored = decompress(file, arguments.artifact, None)
    seconds = time.perf_counter() - start_s
    print(f"decoding  {seconds:8.2f} s  {len(data) / seconds / 1e3:8.1f} kB/s, loading included")
    print(f"equal: {restored == data}; the file has {len(file):,} bytes", flush=True)
    assert restored == data


if __name__ == "__main__":
    main()
