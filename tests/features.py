"""What the model can have beside the recipes: each by its settings, tried wherever models are."""

from typing import Any

FEATURES: dict[str, dict[str, Any]] = {
    "windows": {"window": "5 0 3"},
    "two lanes": {"lanes": 2},
    "gates of heads": {"gate_features": 12},
}

# As many at once as can be.
ALL: dict[str, Any] = {
    "lanes": 2, "window": "5 0 3", "gate_features": 5, "smear": True,
}  # fmt: skip
