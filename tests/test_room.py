"""Main memory: the bounds as a system tells them, what stages need of it, and where it ends."""

import errno
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from shared import forking

from fairway.base import room
from fairway.base.errors import UserError
from fairway.base.room import Room, host_room, is_lack_of_memory, memory_told, rooms
from fairway.config.settings import Config
from fairway.data.folder import Validation
from fairway.machine.plan import Plan
from fairway.pipeline import needs
from fairway.pipeline.folder import RunFolder
from fairway.pipeline.needs import check_host_memory, host_needs, remedy_of
from fairway.pipeline.order import stages_of
from fairway.pipeline.run import Pipeline
from fairway.pipeline.stages import done
from fairway.score.baselines import MOST_BYTES, PPMD_PRIME_BYTES, PRIME_BYTES, ppmd_memory

CPU = Plan("cpu", "float32", "highest", 1, "plain")
GROUP = "left by the limit of this container or job (cgroup)"


@pytest.fixture
def unlimited(monkeypatch: pytest.MonkeyPatch) -> None:
    endless = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda which: endless)


def system(root: Path, files: dict[str, str]) -> list[Room]:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return rooms(root)


@pytest.mark.usefixtures("unlimited")
@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, []),
        ({"proc/meminfo": "MemTotal: 9 kB\nMemAvailable:  5 kB\n"}, [Room(5120)]),
        (
            {
                "proc/self/cgroup": "0::/jobs/one\n",
                "sys/fs/cgroup/jobs/one/memory.max": "max\n",
                "sys/fs/cgroup/jobs/memory.max": "5000\n",
                "sys/fs/cgroup/jobs/memory.current": "3000\n",
                "sys/fs/cgroup/jobs/memory.stat": "anon 1\nactive_file 9\ninactive_file 700\n",
            },
            [Room(2700, GROUP)],
        ),
        (
            # A container that sees its own group as the top, under the path of the host.
            {
                "proc/self/cgroup": "0::/../../pod/x\n",
                "sys/fs/cgroup/memory.max": "4096",
                "sys/fs/cgroup/memory.current": "9000",
            },
            [Room(0, GROUP)],
        ),
        (
            {
                "proc/self/cgroup": "0::/kubepods/pod1\n",
                "sys/fs/cgroup/memory.max": "4096",
                "sys/fs/cgroup/memory.current": "96",
            },
            [Room(4000, GROUP)],
        ),
        (
            {
                "proc/self/cgroup": "9:name=systemd:/\n4:cpu,memory:/slurm/job\n",
                "sys/fs/cgroup/memory/slurm/job/memory.limit_in_bytes": "1000",
                "sys/fs/cgroup/memory/slurm/job/memory.usage_in_bytes": "400",
                "sys/fs/cgroup/memory/slurm/job/memory.stat": "total_inactive_file 50\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
            },
            [Room(650, GROUP)],
        ),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "broken"}, []),
    ],
)
def test_bounds_are_read_where_a_system_tells_them(
    tmp_path: Path, files: dict[str, str], found: list[Room]
) -> None:
    assert system(tmp_path, files) == found


def test_limits_of_the_process_count_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {resource.RLIMIT_AS: 100 * 4096, resource.RLIMIT_DATA: 30 * 4096}
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limits[which], -1))
    monkeypatch.setattr(resource, "getpagesize", lambda: 4096)
    found = system(tmp_path, {"proc/self/statm": "60 20 10 1 0 40 0\n"})
    assert found == [
        Room(40 * 4096, "left by `ulimit -v`", reserved=True),
        Room(0, "left by `ulimit -d`"),
    ]
    monkeypatch.setattr(room, "rooms", lambda: [Room(7), *found])
    assert host_room() == found[1]
    assert found[0].told() == "0.16 MB are left by `ulimit -v`"


