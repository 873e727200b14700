"""Memory of a GPU: what is left of it, and how to give back what nobody uses."""

import gc

import torch


def free_bytes(device: torch.device) -> float:
    """Return the bytes that new tensors can take: unbounded on a CPU.

    What PyTorch keeps for later use counts as free, what a share of the card forbids does not.
    """
    if device.type != "cuda":
        return float("inf")
    if device.index is None:
        # Not every version takes the current one for a device without a number.
        device = torch.device("cuda", torch.cuda.current_device())
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    left, total = torch.cuda.mem_get_info(device)
    # torch 2.11 cannot be asked for the share, later versions can.
    asked = getattr(torch.cuda, "get_per_process_memory_fraction", None)
    if asked is not None:
        left = min(left, asked(device) * total - torch.cuda.memory_reserved(device))
    return float(left + kept)


def give_back() -> None:
    """Return to the device what PyTorch keeps for later use, and what waits for the collector."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
