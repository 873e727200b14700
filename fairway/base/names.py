"""Names of files in a run that one part of the package writes and another part reads."""

WEIGHTS, ARTIFACT, PROOF = "weights.safetensors", "artifact.fwy", "proof.fwp"
CHECKPOINT, TOKENIZER_FILE, COSTS = "checkpoint.safetensors", "tokenizer.model", "costs.json"


def trail_file(stage: str) -> str:
    """Return the name of the file that holds the trails of a stage of scoring."""
    return f"ledger-{stage}.jsonl.gz"


def recorded_file(stage: str) -> str:
    """Return the name of the file with the ledger entries of a stage for the first documents."""
    return f"costs-{stage}.json"
