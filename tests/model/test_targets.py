"""Kernels compile for GPUs that are not here, and fit their shared memory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="kernels need Triton")

# Shared memory of a block in bytes: A100, RTX 4090 and L4, H100 and H200, RTX 5090.
ROOM_BYTES = {80: 163 << 10, 89: 99 << 10, 90: 227 << 10, 120: 99 << 10}
# One of every file of kernels.
SOME = {
    "_enter_backward_kernel",
    "_loss_kernel",
    "_position_kernel",
    "_slope_kernel",
    "_move_kernel",
    "_shorten_kernel",
}


@pytest.mark.slow
def test_kernels_compile_for_other_gpus(tmp_path: Path) -> None:
    script = Path(__file__).with_name("targets.py")
    words = [sys.executable, str(script), *map(str, ROOM_BYTES)]
    # A cache of its own, so that everything compiles.
    places = {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    ended = subprocess.run(
        words, env=os.environ | places, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    found = [line.split() for line in ended.stdout.splitlines()]
    assert {name for name, *_ in found} >= SOME
    assert {int(capability) for _, capability, _ in found} == set(ROOM_BYTES)
    for name, capability, shared_bytes in found:
        assert int(shared_bytes) <= ROOM_BYTES[int(capability)], (name, capability)
