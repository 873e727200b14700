"""Fairway where POSIX, CUDA, float64 or bfloat16 are missing: Windows, and GPUs of Apple."""

import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import TINY, alive
from torch.utils._python_dispatch import TorchDispatchMode

import fairway
from fairway.base import floats
from fairway.base.errors import UserError
from fairway.config.settings import OptimConfig, RuntimeConfig, ScoreConfig
from fairway.machine.plan import Plan, make_plan, own_device
from fairway.machine.ranks import Ranks
from fairway.model import ops
from fairway.model.paths import place
from fairway.score.evaluation import Evaluation
from fairway.score.sliding import evaluate_frozen, text_of
from fairway.train import muon
from fairway.train.clock import Clock

# ---------------------------------------------------------------------------------------------
# Without POSIX

HIDDEN = """
import importlib, os, pkgutil, signal, sys
for name in "fcntl resource pwd grp termios tty pty syslog triton".split():
    sys.modules[name] = None
import numba, torch, sentencepiece, pyarrow, matplotlib, scipy.special, typer.main, filelock
for name in "SIGKILL SIGHUP SIGALRM SIGPIPE SIGSTOP SIGUSR1 setitimer ITIMER_PROF".split():
    delattr(signal, name)
for name in ("fork killpg getuid geteuid getegid chown setsid sched_getaffinity O_NONBLOCK "
             "O_NOFOLLOW O_DIRECTORY O_NOCTTY mkfifo").split():
    delattr(os, name)
import fairway
# Kernels need Triton, and these a package of their own.
skipped = ("fairway.model.gpu", "fairway.export.hugging", "fairway.harness",
           "fairway.score.fused_adam", "fairway.train.fused_muon")
found = 0
for module in pkgutil.walk_packages(fairway.__path__, "fairway."):
    if not module.name.startswith(skipped) and not module.name.endswith("__main__"):
        importlib.import_module(module.name)
        found += 1
from pathlib import Path
from fairway.base.endings import interrupt_by_signals, stop_requested
from fairway.base.files import read_json, write_json
from fairway.base.folders import new_folder
from fairway.base.memory import peak_bytes
from fairway.base.room import host_room, require_start
interrupt_by_signals()
with stop_requested():
    pass
require_start()
host_room()
assert peak_bytes("cpu") >= 0
for value in (1, 2):
    write_json(Path(sys.argv[1]) / "x.json", value)
assert read_json(Path(sys.argv[1]) / "x.json") == 2
with new_folder(Path(sys.argv[1]) / "new", lambda name: False, lambda folder: None, "x") as made:
    (made / "x").write_text("y")
assert (Path(sys.argv[1]) / "new" / "x").read_text() == "y"
print(found)
"""


