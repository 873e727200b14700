"""The sections of an artifact that `cabac` codes: tensors to streams, and streams to raw bytes.

It decodes to the bytes of `layout.section_bytes`, so other code does not depend on the codec of a
section.
"""

import math
from collections.abc import Iterator

import numpy as np

from fairway.base.errors import UserError
from fairway.pack.arithmetic import Ints, log2_256
from fairway.pack.cabac import DAMAGED, Side, decode_codes, encode_codes
from fairway.pack.layout import (
    FACTOR_BITS,
    Loaded,
    Numbers,
    SectionSpec,
    codes_bytes,
    lines_of,
    matrices,
)
from fairway.pack.lines import decode_lines, encode_lines
from fairway.quantise.gptq import QuantisedModel

# Integer tensors; float16 tensors have little structure to model.
KINDS = ("codes", "scales", "steps", "left factors", "right factors")


def prepare_coder() -> None:
    """Compile the coder, which takes seconds on a new machine, by coding a few numbers."""
    numbers_RC = np.ones((256, 2), np.int16)
    encode_codes([numbers_RC], [Side((256, 2), np.zeros(256, np.int64))])
    encode_lines([numbers_RC[:, 0]])


def encode_section(spec: SectionSpec, quantised: QuantisedModel) -> bytes:
    """Return the stream of a section of one of KINDS."""
    if spec.kind != "codes":
        return encode_lines(lines_of(spec, quantised))
    tensors = matrices(spec, quantised)
    sides = []
    for tensor in tensors:
        steps = tensor.scale if tensor.scale_steps is None else tensor.scale_steps
        sides.append(_side(tuple(tensor.codes.shape), steps.numpy(), tensor.trellis))
    return encode_codes([tensor.codes.numpy() for tensor in tensors], sides)


def decode_section(
    spec: SectionSpec, stored: bytes, bits: int, trellis: int, loaded: Loaded
) -> bytes:
    """Return the raw bytes of a section; its matrices' steps are among what is loaded.

    Raises UserError for a stream that is damaged or of other shapes.
    """
    if spec.kind != "codes":
        factors = spec.kind in FACTOR_BITS
        counts = [math.prod(t.shape) if factors else t.shape[0] for t in spec.tensors]
        lines = decode_lines(stored, counts)
        if factors and any(line.min() < -128 or line.max() > 127 for line in lines):
            raise UserError(DAMAGED)
        dtype = "i1" if factors else "<i2"
        return b"".join(line.astype(dtype).tobytes() for line in lines)
    sides = list(_sides(spec, trellis, loaded))
    dtype = "i1" if bits <= 8 else "<i2"
    return b"".join(codes_bytes(codes_RC, dtype) for codes_RC in decode_codes(stored, sides))


def _sides(spec: SectionSpec, trellis: int, loaded: Loaded) -> Iterator[Side]:
    for tensor in spec.tensors:
        yield _side(tensor.shape, loaded.steps[tensor.name], trellis)


def _side(shape: tuple[int, ...], steps_R: Numbers, trellis: int) -> Side:
    rows, columns = shape
    return Side((rows, columns), _logs(steps_R), trellis)


def _logs(steps_R: Numbers) -> Ints:
    """Return 256 log2 of scales (float16) or steps (int16, in 1/16 octave)."""
    if steps_R.dtype.kind == "i":
        return 16 * steps_R.astype(np.int64)
    bits_R = steps_R.astype("<f2").view("<u2").astype(np.int64)
    exponent_R = bits_R >> 10 & 31
    mantissa_R = np.where(exponent_R > 0, 1024, 0) + (bits_R & 1023)
    logs = (log2_256(max(int(mantissa), 1)) for mantissa in mantissa_R)
    return np.asarray(np.fromiter(logs, np.int64) + 256 * (np.maximum(exponent_R, 1) - 25))
