"""Results of a run that exists nowhere, and its page as a reader sees it."""

import functools
import json
import math
import tempfile
from html.parser import HTMLParser
from pathlib import Path

from fairway.report import write_report


def stage(bpb: float) -> dict:
    return {
        "bpb": bpb,
        "nats_per_token": 3.1415926535,
        "tokens": 37_122,
        "bytes": 128_004,
        "checked_positions": 64,
        "worst_sum_error": 3.14e-7,
        "seconds": 6.25,
    }


def spending(bpb: float) -> dict:
    """Two groups in every division of a score."""
    bits = 128_004 * bpb
    groups = [
        {"name": name, "tokens": tokens, "bytes": 64_002, "bits": share * bits}
        for name, tokens, share in (("common", 30_000, 0.25), ("rare", 7_122, 0.75))
    ]
    kinds = [{**group, "examples": ["\u2423the", "<b>"]} for group in groups]
    dearest = [{"token": "<i>", "tokens": 12, "bytes": 36, "bits": 300.0}]
    same = dict.fromkeys(("frequency", "place", "context"), groups)
    return {"kinds": kinds, **same, "dearest": dearest}


def tool(bpb: float, primed: float) -> dict:
    return {
        "bytes": 37_001,
        "bpb": bpb,
        "primed_bytes": 33_002,
        "primed_bpb": primed,
        "primed_with_bytes": 3_000_000,
        "seconds": 4.5,
        "how": "as <b>hard</b> as it can",
    }


def role(shift: float) -> dict:
    return {
        "tensors": 3,
        "weights": 98_304,
        "rows": 384,
        "constant_rows": 0,
        "row_kurtosis": 2.961 + shift,
        "coded_weights": 98_304,
        "code_entropy_bits": 3.342 + shift,
        "zero_mass": 0.1609 + shift,
        "unrounded_void_fraction": 0.5752 + shift,
    }


def example_results() -> dict:
    return {
        "schema": 1,
        "recipe": "demo",
        "recipe_hash": "0123456789abcdef",
        "seed": 42,
        "config": {"seed": 42, "model": {"dim": 256, "leak": 0.5}, "train": {"clock": "wall"}},
        "versions": {"fairway": "0.1.0", "torch": "2.13.0"},
        "machine": {"device": "cpu", "dtype": "bfloat16", "matmul": "highest", "threads": 2},
        "text": {
            "bytes": 128_004,
            "tokens": 37_122,
            "documents": 61,
            "digest": "ab" * 32,
            "train_bytes": 9_812_345,
            "train_tokens": 2_934_112,
            "train_documents": 1532,
            "data_digest": "cd" * 32,
        },
        "model": {"parameters": 4_212_736},
        "train": {
            "steps": 80,
            "tokens": 655_360,
            "seconds": 192.34,
            "tokens_per_s": 3407.3,
            "final_loss": 2.71828,
        },
        "headline": "sliding",
        "stages": {
            "raw": stage(2.01412),
            "ema": stage(2.00874),
            "quantised": stage(2.01236),
            "sliding": {**stage(1.98717), "spending": spending(1.98717)},
        },
        "artifact": {
            "bytes": 812_004,
            "digest": "ef" * 32,
            "limit_bytes": 16_000_000,
            "code_bytes": 1000,
            "code": "measured",
            "sections": [{"name": "header", "bytes": 2004}, {"name": "codes", "bytes": 810_000}],
        },
        "baselines": {
            "xz": tool(2.35123, 2.12345),
            "brotli": tool(2.26414, 2.14012),
            "zstd": tool(2.39127, 2.13101),
        },
        "weights": {
            "roles": {"attn.c_q": role(0.0), "mlp.fc": role(0.01)},
            "pooled": role(0.005),
            "void_fraction_gaussian": 0.57506,
            "void_fractions": {"average": 0.5781, "artifact": 0.5057},
            "meanings": {
                "row_kurtosis": "the fourth moment",
                "unrounded_void_fraction": "a share",
            },
        },
        "seconds": {"data": 14.2, "train": 192.34, "total": 210.0},
        "proof": {
            "method": "lora",
            "streams": 8,
            "tokens": 2_217,
            "bytes": 7_998,
            "coded_bytes": 1_401,
            "file_bytes": 1_911,
            "bpb": 1.40135,
            "ledger_bpb": 1.40021,
            "difference_share": 0.000812,
            "frequency_bits": 0.0421,
            "code_s": 18.75,
            "decode_s": 24.25,
            "equal": True,
        },
        "samples": [{"prompt": "The function", "text": " returns None."}],
    }


def example_steps(count: int = 80) -> list[dict]:
    return [
        {
            "step": i + 1,
            "progress": i / count,
            "seconds": 2.4 * (i + 1),
            "loss": 3.0 + 4.0 * math.exp(-i / 5) + 0.05 * math.sin(i),
            "lr": min(1.0, (count - i) / (0.72 * count)),
            "tokens": 8192 * (i + 1),
            "tokens_per_s": 3400.0,
            "grad_norm": 0.3,
            "looping": i >= 0.35 * count,
        }
        for i in range(count)
    ]


class Reader(HTMLParser):
    """Collects what the page shows: its numbers with their exact values, its tags, its ids."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.numbers: list[tuple[float, str]] = []
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.value: str | None = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.value = dict(attributes)["value"] if tag == "data" else None

    def handle_data(self, data):
        self.words.append(data)
        if self.value is not None:
            self.numbers.append((json.loads(self.value), data))
            self.value = None


def numbers_in(value) -> set[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return set().union(*(numbers_in(item) for item in value))
    return {value} if isinstance(value, int | float) else set()


@functools.cache
def example_report() -> tuple[str, str]:
    """The page and the numbers of the example, which takes half a second."""
    with tempfile.TemporaryDirectory() as folder:
        page, numbers = written(Path(folder), example_results(), example_steps())
    return page, json.dumps(numbers)


def report(folder, results=None, steps=None) -> tuple[str, dict]:
    if results is None and steps is None:
        page, numbers = example_report()
        return page, json.loads(numbers)
    results = example_results() if results is None else results
    return written(folder, results, example_steps() if steps is None else steps)


def written(folder, results, steps) -> tuple[str, dict]:
    out = folder / "report.html"
    assert write_report(folder, results, steps, out) == out
    return out.read_text(encoding="utf-8"), json.loads((folder / "report.json").read_text())
