"""How the layout of a section changes what Brotli makes of it (docs/format.md).

    python benchmarks/pack_layout.py WEIGHTS.safetensors [--codes]

Without --codes only the float16 sections, in a second; with it all matrices twice, in minutes.
"""

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from seed_model import load_state

from fairway.config.settings import ModelConfig, QuantConfig
from fairway.pack.codec import compress
from fairway.pack.layout import Form, SectionSpec, layout, section_bytes
from fairway.quantise.gptq import QuantisedModel, quantise_model
from fairway.quantise.grid import QuantisedTensor


def by_rows(spec: SectionSpec, quantised: QuantisedModel) -> bytes:
    tensors = [quantised[tensor.name] for tensor in spec.tensors]
    return b"".join(t.codes.numpy().tobytes() for t in tensors if isinstance(t, QuantisedTensor))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("weights", type=Path)
    parser.add_argument("--codes", action="store_true")
    arguments = parser.parse_args()
    quant = QuantConfig(method="round")
    quantised = quantise_model(load_state(arguments.weights), {}, quant)
    *codes, scales, vectors = layout(ModelConfig(), quant.min_numel, Form())
    for spec in (scales, vectors):
        raw = section_bytes(spec, quantised)
        for stride in (1, 2):
            print(f"{spec.name}, stride {stride}: {len(compress(raw, 'brotli', stride)):,}")
    if not arguments.codes:
        return
    for order, raw_of in (("rows", by_rows), ("columns", section_bytes)):
        with ThreadPoolExecutor() as pool:
            stored = list(
                pool.map(
                    lambda spec, f=raw_of: len(compress(f(spec, quantised), "brotli", 1)), codes
                )
            )
        sizes = dict(zip([spec.name for spec in codes], stored, strict=True))
        print(f"codes by {order}: {sum(stored):,}", sizes)


if __name__ == "__main__":
    main()
