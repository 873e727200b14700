"""Compile every Triton kernel that a training step launches, for GPUs that are not here.

Run as a script, without the interpreter: `targets.py CAPABILITY ...`, such as 90 for an H100. A
launch compiles its kernel and does nothing else. Prints a line for each kernel and capability: the
kernel's name, the capability, and the bytes of shared memory that a block needs.
"""

import sys
from dataclasses import replace
from typing import Any

import torch
from triton import compile as compiled
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from fairway.config.settings import Config
from fairway.model.gpt import build
from fairway.model.gpu import products
from fairway.model.paths import prepare
from fairway.recipes import recipe
from fairway.train.muon import Optimisers

TYPES = {
    torch.float32: "fp32", torch.bfloat16: "bf16", torch.int64: "i64", torch.int32: "i32",
    torch.bool: "i1",
}  # fmt: skip
OPTIONS = ("num_warps", "num_stages")


def kind(value: Any) -> str:
    """Return the type of an argument in Triton's words."""
    if isinstance(value, torch.Tensor):
        return f"*{TYPES[value.dtype]}"
    if hasattr(value, "block_shape"):
        return f"tensordesc<{TYPES[value.base.dtype]}{list(value.block_shape)}>"
    return {bool: "i1", int: "i32", float: "fp32"}[type(value)]


class Launches:
    """Takes the place of Triton's launch: compiles each combination of argument types once."""

    def __init__(self, capabilities: list[int]) -> None:
        self.capabilities, self.done = capabilities, set[str]()

    def launch(self, kernel: Any, *args: Any, grid: Any, warmup: bool, **named: Any) -> None:
        """Compile a kernel for every capability."""
        given = dict(zip((p.name for p in kernel.params), args, strict=False)) | named
        fixed = {p.name: given[p.name] for p in kernel.params if p.is_constexpr}
        types = {p.name: kind(given[p.name]) for p in kernel.params if not p.is_constexpr}
        options = {name: named[name] for name in OPTIONS if name in named}
        source = ASTSource(kernel, types | dict.fromkeys(fixed, "constexpr"), fixed)
        key = f"{kernel.fn.__name__} {types} {fixed} {options}"
        for capability in self.capabilities if key not in self.done else ():
            made = compiled(source, GPUTarget("cuda", capability, 32), options)
            print(kernel.fn.__name__, capability, made.metadata.shared, flush=True)
        self.done.add(key)


def step(config: Config, looping: bool) -> None:
    """Launch a forward and backward pass of four blocks, and a step of the optimisers."""
    blocks = {"num_layers": 4, "parallel_from": 3, "loop_first": 1, "loop_last": 1}
    model = build(replace(config.model, **blocks), seed=1)
    model.set_looping(looping)
    prepare(model, torch.bfloat16, "plain", "fused", config.train.operand_bits)
    ids = torch.zeros(2, 130, dtype=torch.int64)
    torch.autograd.backward(model(ids[:, :-1], ids[:, 1:]))
    Optimisers(model, config.optim).step(0.1, 1)


def main() -> None:
    """Compile the kernels of three recipes for the capabilities on the command line."""
    launches, sizes = Launches([int(word) for word in sys.argv[1:]]), products._sizes
    JITFunction.run = lambda kernel, *args, **named: launches.launch(kernel, *args, **named)
    # Products in float32 are for the interpreter.
    products._sizes = lambda *of: sizes(*of) | {"WIDE": False}
    for name in ("best", "pr1858", "pr1874"):
        config = recipe(name)
        for looping in (False, True) if config.model.loop_extra else (False,):
            step(config, looping)


if __name__ == "__main__":
    main()