@pytest.mark.long
def test_every_module_is_imported_and_files_are_written_without_posix(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", HIDDEN, tmp_path], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert int(ended.stdout) > 200


# ---------------------------------------------------------------------------------------------
# On a GPU of Apple, which is not here: what would be asked of it


def test_an_apple_gpu_is_planned_with_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    config = RuntimeConfig(device="mps")
    with pytest.raises(UserError, match="torch sees no Apple GPU; set runtime.device=cpu"):
        make_plan(config)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    plan = make_plan(config)
    assert (plan.device, plan.dtype, plan.kernels, plan.attention) == (
        "mps",
        "float32",
        "plain",
        "plain",
    )
    assert own_device(plan, Ranks()).type == "mps"
    for wrong, why in (
        (RuntimeConfig(device="mps", dtype="bfloat16"), "not every Apple GPU has"),
        (RuntimeConfig(device="mps", kernels="fused"), "need a GPU and bfloat16, and this is mps"),
        (RuntimeConfig(device="mps", attention="flash"), "it runs on CUDA GPUs only"),
    ):
        with pytest.raises(UserError, match=why):
            make_plan(wrong)
    assert (
        make_plan(RuntimeConfig(device="cpu", threads=1, dtype="float32", matmul="highest")).device
        == "cpu"
    )


class Apple(TorchDispatchMode):
    """Takes the CPU for such a GPU: no tensor there may have float64 or bfloat16.

    What `Tensor.cpu` returned, and what is made from it alone, is on the host.
    """

    def __init__(self) -> None:
        super().__init__()
        self.host: set[int] = set()
        self.kept: list[torch.Tensor] = []
        self.wrong: list[str] = []

    def to_host(self, x: torch.Tensor) -> torch.Tensor:
        copy = torch.from_numpy(x.detach().numpy().copy())
        self.mark(copy)
        return copy

    def mark(self, x: torch.Tensor) -> None:
        self.host.add(x.untyped_storage().data_ptr())
        self.kept.append(x)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        flat = torch.utils._pytree.tree_leaves((args, kwargs))
        given = [x for x in flat if isinstance(x, torch.Tensor)]
        on_host = [x.untyped_storage().data_ptr() in self.host for x in given]
        made = [x for x in torch.utils._pytree.tree_leaves(out) if isinstance(x, torch.Tensor)]
        wrong = [x.dtype for x in made if x.dtype in (torch.float64, torch.bfloat16)]
        # What NumPy holds is on the host.
        fresh = func is torch.ops.aten.lift_fresh.default
        if fresh or (all(on_host) and (given or not wrong)):
            for x in made:
                self.mark(x)
        elif wrong:
            where = traceback.extract_stack()[-3]
            self.wrong.append(f"{func} makes {wrong} at {where.filename}:{where.lineno}")
        return out


@pytest.fixture
def apple(monkeypatch: pytest.MonkeyPatch) -> Apple:
    found = Apple()
    monkeypatch.setattr(floats, "_WITHOUT_DOUBLE", ("cpu",))
    monkeypatch.setattr(ops, "fit", lambda *tensors: False)
    monkeypatch.setattr(torch.Tensor, "cpu", lambda x: found.to_host(x))
    return found


def test_training_asks_for_no_wider_and_no_shorter_numbers(apple: Apple) -> None:
    model = alive()
    assert model.tok_emb.weight.dtype == torch.bfloat16
    model.float()
    optimisers = muon.Optimisers(model, OptimConfig(), Ranks())
    ids = torch.randint(0, TINY.vocab_size, (2, 12))
    with apple:
        for step in range(2):
            model(ids, ids).backward()
            optimisers.step(1.0, step)
    assert apple.wrong == []
    with apple:
        (ids * 0.5).double()
    assert apple.wrong, "the mode sees what it is for"


def test_scoring_asks_for_no_wider_numbers(apple: Apple) -> None:
    from fairway.data.tokens import ByteTable

    model = alive().float().eval()
    ids = np.random.default_rng(0).integers(4, TINY.vocab_size, 60)
    ones, none = np.ones(TINY.vocab_size, np.int16), np.zeros(TINY.vocab_size, bool)
    text = text_of(ids, ByteTable(ones, none, none), len(ids) - 1)
    asked = Evaluation(text, ScoreConfig(seq_len=16, stride=4, truncate=False))
    with apple, torch.no_grad():
        evaluate_frozen(model, asked, sliding=True)
    assert apple.wrong == []


def test_an_embedding_of_16_bits_is_widened_before_it_is_moved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moved: list[torch.dtype] = []
    model = alive()
    monkeypatch.setattr(
        type(model), "to", lambda self, device: moved.append(self.tok_emb.weight.dtype) or self
    )
    place(model, "mps")
    place(alive(), "cpu")
    assert moved == [torch.float32, torch.bfloat16]


def test_the_clock_knows_the_device(tiny: Callable[..., Any]) -> None:
    Clock(tiny(), None, Ranks(), "mps")
    assert Plan("mps", "float32", "highest", 1, "plain").describe().startswith("mps, float32")


# ---------------------------------------------------------------------------------------------
# Newer versions of Python


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.12", "3.13", "3.14"])
def test_pinned_packages_resolve_for_other_versions(version: str, tmp_path: Path) -> None:
    root = Path(fairway.__file__).parents[1]
    command = [
        *(sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "-q"),
        *("--python-version", version, "--only-binary=:all:", "--target", str(tmp_path)),
        *("-c", str(root / "constraints.txt")),
    ]
    import tomllib

    needed = tomllib.loads((root / "pyproject.toml").read_text())["project"]["dependencies"]
    ended = subprocess.run([*command, *needed], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
