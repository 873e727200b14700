"""Several processes train one model: the same numbers for every count of them, one writer."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from fairway.base.errors import InterruptedRun
from fairway.base.names import CHECKPOINT
from fairway.config.overrides import override
from fairway.data.folder import DataFolder
from fairway.machine.plan import Plan
from fairway.machine.ranks import Ranks
from fairway.model.gpt import GPT, build
from fairway.recipes import recipe
from fairway.train import feed
from fairway.train.checkpoint import load_checkpoint, save_checkpoint
from fairway.train.loop import Training, TrainingText, train
from fairway.train.muon import Optimisers
from fairway.train.steps import STEPS, read_steps

# Three layers make banks of three and six matrices: neither two nor four ranks divide them evenly.
SETTINGS = [
    "model.num_layers=3", "model.parallel_from=2", "model.embed_bf16=false", "train.steps=4",
    "train.warmup_steps=1", "train.micro_tokens=256", "train.loop_from=0.5",
]  # fmt: skip
ROWS = 16


class Divided:
    """A loader whose global batches are the same for every world: each rank takes its rows."""

    def __init__(
        self, shards: Any, seq_len: int, rows: int, rank: int, world: int, *order: Any
    ) -> None:
        self.text, self.seq_len, self.rows = shards[0], seq_len, rows
        self.rank, self.per_rank, self.drawn = rank, ROWS // world, 0

    def next_windows(self) -> np.ndarray:
        windows = []
        for _ in range(self.rows):
            batch, row = divmod(self.drawn, self.per_rank)
            start = (batch * ROWS + self.rank * self.per_rank + row) * self.seq_len
            windows.append(self.text[start : start + self.seq_len + 1])
            self.drawn += 1
        return np.stack(windows).astype(np.int32)

    def state(self) -> dict[str, int]:
        return {"drawn": self.drawn}

    def restore(self, state: dict[str, int]) -> None:
        self.drawn = state["drawn"]


def train_one(ranks: Ranks, settings: list[str], folder: Path, resume: bool = False) -> list[str]:
    """Train with fixed batches; return what was said."""
    folder.mkdir(exist_ok=True)
    said: list[str] = []
    config = override(recipe("smoke"), [*settings, *SETTINGS])
    source = DataFolder.open(Path(config.data.source))
    text = TrainingText(source.train_shards(), source.bytes_per_token)
    plan = Plan("cpu", "float32", "highest", 1, "plain")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feed, "ShuffledLoader", Divided)
        train(config, plan, ranks, text, folder, lambda model: 1000, said.append, resume)
    return said


def stop_and_go_on(ranks: Ranks, settings: list[str], folder: Path) -> None:
    """Train with a signal to rank 0 alone in the second step, then continue."""
    advance = Training._advance

    def interrupted(self: Training, *how: Any) -> tuple[Tensor, Tensor]:
        if self.step == 1 and ranks.first:
            os.kill(os.getpid(), signal.SIGTERM)
        return advance(self, *how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "_advance", interrupted)
        with pytest.raises(InterruptedRun, match="stopped after step 2"):
            train_one(ranks, settings, folder)
    dist.barrier()
    train_one(ranks, settings, folder, resume=True)


def short_of_memory(ranks: Ranks, settings: list[str], folder: Path) -> None:
    """Train where the last rank has memory for two sequences only."""
    forward = GPT.forward

    def failing(self: GPT, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        if ranks.rank == ranks.world - 1 and len(ids_BT) > 2:
            raise torch.OutOfMemoryError("no room")
        return forward(self, ids_BT, targets_BT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GPT, "forward", failing)
        said = train_one(ranks, settings, folder)
    told = (
        "out of memory with 4 sequences per micro-step: continuing with 2 and 2 micro-steps instead"
    )
    assert [text for text in said if told in text] == said[:1] or not ranks.first


def step_on_whole_numbers(ranks: Ranks, world: int) -> dict[str, Tensor]:
    """Return the weights after two steps on gradients whose sums are exact in any order."""
    config = override(recipe("smoke"), SETTINGS)
    model = build(config.model, 1)
    optimisers = Optimisers(model, config.optim, ranks)
    generator = torch.Generator().manual_seed(5)
    for step in range(2):
        for weight in model.parameters():
            parts = torch.randint(-64, 64, (4, *weight.shape), generator=generator).float()
            weight.grad = parts.chunk(world)[ranks.rank].sum(0)
        optimisers.step(1.0, step)
    return {name: weight.detach() for name, weight in model.named_parameters()}


def record_departures(ranks: Ranks, settings: list[str], folder: Path) -> None:
    """Train, and write down when backward passes begin and end and which sums begin when."""
    backward, start_scatter = Tensor.backward, Ranks.start_scatter
    events: list[str] = []

    def watched(self: Tensor) -> None:
        events.append("backward")
        backward(self)
        events.append("over")

    def started(self: Ranks, whole: Tensor) -> Any:
        events.append(f"sum {tuple(whole.shape)}")
        return start_scatter(self, whole)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "backward", watched)
        patch.setattr(Ranks, "start_scatter", started)
        train_one(ranks, settings, folder)
    (folder / f"events-{ranks.rank}").write_text(json.dumps(events))
    dist.barrier()


def member(rank: int, out: str, settings: list[str]) -> None:
    """Be a rank of two, if below two, then one of four: starting processes is what takes long."""
    torch.set_num_threads(1)
    for world, extra in ((2, stop_and_go_on), (4, short_of_memory)):
        if rank < world:
            store = f"file://{out}/store-{world}"
            dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
            ranks, folder = Ranks(rank, world, rank), Path(out)
            train_one(ranks, settings, folder / f"{world}")
            extra(ranks, settings, folder / f"{world}-{extra.__name__}")
            record_departures(ranks, settings, folder / f"{world}-departures")
            weights = step_on_whole_numbers(ranks, world)
            if ranks.first:
                save_checkpoint(folder / f"{world}-exact", weights, {})
            dist.destroy_process_group()


@pytest.fixture(scope="module")
def trained(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of runs by one, two and four processes."""
    folder = tmp_path_factory.mktemp("ranks")
    train_one(Ranks(), settings, folder / "1")
    # To fork costs no imports, but forbids CUDA.
    how = "spawn" if torch.cuda.is_available() else "fork"
    mp.start_processes(member, args=(str(folder), settings), nprocs=4, start_method=how)
    return folder


