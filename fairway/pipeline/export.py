"""An artifact for other programs: its dequantised weights as safetensors, and what they mean."""

from pathlib import Path
from typing import Any

from safetensors.torch import save

from fairway.api import ARTIFACT_FILE, TOKENIZER_FILE, load
from fairway.base.errors import UserError
from fairway.base.files import digest_bytes, write_atomic, write_json
from fairway.base.outputs import require_absent
from fairway.config.written import to_dict
from fairway.machine.plan import Plan
from fairway.pack.artifact import load_artifact

WEIGHTS, CONFIG = "model.safetensors", "config.json"
FORMATS = ("safetensors",)
# Nothing is computed: no need to try what is fastest here.
_PLAN = Plan("cpu", "float32", "highest", 1, "plain")


def export(path: Path, out: Path, kind: str, tokenizer: Path | None = None) -> dict[str, Any]:
    """Write the weights, config and tokenizer of an artifact into a folder; return their facts.

    Weights are float32 under the names of `fairway.model.gpt`, as `fairway.load` has them. Raises
    UserError for an unknown format, or files that are there already.
    """
    if kind not in FORMATS:
        raise UserError(f"format '{kind}' is unknown; choose one of {', '.join(FORMATS)}")
    require_absent(out, WEIGHTS, CONFIG, TOKENIZER_FILE)
    file = path / ARTIFACT_FILE if path.is_dir() else path
    model = load(file, tokenizer=tokenizer, plan=_PLAN)
    artifact = load_artifact(file)
    tensors = {name: value.float().contiguous() for name, value in artifact.state.items()}
    data = save(tensors, metadata={"format": "pt"})
    facts = {
        "architecture": "fairway",
        "model": to_dict(artifact.config),
        "provenance": artifact.header["provenance"],
        "tokenizer_digest": artifact.header["tokenizer_digest"],
        "weights_digest": digest_bytes(data),
        "parameters": sum(value.numel() for value in tensors.values()),
    }
    write_atomic(out / WEIGHTS, data)
    write_json(out / CONFIG, facts)
    write_atomic(out / TOKENIZER_FILE, model.tokenizer.data)
    return facts
