"""Compiled loops on disk, and tables that cost nothing until they are used."""

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest

from fairway.base.arrays import untouched

HEAD = "from fairway.base.native import compiled\n"
MODULES = {
    "loops_low": "@compiled\ndef low(x):\n    return x + 1\n",
    "loops_mid": "from loops_low import low\n@compiled\ndef mid(x):\n    return low(x) * 2\n",
    "loops_top": "from loops_mid import mid\n@compiled\ndef top(x):\n    return mid(x) + 100\n",
}


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="nothing is kept on disk")
@pytest.mark.parametrize(("changed", "found"), [("loops_low", 112), ("loops_mid", 118)])
def test_a_loop_is_compiled_anew_when_one_that_it_calls_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str, found: int
) -> None:
    monkeypatch.syspath_prepend(tmp_path)

    def top() -> Any:
        for name in MODULES:
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        return importlib.import_module("loops_top").top

    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(HEAD + text)
    assert top()(2) == 106
    kept = top()
    assert kept(2) == 106 and sum(kept.stats.cache_hits.values()) == 1
    text = MODULES[changed].replace("x + 1", "x + 4").replace("* 2", "* 6")
    (tmp_path / f"{changed}.py").write_text(HEAD + text)
    # Python itself looks at seconds alone.
    os.utime(tmp_path / f"{changed}.py", (1e9, 1e9))
    assert top()(2) == found


@pytest.mark.parametrize("shape", [0, 1, 5, (3, 7), (1_000_000, 40)])
def test_untouched_tables_are_zeros_that_take_what_is_written(shape: Any) -> None:
    table = untouched(shape, np.float64)
    assert table.shape == np.zeros(shape).shape and table.flags.writeable
    flat = table.reshape(-1)
    flat[:: max(1, flat.size // 7)] = 1.0
    assert table.sum() == np.ceil(flat.size / max(1, flat.size // 7))
    if flat.size < 1000:
        return
    del flat, table
    before = int(Path("/proc/self/statm").read_text().split()[1])
    again = untouched(shape, np.float64)
    again.reshape(-1)[::1_000_000] = 1.0
    assert int(Path("/proc/self/statm").read_text().split()[1]) - before < 300


def test_untouched_tables_beyond_the_address_space_are_a_memory_error() -> None:
    with pytest.raises(MemoryError, match="no address space"):
        untouched(1 << 60, np.uint8)
