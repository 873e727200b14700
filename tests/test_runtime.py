"""Machine plans and ranks."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from shared import forking

from fairway.base.errors import UserError
from fairway.config.settings import RuntimeConfig
from fairway.machine import plan
from fairway.machine.plan import Plan, _probe_seconds, make_plan
from fairway.machine.ranks import Ranks, join_ranks, seed_everything


@pytest.fixture(autouse=True)
def unmeasured() -> Iterator[None]:
    """Each test measures by itself, and leaves nothing that it made up."""
    plan._fastest.cache_clear()
    yield
    plan._fastest.cache_clear()


def test_fixed_settings_need_no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fairway.machine.plan._probe_seconds", lambda *_: pytest.fail("probed"))
    config = RuntimeConfig(
        device="cpu", threads=1, dtype="float32", matmul="medium", attention="sdpa"
    )
    assert make_plan(config) == Plan("cpu", "float32", "medium", 1, "sdpa")


def test_probe_takes_the_fastest_of_what_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def seconds(option: tuple[int, str, str], allowance_s: float) -> float:
        tried.append(option)
        assert allowance_s <= 1.0
        return 0.1 if option[1] == "float32" and option[2] == "medium" else 1.0

    monkeypatch.setattr("fairway.machine.plan._probe_seconds", seconds)
    monkeypatch.setattr("fairway.machine.plan.usable_cores", lambda: 2)
    made = make_plan(RuntimeConfig(device="cpu"))
    assert (made.dtype, made.matmul) == ("float32", "medium")
    assert len(tried) == 6
    # Once in a process for the same open settings.
    assert make_plan(RuntimeConfig(device="cpu")) == made and len(tried) == 6
    tried.clear()
    make_plan(RuntimeConfig(device="cpu", dtype="bfloat16"))
    assert {option[1] for option in tried} == {"bfloat16"} and len(tried) == 2


def test_probe_measures_and_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    # The session has put another function in its place.
    monkeypatch.setattr(plan, "_probe_seconds", lambda option, _: _probe_seconds(option, 0.05))
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    made = make_plan(RuntimeConfig(device="cpu", threads=1))
    assert made.dtype in ("bfloat16", "float32")
    assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == before
    assert "1 threads" in made.describe() or "1 thread" in made.describe()


def test_a_missing_gpu_is_said() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match="runtime.device is cuda, but torch sees no GPU"):
        make_plan(RuntimeConfig(device="cuda"))


def test_attention_that_does_not_run_here_is_refused() -> None:
    fixed = RuntimeConfig(
        device="cpu", threads=1, dtype="float32", matmul="highest", attention="cudnn"
    )
    with pytest.raises(UserError, match="is cudnn, but it runs on CUDA GPUs only; set runtime.att"):
        make_plan(fixed)


def test_plan_applies_threads_and_precision() -> None:
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    Plan("cpu", "float32", "medium", 1, "plain").apply()
    assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == (1, "medium")
    torch.set_num_threads(before[0])
    torch.set_float32_matmul_precision(before[1])


def test_seed_covers_torch() -> None:
    seed_everything(3)
    first = torch.rand(2)
    seed_everything(3)
    assert torch.equal(first, torch.rand(2))


def test_one_process_is_its_own_world() -> None:
    ranks = join_ranks()
    assert ranks == Ranks() and ranks.first
    values = [torch.ones(2)]
    for start in (ranks.start_sum, ranks.start_scatter, ranks.start_gather):
        start(values[0])()
    assert ranks.broadcast(2.5) == 2.5 and torch.equal(values[0], torch.ones(2))
    assert ranks.any(True) and not ranks.any(False)


MEMBER = """
import sys
_, folder, store, rank = sys.argv
sys.path.insert(0, folder)
import test_runtime
test_runtime.member(int(rank), store)
"""


def member(rank: int, store: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2
    )
    ranks = Ranks(rank, 2, rank)
    values = [torch.full((3,), float(rank))]
    ranks.start_sum(values[0])()
    assert torch.equal(values[0], torch.ones(3))
    assert ranks.broadcast(float(10 + rank)) == 10.0
    assert ranks.broadcast_all((rank + 1.0, rank + 2.0)) == [1.0, 2.0]
    assert ranks.any(rank == 1) and not ranks.any(False)
    whole = torch.arange(4.0) + rank
    ranks.start_scatter(whole)()
    assert ranks.shard(whole).tolist() == ([1.0, 3.0], [5.0, 7.0])[rank]
    ranks.start_gather(whole)()
    assert whole.tolist() == [1.0, 3.0, 5.0, 7.0]
    torch.distributed.destroy_process_group()


def test_two_processes_agree(tmp_path: Path) -> None:
    words = [*forking(), "-c", MEMBER, str(Path(__file__).parent), str(tmp_path / "store")]
    both = [subprocess.Popen([*words, str(rank)]) for rank in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
