import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fairway.base.errors import UserError
from fairway.data.parallel import map_parallel, processes


def square(item: int) -> tuple[int, int]:
    time.sleep(0.01 if item % 2 else 0.0)
    return item * item, os.getpid()


def refuse(item: int) -> int:
    raise UserError(f"item {item} is bad")


def test_results_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fairway.data.parallel.processes", lambda: 2)
    results = list(map_parallel(square, range(30), "squaring", chunk=2))
    assert [value for value, _ in results] == [item * item for item in range(30)]
    assert os.getpid() not in {pid for _, pid in results}


def test_little_work_stays_here() -> None:
    assert {pid for _, pid in map_parallel(square, range(5), "squaring", chunk=5)} == {os.getpid()}
    assert list(map_parallel(square, [], "squaring")) == []


@pytest.mark.parametrize("chunk", [1, 9])
def test_a_refusal_in_a_worker_reaches_the_user(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fairway.data.parallel.processes", lambda: 2)
    with pytest.raises(UserError, match="item 0 is bad"):
        list(map_parallel(refuse, range(9), "refusing", chunk))


def test_there_is_at_least_one_process() -> None:
    assert processes() >= 1


def end(item: int) -> None:
    """Do as the kernel does to a process that takes too much memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_helper_that_is_killed_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fairway.data.parallel.processes", lambda: 2)
    with pytest.raises(UserError, match="a process that helped with 'counting' was killed"):
        list(map_parallel(end, [1, 2, 3], "counting"))


# As people write scripts: nothing keeps a process that imports it from doing all of it again.
SCRIPT = """
import fairway.data.parallel as parallel
print("begun", flush=True)
parallel.processes = lambda: 2
print(list(parallel.map_parallel(len, ["a", "bb", "ccc"], "measuring")))
"""


def test_helpers_do_not_execute_the_script_of_the_caller(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    words = [sys.executable, str(tmp_path / "script.py")]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (ended.stdout, ended.returncode) == ("begun\n[1, 2, 3]\n", 0), ended.stderr
