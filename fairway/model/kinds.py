"""The kind of a parameter: its optimiser, its initial values, its place in an artifact.

Every class of the model declares the kinds of its own parameters. The optimiser, the quantiser and
the artifact's layout read the declaration; a parameter without one is an error that names it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

# matrix: trained by Muon. embed, scalar: by AdamW, each with its own rate.
Group = Literal["matrix", "embed", "scalar"]
# A function from a shape and a random generator to initial values.
Start = Callable[[torch.Size, torch.Generator], Tensor]


@dataclass(frozen=True, slots=True)
class Kind:
    """A parameter's group, its initial value, and its section of an artifact if it is coded there.

    A kind without a section is kept as float16.
    """

    group: Group
    start: Start
    section: str = ""


def zeros(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Return zeros."""
    return torch.zeros(shape)


def ones(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Return ones."""
    return torch.ones(shape)


def constant(value: float) -> Start:
    """Return initial values that are all one number."""
    return lambda shape, generator: torch.full(shape, value)


def first_one(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Return a first row of ones and other rows of zeros."""
    value = torch.zeros(shape)
    value[0] = 1.0
    return value


def orthogonal(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Return a matrix with orthonormal rows or columns, drawn at random."""
    value = torch.empty(shape)
    nn.init.orthogonal_(value, generator=generator)
    return value


def normal(deviation: float) -> Start:
    """Return initial values from a normal distribution around 0."""

    def drawn(shape: torch.Size, generator: torch.Generator) -> Tensor:
        return torch.randn(shape, generator=generator) * deviation

    return drawn


def matrix(section: str, start: Start = orthogonal) -> Kind:
    """Return the kind of a matrix that Muon trains."""
    return Kind("matrix", start, section)


def scalar(start: Start) -> Kind:
    """Return the kind of gains, mixes and gates of any shape."""
    return Kind("scalar", start)


def kind_in(kinds: Mapping[str, Kind], name: str) -> Kind:
    """Return the kind of a parameter by the end of its name; ValueError if none is declared."""
    parts = name.split(".")
    inner = ".".join(parts[2:]) if parts[0] == "blocks" else name
    if inner not in kinds:
        raise ValueError(
            f"the parameter {name} is declared nowhere; say in `declares` of its class what it is"
        )
    return kinds[inner]


def inside(prefix: str, kinds: Mapping[str, Kind]) -> dict[str, Kind]:
    """Return the kinds of a module's parameters as its parent names them."""
    return {f"{prefix}.{name}": kind for name, kind in kinds.items()}


def by_group(kinds: Mapping[str, Kind], names: Iterable[str]) -> dict[Group, list[str]]:
    """Return names by group, in their order; empty groups are included."""
    found: dict[Group, list[str]] = {"matrix": [], "embed": [], "scalar": []}
    for name in names:
        found[kind_in(kinds, name).group].append(name)
    return found
