"""The bytes that tensors hold at a time on a CPU, as `torch.cuda.max_memory_allocated` tells them.

Every operation is seen, those of the way back included; what an operation takes and gives back
inside is not. Triton's interpreter leaves what a kernel read to the garbage collector, which is
therefore asked after every operation where kernels run: quickly, since it looks at new objects
alone. Elsewhere nothing waits for it, and asking would take most of the time.
"""

import gc
import importlib
import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class Meter(TorchDispatchMode):
    """While this lasts: the `bytes` of the tensors made inside that are left, and their `peak`."""

    def __init__(self, kernels: bool = False) -> None:
        super().__init__()
        self.kernels = kernels
        self.bytes = self.peak = 0
        self._known: dict[int, int] = {}

    def __enter__(self) -> "Meter":
        """Begin."""
        if self.kernels:
            # The first operation would import this, and each collection look through all of it.
            importlib.import_module("torch._dynamo")
            gc.collect()
            gc.freeze()
        super().__enter__()
        return self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count what it made."""
        given = {self._key(x) for x in tree_iter((args, kwargs)) if isinstance(x, Tensor)}
        found = func(*args, **(kwargs or {}))
        # Triton's interpreter sets memory that is there already into another tensor.
        made = () if "aten.set_" in str(func) else tree_iter(found)
        for x in made:
            if isinstance(x, Tensor) and self._key(x) not in given:
                self._count(x)
        return found

    @staticmethod
    def _key(x: Tensor) -> int:
        return x.untyped_storage()._cdata

    def _count(self, x: Tensor) -> None:
        storage = x.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        if self.kernels:
            gc.collect()
        self._known[key] = size
        weakref.finalize(storage, self._gone, key)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)

    def _gone(self, key: int) -> None:
        self.bytes -= self._known.pop(key)
