"""What the model can have beside the recipes: each by its settings, tried wherever models are."""

from typing import Any

FEATURES: dict[str, dict[str, Any]] = {
    "values from x0": {"x0_values": True},
    "windows": {"window": "5 0 3"},
    "two lanes": {"lanes": 2},
    "caps by sign": {"softcap_skew": True, "softcap": 4.0},
    "gates of heads": {"attn_gate": "head"},
    "dense gates": {"attn_gate": "dense"},
    "sparse gates": {"attn_gate": "sparse"},
}

# As many at once as can be.
ALL: dict[str, Any] = {
    "x0_values": True, "lanes": 2, "window": "5 0 3", "softcap_skew": True, "softcap": 6.0,
    "attn_gate": "sparse", "gate_features": 5, "smear": True, "tie_embeddings": False,
}  # fmt: skip
