"""Loops compiled by numba, and the memory hint that they need.

Compiled code is kept on disk if possible. With NUMBA_DISABLE_JIT=1 the same functions run as plain
Python, slowly and with the same results.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

Function = TypeVar("Function", bound=Callable[..., Any])

# To a type checker NumPy's numbers are not `int`; compiled code accepts both.
int64: Any = np.int64


def compiled(function: Function) -> Function:
    """Return a function compiled on its first call, without reordering of its arithmetic.

    It releases the interpreter's lock, and divides by zero as NumPy does. If no folder for compiled
    code can be written, every process compiles again.
    """
    return _compiled(function, False)


def compiled_sums(function: Function) -> Function:
    """Return a compiled function whose sums may be in any order, as vector instructions need.

    Products may be fused with sums, and the sign of a zero may change. NaN and infinity stay.
    """
    return _compiled(function, {"reassoc", "contract", "nsz"})


def _compiled(function: Function, fastmath: set[str] | bool) -> Function:
    options = {"nogil": True, "error_model": "numpy", "fastmath": fastmath}
    try:
        made = numba.njit(cache=True, **options)(function)
        _stamp(made, function)
    except RuntimeError:
        made = numba.njit(**options)(function)
    return cast(Function, made)


def _stamp(made: Any, function: Any) -> None:
    """Compile a stored function again when the module of a function it calls changes.

    numba checks only the function's own module, although the code of the others is included.
    Attributes are looked up by strings, because a bundle shortens names of attributes.
    """
    index = getattr(getattr(made, "_cache", None), "_cache_file", None)
    if index is None:
        return
    own, called = vars(index)["_source_stamp"], function.__globals__.values()
    stamps = {own}.union(*(getattr(value, "stamps", ()) for value in called))
    vars(made)["stamps"] = stamps
    vars(index)["_source_stamp"] = sorted(map(repr, stamps))


def _fetching(typing_context: Any, array: Any, index: Any) -> Any:
    """Emit a prefetch of an element; it changes no value."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind, _ = signature.args
        view = cgutils.create_struct_proxy(kind)(context, builder, arguments[0])
        place = builder.gep(view.data, [arguments[1]])
        pointer = builder.bitcast(place, ir.IntType(8).as_pointer())
        word = ir.IntType(32)
        hint = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [pointer.type, word, word, word]),
            "llvm.prefetch.p0",
        )
        # The arguments mean: for writing, in all caches, data.
        builder.call(hint, [pointer, word(1), word(3), word(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


def _unfetched(array: Any, index: Any) -> None:
    """Do nothing: plain Python has no such hint."""


# Asks the processor to load the cache line of array[index] before it is needed.
fetch: Any = _unfetched if numba.config.DISABLE_JIT else intrinsic(_fetching)