@pytest.mark.parametrize(
    ("error", "lacks"),
    [
        (MemoryError(), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            True,
        ),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8"), True),
        (RuntimeError("can't start new thread"), True),
        (ImportError("x.so: failed to map segment from shared object"), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_a_lack_of_memory_is_known_by_what_libraries_say(error: Exception, lacks: bool) -> None:
    assert is_lack_of_memory(error) == lacks
    with (
        pytest.raises(UserError if lacks else type(error)) as raised,
        memory_told("it", "take less"),
    ):
        raise error
    if lacks:
        assert str(raised.value).startswith("main memory does not suffice for it")
        assert str(raised.value).endswith("; take less, or give more memory")


def test_the_memory_of_a_gpu_has_sentences_of_its_own() -> None:
    with pytest.raises(torch.OutOfMemoryError), memory_told("it", "take less"):
        raise torch.OutOfMemoryError("CUDA out of memory")


REAL = """
import resource, sys, mmap, lzma
import numpy as np, torch
from fairway.base.errors import UserError
from fairway.base.room import memory_told
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + (64 << 20), resource.RLIM_INFINITY))
try:
    with memory_told("the test", "ask for less"):
        {work}
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize(
    "work",
    ["bytearray(1 << 30)", "np.ones(1 << 28)", "torch.ones(1 << 28)", "mmap.mmap(-1, 1 << 30)",
     "lzma.compress(b'', preset=9 | lzma.PRESET_EXTREME)"],
)  # fmt: skip
def test_what_really_happens_at_a_limit_is_one_sentence(work: str) -> None:
    words = [*forking(), "-c", REAL.format(work=work)]
    ended = subprocess.run(words, capture_output=True, text=True, check=True)
    assert ended.stderr == "" and ended.stdout.count("\n") == 1
    assert ended.stdout.startswith("main memory does not suffice for the test: ")
    assert "MB are left by `ulimit -v` now; ask for less, or give more memory" in ended.stdout


def test_a_limit_that_libraries_would_not_survive_is_told_first() -> None:
    limit = "ulimit -v 900000; "
    command = f"exec {sys.executable} -m fairway"
    ended = subprocess.run(
        ["bash", "-c", f"{limit}{command} doctor"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2 and ended.stdout == ""
    assert (
        ended.stderr.count("\n") == 1
        and "`ulimit -v` allows this process 921.60 MB" in ended.stderr
    )
    helped = subprocess.run(
        ["bash", "-c", f"{limit}{command} --version"], capture_output=True, text=True, check=False
    )
    assert helped.returncode == 0 and helped.stdout.startswith("fairway ")


# ---------------------------------------------------------------------------------------------
# What a run needs


@pytest.fixture
def text() -> Validation:
    return Validation(np.zeros(500, np.uint16), ["a" * 2000], 2000)


SHARDS = [np.zeros(10**6, np.uint16)]
Tiny = Callable[..., Config]


def test_every_stage_has_a_remedy(tiny: Tiny) -> None:
    everything = tiny("mixture.experts=ppm", "mixture.published=true", "ttt.method=sgd")
    told = {stage.name: remedy_of(stage.name) for stage in stages_of(everything)}
    assert "score.batch_windows" in told["score.raw"] == told["score.sliding"]
    assert "ttt." in told["score.ttt"] and "mixture.memory_mb" in told["score.mixture"]
    assert "train.micro_tokens" in told["train"] and "data.val_bytes" in told["baselines"]


def test_needs_grow_with_what_makes_them(tiny: Tiny, text: Validation) -> None:
    def of(*changes: str, plan: Plan = CPU) -> dict[str, float]:
        found = host_needs(tiny(*changes), SHARDS, text, plan)
        return {need.stage: need.bytes for need in found}

    plain = of()
    assert of("train.micro_tokens=1024")["train"] > plain["train"]
    assert of("train.micro_tokens=1024")["pack"] > plain["pack"]
    assert of("score.batch_windows=64")["score"] > plain["score"]
    assert of("model.dim=128")["pack"] > plain["pack"]
    ppm = tiny("mixture.experts=ppm")
    short, long = (host_needs(ppm, SHARDS, replace(text, bytes=b), CPU) for b in (10**4, 10**6))
    sizes = [n.bytes for found in (short, long) for n in found if n.stage == "score.mixture"]
    assert sizes[0] < sizes[1]
    for size in (MOST_BYTES, 10**9):
        longer = host_needs(tiny(), SHARDS, replace(text, bytes=size), CPU)[-1].bytes
        ppmd = ppmd_memory(MOST_BYTES + PPMD_PRIME_BYTES) - ppmd_memory(2000 + PPMD_PRIME_BYTES)
        assert longer - plain["baselines"] == pytest.approx(10.5 * (MOST_BYTES - 2000) + ppmd)
    # A GPU's own memory is counted elsewhere.
    on_gpu = of(plan=replace(CPU, device="cuda"))
    assert on_gpu["train"] < plain["train"] and "score" not in on_gpu


def test_what_is_short_is_refused_by_its_number(
    tiny: Tiny, text: Validation, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny("ttt.method=sgd", "mixture.experts=ppm")
    every = host_needs(config, SHARDS, text, CPU)
    most = max(need.bytes for need in every)
    for need in every:
        said: list[str] = []
        bound = Room(int(need.bytes) + 1)
        assert need.within(bound) and not need.within(Room(int(need.bytes) - 1))
    monkeypatch.setattr(needs, "rooms", lambda: [Room(10**15), Room(int(most) + 1)])
    check_host_memory(config, SHARDS, text, CPU, said.append)
    assert len(said) == 1 and said[0].startswith(
        "main memory needed, in GB (estimates): training 0."
    )
    assert said[0].endswith(f"; {Room(int(most) + 1).told()}")
    monkeypatch.setattr(needs, "rooms", lambda: [Room(int(most) - 1)])
    with pytest.raises(UserError, match=r"takes about .* MB are free; validate on less text"):
        check_host_memory(config, SHARDS, text, CPU, said.append)
    monkeypatch.setattr(needs, "rooms", list)
    check_host_memory(config, SHARDS, text, CPU, said.append)
    assert "GB (estimates): training" in said[-1] and "free" not in said[-1]


def test_mapped_files_count_where_address_space_is_limited(tiny: Tiny, text: Validation) -> None:
    train = host_needs(tiny(), SHARDS, text, CPU)[0]
    assert train.of(Room(0, reserved=True)) - train.of(Room(0)) == 2 * 10**6
    baselines = host_needs(tiny(), SHARDS, text, CPU)[-1]
    aside = baselines.of(Room(0, reserved=True)) - baselines.of(Room(0))
    assert aside == pytest.approx(10.5 * ((1 << 26) - text.bytes - PRIME_BYTES))


def test_nothing_is_trained_where_a_later_stage_lacks_memory(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(needs, "rooms", lambda: [Room(200_000_000, GROUP)])
    said: list[str] = []
    pipeline = Pipeline(tiny(), RunFolder(tmp_path / "run"), said.append)
    told = r"comparison takes about .* and 200\.00 MB are left by the limit of this container"
    with pytest.raises(UserError, match=told), pipeline.writing():
        pipeline.walk()
    assert "train" not in pipeline.folder.memory["stages"]
    assert any(line.startswith("main memory needed") for line in said)


def test_a_stage_that_runs_out_says_which_and_what_to_lower() -> None:
    def work(run: object) -> dict[str, object]:
        raise MemoryError

    told = r"for the stage 'score\.raw'.*; lower score\.batch_windows or score\.seq_len, or give"
    with pytest.raises(UserError, match=told):
        done({"score.raw": work}, "score.raw", None)  # type: ignore[arg-type]
