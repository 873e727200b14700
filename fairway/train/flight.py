"""A step between its launch and the arrival of its figures."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fairway.train.clock import Clock


@dataclass(frozen=True, slots=True)
class Flight:
    """A launched step: the facts known to the host, and the tensors for its figures."""

    step: int
    now: float
    after: float
    lr: float
    looping: bool
    figures_2: Tensor
    landed: torch.cuda.Event | None
    launched_s: float

    def wait(self, clock: Clock) -> float:
        """Wait until the device has done the step; return the training seconds at its end."""
        if self.landed is None:
            # A CPU computes during the launch, so the step had already ended.
            return self.launched_s
        self.landed.synchronize()
        return clock.seconds()


def event_on(device: torch.device) -> torch.cuda.Event | None:
    """Return a mark after all launched work of a CUDA GPU; wait for any other device."""
    if device.type != "cuda":
        return None
    # Sleeping instead of active waiting frees the core for the thread that gathers batches.
    make: Callable[..., torch.cuda.Event] = torch.cuda.Event
    event = make(blocking=True)
    event.record()
    return event
