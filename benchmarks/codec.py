"""Lossless coders on the same codes: bytes, encode and decode seconds.

    python benchmarks/codec.py WEIGHTS.safetensors [--skip NAME ...]

The weights of a trained seed model (8-bit codes and row scales, or float) are rounded at the seed's
steps, without error feedback. Every coder gets the 67 matrices of codes in the order of the
artifact's sections; scales and vectors are coded apart. Seconds are processor seconds of one core,
so that other work on the machine does not count; `lrzip -z` (Debian's package; left out where it is
not installed) runs as a process of its own with one thread.
"""

import argparse
import lzma
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import brotli
import constriction
import numpy as np
import zstandard
from numpy.typing import NDArray
from seed_model import load_state

from fairway.config.settings import ModelConfig, QuantConfig
from fairway.pack.account import order_0_bits
from fairway.pack.codec import shuffle
from fairway.pack.layout import Form, Loaded, SectionSpec, layout, matrices, section_bytes
from fairway.pack.streams import decode_section, encode_section
from fairway.quantise.gptq import QuantisedModel, quantise_model

# Bytes, encode and decode seconds.
Figures = tuple[int, float, float]


def timed(encode: Callable[[], bytes], decode: Callable[[bytes], bytes], raw: bytes) -> Figures:
    start_s = time.process_time()
    stored = encode()
    encoded_s = time.process_time()
    assert decode(stored) == raw
    return len(stored), encoded_s - start_s, time.process_time() - encoded_s


def whole(raw: bytes, name: str) -> Figures:
    """A general compressor on all bytes at once."""
    coders: dict[str, tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]] = {
        "brotli": (lambda d: brotli.compress(d, quality=11, lgwin=24), brotli.decompress),
        "xz": (lambda d: lzma.compress(d, preset=9 | lzma.PRESET_EXTREME), lzma.decompress),
        "zstd": (
            lambda d: zstandard.ZstdCompressor(level=22).compress(d),
            lambda d: zstandard.ZstdDecompressor().decompress(d),
        ),
    }
    encode, decode = coders[name]
    return timed(lambda: encode(raw), decode, raw)


def lrzip(raw: bytes) -> Figures:
    """zpaq of `lrzip -z`, level 9."""
    with tempfile.TemporaryDirectory() as folder:
        file, packed, again = (Path(folder) / name for name in ("raw", "raw.lrz", "again"))
        file.write_bytes(raw)
        used = [_child_s()]
        for command in (
            ["lrzip", "-z", "-L", "9", "-p", "1", "-N", "0", "-q", "-o", packed, file],
            ["lrzip", "-d", "-p", "1", "-q", "-o", again, packed],
        ):
            subprocess.run([str(word) for word in command], check=True)
            used.append(_child_s())
        assert again.read_bytes() == raw
        return packed.stat().st_size, used[1] - used[0], used[2] - used[1]


def _child_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def static(codes: list[NDArray[np.int8]]) -> Figures:
    """constriction's range coder with each matrix's own histogram, counted at 2 bytes a symbol."""
    size, encode_s, decode_s = 0, 0.0, 0.0
    for matrix in codes:
        symbols = matrix.ravel().astype(np.int32) - int(matrix.min())
        counts = np.bincount(symbols)
        model = constriction.stream.model.Categorical(counts / counts.sum(), perfect=False)
        start_s = time.process_time()
        encoder = constriction.stream.queue.RangeEncoder()
        encoder.encode(symbols, model)
        words = encoder.get_compressed()
        encoded_s = time.process_time()
        decoder = constriction.stream.queue.RangeDecoder(words)
        assert np.array_equal(decoder.decode(model, len(symbols)), symbols)
        decode_s += time.process_time() - encoded_s
        encode_s += encoded_s - start_s
        size += 4 * len(words) + 2 * len(counts)
    return size, encode_s, decode_s


def ours(specs: list[SectionSpec], quantised: QuantisedModel, scales: SectionSpec) -> Figures:
    """Fairway's coder, one stream per section."""
    loaded = Loaded()
    loaded.add(scales, section_bytes(scales, quantised), 16, 0)
    total = np.zeros(3)
    for spec in specs:
        raw = section_bytes(spec, quantised)
        row = timed(
            lambda spec=spec: encode_section(spec, quantised),
            lambda data, spec=spec: decode_section(spec, data, 8, 0, loaded),
            raw,
        )
        print(f"    {spec.name}: {row[0]:,} bytes, {row[1]:.1f} s, {row[2]:.1f} s", flush=True)
        total += row
    return int(total[0]), float(total[1]), float(total[2])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("weights", type=Path)
    parser.add_argument("--skip", nargs="*", default=[], help="names of rows to leave out")
    arguments = parser.parse_args()
    quant = QuantConfig(method="round")
    quantised = quantise_model(load_state(arguments.weights), {}, quant)
    *codes, scales, _ = layout(ModelConfig(), quant.min_numel, Form())
    tensors = [tensor.codes.numpy() for spec in codes for tensor in matrices(spec, quantised)]
    by_rows = b"".join(tensor.tobytes() for tensor in tensors)
    by_columns = b"".join(section_bytes(spec, quantised) for spec in codes)
    ideal_bytes = sum(tensor.size * order_0_bits(tensor.ravel()) for tensor in tensors) / 8
    print(
        f"{len(tensors)} matrices, {len(by_rows):,} codes; order-0 entropy {ideal_bytes:,.0f} bytes"
    )
    coders: dict[str, Callable[[], Figures]] = {
        "fairway": lambda: ours(codes, quantised, scales),
        "constriction, static": lambda: static(tensors),
        "brotli-11, rows": lambda: whole(by_rows, "brotli"),
        "brotli-11, rows, shuffled": lambda: whole(shuffle(by_rows, 2), "brotli"),
        "brotli-11, columns": lambda: whole(by_columns, "brotli"),
        "xz -9e, columns": lambda: whole(by_columns, "xz"),
        "zstd-22, columns": lambda: whole(by_columns, "zstd"),
        "fairway, scales": lambda: ours([scales], quantised, scales),
    }
    if shutil.which("lrzip"):
        coders["lrzip -z, columns"] = lambda: lrzip(by_columns)
    for name, coder in coders.items():
        if name not in arguments.skip:
            size, encode_s, decode_s = coder()
            print(f"{name}: {size:,} bytes, {encode_s:.1f} s, {decode_s:.1f} s", flush=True)


if __name__ == "__main__":
    main()
