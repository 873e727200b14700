"""A run's state on disk: named tensors and a JSON text in one safetensors file, nothing executable.

Written under a temporary name and renamed, so that a stop at any moment leaves the last good one.
"""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fairway.errors import UserError
from fairway.files import write_atomic


def save_checkpoint(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> int:
    """Write tensors and JSON-able facts atomically; return how many bytes are on disk."""
    # Views and shared storage are not storable: every tensor is stored as its own copy.
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    data = save(plain, metadata={"fairway": json.dumps(facts)})
    write_atomic(path, data)
    return len(data)


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return (tensors on the CPU, facts); a missing or damaged file is a UserError."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; there is nothing to resume from")
    try:
        with safe_open(path, framework="pt") as stream:
            facts = json.loads((stream.metadata() or {})["fairway"])
            names = stream.keys()
            tensors = {name: stream.get_tensor(name) for name in names}
    except (SafetensorError, KeyError, ValueError) as error:
        raise UserError(
            f"{path} is not a whole Fairway checkpoint ({error}); delete it to start over"
        ) from None
    return tensors, facts
