"""Checks before training starts: data, disk and memory."""

import importlib.util
import shutil
from pathlib import Path

import torch

from fairway.base import units
from fairway.base.errors import UserError
from fairway.base.room import Room, host_room
from fairway.config.settings import Config, ModelConfig
from fairway.data.shards import Tokens
from fairway.machine.plan import DTYPES, Plan

# Packages for the report and for stages that a bundle does not have.
_NEEDED = ("zstandard", "matplotlib")


def require_packages() -> None:
    """Raise UserError if a package is missing that a run imports only after its training."""
    for name in _NEEDED:
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"the package '{name}' is missing; install Fairway with its dependencies"
            )


def preflight(
    config: Config, shards: list[Tokens], folder: Path, parameters: int, plan: Plan
) -> None:
    """Raise UserError if data, disk or memory are not enough for the run."""
    check_data(config, shards)
    # Second moments of inputs are about twice as many numbers as weights.
    optim = config.optim
    _check_disk(folder, parameters, optim.momentum_buffers + 2 * (optim.newton > 0))
    _check_memory(config, parameters, plan)


def check_data(config: Config, shards: list[Tokens]) -> None:
    """Raise UserError for less training text than one step needs."""
    rows = config.train.batch_tokens // config.train.seq_len
    windows = sum(max(0, len(s) - 1) // config.train.seq_len for s in shards)
    if windows < rows:
        raise UserError(
            f"the training text holds {windows} sequences of {config.train.seq_len} tokens and one "
            f"step needs {rows}; add text or lower train.batch_tokens"
        )


def _check_disk(folder: Path, parameters: int, kept: int) -> None:
    # Weights, average, momentum and two moments at most, twice: the old file stays until renamed.
    need_bytes = 2 * 4 * (3 + kept) * parameters + 50_000_000
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < need_bytes:
        raise UserError(
            f"the run folder's disk has {units.megabytes(free_bytes)} free and checkpoints need "
            f"about {units.megabytes(need_bytes)}; free some or choose another --out"
        )


def _check_memory(config: Config, parameters: int, plan: Plan) -> None:
    """Raise UserError if training cannot fit; on a GPU, if one sequence cannot."""
    on_gpu = plan.device == "cuda"
    room = Room(_device_memory()) if on_gpu else host_room()
    need_bytes = training_bytes(config, parameters, plan)
    if room is not None and room.bytes < need_bytes:
        remedy = "take a smaller model or train.seq_len" if on_gpu else "lower train.micro_tokens"
        raise UserError(
            f"about {units.megabytes(need_bytes)} of memory are needed and {room.told()}; {remedy}"
        )


def training_bytes(config: Config, parameters: int, plan: Plan) -> int:
    """Return the least bytes that training needs on the device; on a GPU for one sequence."""
    tokens = config.train.seq_len if plan.device == "cuda" else config.train.micro_tokens
    # In float32: weights, their average, their copy during the warm-up, gradients from backward and
    # stacked, momentum. In bfloat16: updates.
    state_bytes = ((5 + config.optim.momentum_buffers) * 4 + 2) * parameters
    return state_bytes + tokens * kept_numbers(config) * DTYPES[plan.dtype].itemsize


def visit_numbers(model: ModelConfig) -> int:
    """Return how many numbers of a token one visit of a layer keeps, by the plain formulas.

    They are about fourteen tensors of the width and two of the MLP's.
    """
    return 14 * model.dim + 2 * model.mlp_dim


def kept_numbers(config: Config) -> int:
    """Return how many numbers per token are kept for the backward pass, by the plain formulas.

    These are the numbers of all visits, and the logits twice. For 98,304 tokens of the seed system
    with recurrence that is 40.9 GB; its compiled code used 42.8 GB.
    """
    model = config.model
    visits = model.num_layers + model.loop_extra * (model.loop_last - model.loop_first + 1)
    return visits * visit_numbers(model) + 2 * model.vocab_size


def _device_memory() -> int:
    """Return the free bytes of the present GPU."""
    return torch.cuda.mem_get_info()[0]
