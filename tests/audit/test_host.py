"""Scorers that are Python: a file, or what a package registers, in a process of their own."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import Cli

from fairway.audit.scorers.host import serve

HONEST = """
import numpy as np

class Counts:
    vocab_size, separate, row_tolerance_nats = 7, False, 1e-6
    def row(self, ids, index):
        seen = np.bincount(ids[:index], minlength=7) + 1.0
        return np.log(seen / seen.sum())
    def score(self, ids):
        print('a word that is no answer')
        for at in range(1, len(ids)):
            yield at, -self.row(ids, at)[ids[at]]
"""
# Words of C code and of child processes go around sys.stdout.
TALKS = HONEST.replace(
    "print('a word that is no answer')",
    "import os; os.write(1, b'a word of C\\n'); os.system('echo the word of a child')",
)
# Its rows are off by up to 0.2 nats to both sides, as those of another kernel in bfloat16 may be.
ROUNDS = """
import numpy as np

class Rounds:
    vocab_size, separate, row_tolerance_nats = 7, False, 0.25
    def logs(self, ids, index, off):
        logits = np.log(np.bincount(ids[:index], minlength=7) + 1.0)
        logits += off * ((np.arange(7) * 5 + index) % 3 - 1)
        return logits - np.log(np.exp(logits).sum())
    def row(self, ids, index):
        return self.logs(ids, index, 0.1)
    def score(self, ids):
        for at in range(1, len(ids)):
            yield at, -self.logs(ids, at, 0.0)[ids[at]]
"""
# It charges less than it shows.
SHAVES = ROUNDS.replace("index, 0.1)", "index, 0.0)").replace("[ids[at]]", "[ids[at]] - 0.05")
PEEKS = """
import numpy as np

def peeks():
    class Peeks:
        vocab_size = 7
        def score(self, ids):
            seen = np.bincount(ids, minlength=7) + 1.0
            return [(at, -np.log(seen / seen.sum())[ids[at]]) for at in range(1, len(ids))]
    return Peeks()
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        (HONEST, 0),
        (TALKS, 0),
        (PEEKS, 1),
        (ROUNDS, 0),
        (ROUNDS.replace("0.25", "1e-6"), 1),
        (SHAVES, 1),
    ],
)
def test_a_file_is_audited_in_a_process_of_its_own(
    code: str, exit_code: int, tmp_path: Path, cli: Cli
) -> None:
    (tmp_path / "mine.py").write_text(code)
    ids = [1, *(int(n) for n in np.random.default_rng(0).integers(0, 7, 60))]
    (tmp_path / "ids.json").write_text(json.dumps(ids))
    words = ("audit", "--scorer", tmp_path / "mine.py", "--tokens", tmp_path / "ids.json")
    found = cli(*words, "--budget", 1, "--json")
    assert found.code == exit_code, found.err
    facts = json.loads(found.out)
    assert facts["passed"] == (exit_code == 0)
    assert facts["probes"][0]["stage"].endswith("mine.py")


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("def make(): return 3\n", "made a int without 'vocab_size'"),
        ("x = 1\n", "defines no function; write one that returns a scorer"),
        ("def make(): raise OSError('gone')\n", "raised OSError: gone (line 1 of mine.py)"),
        (HONEST + "class Other: pass\n", "defines 2 scorers (Counts, Other)"),
        (HONEST.replace("yield at, -", "yield at / 0, -"), "raised ZeroDivisionError"),
        (HONEST.replace("yield at, -", "yield -"), "it must give pairs (position, cost in nats)"),
        (
            HONEST.replace("yield at, -", "yield at, float('nan') * "),
            "gave NaN as the cost of token",
        ),
        (HONEST.replace("yield at, -", "yield at, 0, -"), "it must give pairs"),
        (HONEST.replace("= 7,", "= 'V',"), "vocab_size of"),
        (HONEST.replace("1e-6", "0.3"), 'stated 0.3 as "row_tolerance"; it must be a number of'),
        (HONEST.replace("1e-6", "'wide'"), "row_tolerance_nats of"),
    ],
)
def test_a_wrong_scorer_is_one_sentence(code: str, told: str, tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "mine.py").write_text(code)
    (tmp_path / "ids.json").write_text(json.dumps([1, 2, 3] * 10))
    words = ("audit", "--scorer", tmp_path / "mine.py", "--tokens", tmp_path / "ids.json")
    found = cli(*words, "--budget", 4)
    assert found.code == 2 and told in found.err and found.err.count("\n") == 1, found.err


def test_a_package_registers_scorers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "fairway_counts-2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fairway_counts\nVersion: 2.0\n")
    (info / "entry_points.txt").write_text("[fairway.scorers]\ncounts = fairway_counts:Counts\n")
    (tmp_path / "fairway_counts.py").write_text(HONEST)
    monkeypatch.syspath_prepend(str(tmp_path))
    said: list[dict[str, Any]] = []
    serve("counts", ['{"ids": [1, 2, 2]}', '{"ids": [1, 2], "row": 1}'], said.append)
    assert said[0] == {
        "vocab_size": 7, "separate": False, "row_tolerance": 1e-6, "rows": True, "bytes": False,
    }  # fmt: skip
    assert said[1]["index"] == [1, 2] and said[1]["nats"] == pytest.approx(
        [np.log(8), np.log(9 / 2)]
    )
    assert len(said[2]["row"]) == 7
    serve("count", [], said.append)
    assert "unknown scorer 'count'; did you mean 'counts'?" in said[3]["error"]
