"""Memory of a device: what is free, how to release the cache, and the highest use."""

import gc
from pathlib import Path

import torch

from fairway.base.locks import limits

# Linux: writing to the first file resets the peak, which the second one contains.
_RESET, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def free_bytes(device: torch.device) -> float:
    """Return the bytes that new tensors can take: unbounded on a CPU.

    Memory that PyTorch keeps for later use counts as free; memory beyond a share of the card does
    not.
    """
    if device.type != "cuda":
        return float("inf")
    if device.index is None:
        # Not all versions use the current device if none is numbered.
        device = torch.device("cuda", torch.cuda.current_device())
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return untaken_bytes(device) + kept


def untaken_bytes(device: torch.device) -> float:
    """Return the bytes of a numbered GPU that PyTorch may still take from the device."""
    left, total = torch.cuda.mem_get_info(device)
    # torch 2.11 cannot return the share; later versions can.
    asked = getattr(torch.cuda, "get_per_process_memory_fraction", None)
    if asked is not None:
        left = min(left, asked(device) * total - torch.cuda.memory_reserved(device))
    return float(left)


def give_back() -> None:
    """Release memory that PyTorch keeps for later use, after collecting garbage."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def begin_peak(device: str) -> None:
    """Reset the peak that `peak_bytes` returns, if the system supports it."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        _RESET.write_text("5")
    except OSError:
        return


def peak_bytes(device: str) -> int:
    """Return the most bytes in use since `begin_peak`: of tensors on a GPU, else resident.

    On systems that cannot reset the peak, it is that of the whole process.
    """
    if device == "cuda":
        return int(torch.cuda.max_memory_allocated())
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        lines = []
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")]
    known = limits()
    if found or known is None:
        return found[0] if found else 0
    return int(known.getrusage(known.RUSAGE_SELF).ru_maxrss) * 1024
