"""The table of the parts of `best` in docs/best.md is what its commands print."""

import json
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "best.md").read_text()
COMMANDS = re.findall(r"^python benchmarks/pooled\.py (.+)$", PAGE, re.MULTILINE)


@pytest.mark.parametrize("words", COMMANDS)
def test_published_effects_are_those_of_the_tables(
    words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.chdir(ROOT)
    import pooled

    tables = shlex.split(words.replace("$S", "benchmarks/studies/2026-11-27"))
    monkeypatch.setattr("sys.argv", ["pooled.py", *tables])
    pooled.main()
    mean, low, high, count = re.findall(
        r"[-+]?[\d.]+", capsys.readouterr().out.splitlines()[-1].replace("95 %", "")
    )
    row = f"| {float(mean):+.4f} | {float(low):+.4f} to {float(high):+.4f} | {count}"
    assert row in PAGE


def test_the_table_has_commands() -> None:
    assert len(COMMANDS) == 11


def test_slow_runs_and_seeds_of_one_arm_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import pooled

    found = [("a", 1, 1.5, 100), ("b", 1, 1.0, 50), ("a", 2, 9.0, 84), ("b", 2, 1.0, 50),
             ("a", 3, 1.25, 101), ("b", 3, 1.0, 50), ("b", 4, 7.0, 50)]  # fmt: skip
    rows = [
        {"name": arm, "seed": seed, "ema": ema, "steps": steps} for arm, seed, ema, steps in found
    ]
    table = tmp_path / "rows.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert pooled.differences(f"{table}:a:b", "ema") == [0.5, 0.25]
    with pytest.raises(SystemExit, match="no run of 'c'"):
        pooled.differences(f"{table}:c:b", "ema")