def outcome(folder: Path) -> tuple[list[list[float]], dict[str, Tensor], dict[str, Any]]:
    """Return losses and norms, all state at the end, the checkpoint's facts."""
    figures = [[record["loss"], record["grad_norm"]] for record in read_steps(folder / STEPS)]
    return figures, *load_checkpoint(folder / CHECKPOINT)


@pytest.mark.long
@pytest.mark.parametrize("name", ["2", "4", "4-short_of_memory"])
def test_every_world_trains_the_same_model(trained: Path, name: str) -> None:
    """To rounding: gradients are summed in another order, the orthogonalisation is bfloat16."""
    figures, tensors, _ = outcome(trained / "1")
    other_figures, others, facts = outcome(trained / name)
    assert np.allclose(figures, other_figures, rtol=1e-4, atol=0)
    assert tensors.keys() == others.keys()
    for key, value in tensors.items():
        error = (value - others[key]).norm() / value.norm().clamp_min(1e-9)
        # A slice too few or a factor of the world's size would be tens of per cent.
        assert error < 0.03, (key, error)
    assert facts["rows"] == (2 if "memory" in name else 4)


@pytest.mark.parametrize("world", [2, 4])
def test_the_sharded_step_is_exact(trained: Path, world: int) -> None:
    """With sums that need no rounding, no bit depends on the number of ranks."""
    weights, _ = load_checkpoint(trained / f"{world}-exact")
    for name, value in step_on_whole_numbers(Ranks(), 1).items():
        assert torch.equal(weights[name], value), name


# Banks: two shapes of six matrices and two of three, cut where all are multiples of the ranks.
@pytest.mark.long
@pytest.mark.parametrize(("world", "banks"), [(2, 10), (4, 6)])
def test_sums_begin_during_the_last_backward_pass_of_a_step(
    trained: Path, world: int, banks: int
) -> None:
    """On every rank in the same order, with recurrence or without, and never before."""
    folder = trained / f"{world}-departures"
    events, *others = (json.loads((folder / f"events-{r}").read_text()) for r in range(world))
    assert all(other == events for other in others)
    kinds = [event.partition(" ")[0] for event in events]
    earlier = ["backward", "over"] * (ROWS // world // 4 - 1)
    # Two warm-up steps, in which memory may run out, send afterwards.
    warm, real = (["over", *["sum"] * banks], [*["sum"] * banks, "over"])
    assert kinds == 2 * [*earlier, "backward", *warm] + 4 * [*earlier, "backward", *real]
    sums = [event for event in events if event.startswith("sum")]
    assert sums == 6 * sums[:banks]


def test_several_ranks_stop_together_and_go_on_bit_for_bit(trained: Path) -> None:
    figures, tensors, _ = outcome(trained / "2")
    other_figures, others, _ = outcome(trained / "2-stop_and_go_on")
    assert figures == other_figures
    for key, value in tensors.items():
        assert torch.equal(value, others[key]), key
