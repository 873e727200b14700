"""PPM on one core: bytes per second and memory for every order, and what the normaliser costs.

    python benchmarks/ppm.py TEXT [TEXT ...] [--bytes 8e6] [--orders 0 2 3 5 8] [--plain 200000]
                             [--tokenizer sp8192.model] [--skip-c]

TEXTs are any that `fairway data build` reads, joined. Printed for every order: Fairway's loop
(method C without exclusion, as published, and D with it), a straightforward scorer in C (hash
tables per order, compiled with gcc -O2 where there is one), and the pure-Python reference on the
first bytes. With a tokenizer: the valid mixture with its normaliser, under a fixed distribution
over tokens, so that the loops alone are timed. Seconds are those of the process, which other
processes disturb less.
"""

import argparse
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fairway.config.settings import MixtureConfig
from fairway.data.sources import read_documents
from fairway.data.tokens import Tokenizer
from fairway.score.experts import mixing, ppm
from fairway.score.experts.mixture import experts_of, planned_for
from fairway.score.experts.trie import Tries, token_strings

# Method C without exclusion: one open-addressing table per order for contexts, one for followers.
C_SOURCE = r"""
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
typedef struct { uint64_t key; uint32_t total, distinct, top; } Context;
typedef struct { uint64_t key; uint32_t count; } Follower;
static uint64_t mix(uint64_t x) {
    x ^= x >> 31; x *= 0x9E3779B97F4A7C15ull; x ^= x >> 29; return x;
}
static Context *context(Context *t, uint64_t mask, uint64_t key) {
    uint64_t at = mix(key) & mask;
    while (t[at].key && t[at].key != key) at = (at + 1) & mask;
    return &t[at];
}
static Follower *follower(Follower *t, uint64_t mask, uint64_t key) {
    uint64_t at = mix(key) & mask;
    while (t[at].key && t[at].key != key) at = (at + 1) & mask;
    return &t[at];
}
int main(int argc, char **argv) {
    int order = atoi(argv[2]), bits = atoi(argv[3]);
    uint64_t size = 1ull << bits, mask = size - 1;
    FILE *f = fopen(argv[1], "rb");
    fseek(f, 0, SEEK_END); long n = ftell(f); rewind(f);
    uint8_t *data = malloc(n);
    if (fread(data, 1, n, f) != (size_t)n) return 1;
    Context *contexts[9]; Follower *followers[9];
    for (int k = 0; k <= order; k++) {
        contexts[k] = calloc(size, sizeof(Context));
        followers[k] = calloc(size, sizeof(Follower));
    }
    clock_t start = clock();
    uint64_t history = 0; double bits_sum = 0;
    for (long i = 0; i < n; i++) {
        uint8_t b = data[i];
        int deepest = i < order ? (int)i : order, done = 0;
        double p = 1;
        for (int k = deepest; k >= 0 && !done; k--) {
            uint64_t h = (k ? history & (~0ull >> (64 - 8 * k)) : 0) + 1;
            Context *c = context(contexts[k], mask, h);
            if (!c->key) continue;
            Follower *s = follower(followers[k], mask, mix(h) + b + 1);
            double den = c->total + c->distinct;
            if (s->key) { p *= s->count / den; done = 1; } else p *= c->distinct / den;
        }
        bits_sum -= log2(done ? p : p / 256);
        for (int k = 0; k <= deepest; k++) {
            uint64_t h = (k ? history & (~0ull >> (64 - 8 * k)) : 0) + 1;
            Context *c = context(contexts[k], mask, h);
            Follower *s = follower(followers[k], mask, mix(h) + b + 1);
            c->key = h;
            if (!s->key) { s->key = mix(h) + b + 1; c->distinct++; }
            s->count++; c->total++;
            if (s->count > c->top) c->top = s->count;
        }
        history = history << 8 | b;
    }
    printf("%.6f %.6f\n", (double)(clock() - start) / CLOCKS_PER_SEC, bits_sum / n);
    return 0;
}
"""


def cpu_seconds(work: Callable[[], object]) -> float:
    start_s = time.process_time()
    work()
    return time.process_time() - start_s


def run_ours(data: np.ndarray, order: int, method: str, exclusion: bool) -> tuple[float, ...]:
    words = ppm.tables(order, method, exclusion, *ppm.room_for(len(data), order, 8_000_000_000))
    share, confidence = np.empty(1 << 20), np.empty(1 << 20)
    past, nats, seconds = np.zeros(3, np.int64), 0.0, 0.0
    for first in range(0, len(data), 1 << 20):
        part = data[first : first + (1 << 20)]
        seconds += cpu_seconds(
            lambda part=part: ppm.score_bytes(
                words, part, ppm.ALL_BYTES, past, share[: len(part)], confidence[: len(part)]
            )
        )
        nats -= float(np.log(share[: len(part)]).sum())
    found = ppm.room(words)
    if found.forgone:
        print(f"    {found.forgone} things were not learned for lack of room")
    return seconds, nats / np.log(2) / len(data), found.bytes / 1e9, found.lines_used


def run_plain(data: bytes, order: int) -> float:
    reference = ppm.PlainPpm(order, "C", False)

    def work() -> None:
        for n in range(len(data)):
            history = data[max(0, n - 8) : n]
            reference.predict(history)[0][data[n]]
            reference.learn(history, data[n])

    return cpu_seconds(work)


