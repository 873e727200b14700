"""Chooses how many sequences the model processes at once: all of a step, or as many as fit.

A step adds the gradients of its micro-batches, so that the sums are the same for any number of
them, up to rounding.
"""

from fairway.base.errors import UserError
from fairway.config.settings import Config
from fairway.machine.plan import Plan
from fairway.machine.ranks import Ranks
from fairway.model import need


def training_need(config: Config, plan: Plan, world: int = 1) -> need.Need:
    """Return the memory that training needs; UserError for a batch that cannot be shared."""
    train = config.train
    most = _wanted(config, _share(config, world))
    state = (world, config.optim.momentum_buffers, config.optim.newton > 0)
    return need.training(config.model, plan.way(), train.seq_len, most, *state)


def divisors(count: int, most: int) -> list[int]:
    """Return the divisors of a number up to `most`, the largest first."""
    return [n for n in range(most, 0, -1) if count % n == 0]


def rows_that_fit(config: Config, wanted: need.Need, world: int, free_bytes: float) -> int:
    """Return the largest micro-batch that fits the memory and divides a process's sequences."""
    return wanted.fitting(free_bytes, divisors(_share(config, world), wanted.most))


def micro_batch(config: Config, plan: Plan, ranks: Ranks, free_bytes: float) -> tuple[int, int]:
    """Return (sequences of this process in a step, of a micro-batch), the same on all ranks.

    If the device with the least memory cannot hold the requested size, the largest divisor that
    fits is used.
    """
    per_rank, wanted = _share(config, ranks.world), training_need(config, plan, ranks.world)
    fit = rows_that_fit(config, wanted, ranks.world, free_bytes)
    counts = divisors(per_rank, wanted.most)
    return per_rank, next(rows for rows in counts if not ranks.any(rows > fit))


def _share(config: Config, world: int) -> int:
    """Return the sequences of one rank per optimiser step, a multiple of a micro-batch."""
    train = config.train
    sequences = train.batch_tokens // train.seq_len
    per_rank, rest = divmod(sequences, world)
    if rest or per_rank == 0:
        raise UserError(
            f"train.batch_tokens {train.batch_tokens} is {sequences} sequences, which {world} "
            "processes cannot share evenly"
        )
    rows = _wanted(config, per_rank)
    if per_rank % rows:
        raise UserError(
            f"a rank's {per_rank} sequences are not a multiple of the {rows} that "
            f"train.micro_tokens {train.micro_tokens} allows; choose a divisor"
        )
    return per_rank


def _wanted(config: Config, per_rank: int) -> int:
    return min(per_rank, config.train.micro_tokens // config.train.seq_len)
