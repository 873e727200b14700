"""Optimisers of PyTorch that start without its compiler."""

import inspect
from typing import Any

import torch


def without_compiler(kind: Any) -> Any:
    """Return a class of `torch.optim` whose steps are the same and do not import the compiler.

    PyTorch wraps two methods so that code it compiles leaves them alone, and the wrappers import
    the compiler, which takes over two seconds of every process. Nothing here compiles them.
    """
    step = torch.no_grad()(inspect.unwrap(kind.step))
    plain = {"step": step, "add_param_group": inspect.unwrap(kind.add_param_group)}
    return type(kind.__name__, (kind,), plain)