def run_c(program: Path, data: Path, order: int, size: int) -> tuple[float, float]:
    # Room for the followers of the longest contexts; random bytes would need more.
    bits = min(25, max(12, (4 * size // 10).bit_length()))
    told = subprocess.run(
        [program, data, str(order), str(bits)], capture_output=True, text=True, check=True
    )
    seconds, bpb = told.stdout.split()
    return float(seconds), float(bpb)


def run_mixture(data: bytes, words: Tokenizer, config: MixtureConfig) -> None:
    """Time the loops on the text's tokens, the model's masses being those of token frequencies."""
    parts = [
        words.encode(data[first : first + 1_000_000].decode(errors="ignore"))
        for first in range(0, len(data), 1_000_000)
    ]
    tokens = np.concatenate(parts)
    counts = np.bincount(tokens, minlength=words.vocab_size) + 1.0
    probs = counts / counts.sum()
    tries = Tries(token_strings(words))
    trie = tries.trie
    mass = np.zeros((2, len(trie.parent)))
    for after in (0, 1):
        last = int(trie.root[1]) if after == 0 else len(trie.parent)
        mixing.sum_tree(probs, trie.node[after], trie.root[after], last, trie.parent, mass)
    state = experts_of(config, len(trie.parent), len(data))
    seconds = nats = 0.0
    size = 0
    for first in range(0, len(tokens), 8192):
        part = tokens[first : first + 8192]
        after = np.zeros(len(part), np.int64)
        planned = planned_for(len(part), int(trie.depth[0]))
        hints = mixing.Hints(np.full(len(part), -1), np.zeros(len(part)))
        out = np.empty(len(part))

        def work(
            part: np.ndarray = part,
            after: np.ndarray = after,
            planned: mixing.Planned = planned,
            hints: mixing.Hints = hints,
            out: np.ndarray = out,
        ) -> None:
            wanted = mixing.plan(
                state, trie, part, after,
                planned.nodes, planned.starts, planned.depths, planned.follow,
            )  # fmt: skip
            nodes = planned.nodes[:wanted]
            whole = planned._replace(ends=mass[0][nodes], inner=mass[1][nodes])
            own = probs[part]
            mixing.mix(state, trie, part, after, own, hints, own, whole, out)

        if first == 0:
            # The first batch also compiles; it is left out of the time.
            work()
        else:
            seconds += cpu_seconds(work)
            size += int(planned.depths.sum())
        nats += out.sum()
    found = ppm.room(state.words)
    print(
        f"  mixture of {config.experts}, variant {config.variant}: "
        f"{size / seconds / 1e6:.2f} MB/s, {1e6 * seconds / len(tokens):.2f} us per token, "
        f"{nats / len(tokens):.4f} nats per token (the model alone "
        f"{-np.log(probs[tokens]).mean():.4f}); tables {found.bytes / 1e9:.2f} GB, peak "
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("texts", type=Path, nargs="+")
    parser.add_argument("--bytes", type=float, default=8e6)
    parser.add_argument("--orders", type=int, nargs="*", default=list(range(9)))
    parser.add_argument("--plain", type=int, default=200_000)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--best", type=int, default=1, help="take the fastest of so many")
    parser.add_argument("--skip-c", action="store_true")
    chosen = parser.parse_args()
    joined = bytearray()
    for document in read_documents(chosen.texts):
        joined += document.text.encode() + b"\n"
        if len(joined) >= chosen.bytes:
            break
    data = np.frombuffer(bytes(joined[: int(chosen.bytes)]), np.uint8)
    print(f"{len(data):,} bytes")
    run_ours(data[:1000], 5, "C", False)
    with tempfile.TemporaryDirectory() as folder:
        program, file = Path(folder) / "ppm", Path(folder) / "data"
        compiler = None if chosen.skip_c else shutil.which("gcc")
        if compiler:
            data.tofile(file)
            (Path(folder) / "ppm.c").write_text(C_SOURCE)
            subprocess.run([compiler, "-O2", "-o", program, f"{program}.c", "-lm"], check=True)
        for order in chosen.orders:
            line = f"order {order}:"
            for method, exclusion in (("C", False), ("D", True)):
                seconds, bpb, table_gb, lines = min(
                    run_ours(data, order, method, exclusion) for _ in range(chosen.best)
                )
                kind = f"{method}{' with exclusion' if exclusion else ''}"
                line += f"  {kind} {len(data) / seconds / 1e6:.2f} MB/s, {bpb:.4f} bpb;"
            line += f"  {lines:,} lines, tables {table_gb:.2f} GB"
            if compiler:
                seconds, bpb = min(
                    run_c(program, file, order, len(data)) for _ in range(chosen.best)
                )
                line += f";  C by gcc {len(data) / seconds / 1e6:.2f} MB/s, {bpb:.4f} bpb"
            if chosen.plain:
                seconds = run_plain(data[: chosen.plain].tobytes(), order)
                line += f";  Python {chosen.plain / seconds / 1e6:.3f} MB/s"
            print(line, flush=True)
    if chosen.tokenizer:
        words = Tokenizer.load(chosen.tokenizer)
        for change in (
            {"experts": "ppm", "weights": "fixed"},
            {"experts": "ppm"},
            {"experts": "ppm", "variant": "B"},
            {"experts": "ppm match"},
        ):
            run_mixture(data.tobytes(), words, MixtureConfig(memory_mb=8000, **change))


if __name__ == "__main__":
    main()
