"""The ways to score a text: with a frozen model, or with one that learns from scored text."""

from collections.abc import Mapping
from typing import Any

from fairway.model.gpt import GPT
from fairway.score.evaluation import Evaluation
from fairway.score.ledger import Score
from fairway.score.lora import evaluate_lora
from fairway.score.sgd import evaluate_sgd
from fairway.score.sliding import evaluate_frozen

# The scores of a frozen artifact with which test-time training is compared: the name of the gain in
# results, the stage, and words for it.
BESIDE = {
    "side_by_side": ("quantised", "over windows side by side"),
    "sliding": ("sliding", "over the sliding window"),
    "unlearned": ("documents", "over the same documents without learning"),
}


def gains(stages: Mapping[str, Any]) -> dict[str, float] | None:
    """Return the gains of test-time training over scores of the artifact, in bits per byte.

    `stages` are those of results.json. Gains are None if nothing learned.
    """
    learned = stages.get("ttt")
    if learned is None:
        return None
    found = {name: stages.get(stage) for name, (stage, _) in BESIDE.items()}
    return {name: other["bpb"] - learned["bpb"] for name, other in found.items() if other}


def gains_told(stages: Mapping[str, Any]) -> str:
    """Return these gains in words, '' if nothing learned."""
    found = gains(stages) or {}
    return ", ".join(f"{found[name]:.4f} bpb {BESIDE[name][1]}" for name in found)


def evaluate(model: GPT, asked: Evaluation, way: str) -> Score:
    """Return the score of a text by `blocks` (windows side by side), `sliding`, `sgd` or `lora`.

    The weights of a model that learns change; load it again for another evaluation. Raises
    UserError for a text that is too short, LedgerError if the account is inconsistent.
    """
    if way == "sgd":
        return evaluate_sgd(model, asked)
    if way == "lora":
        return evaluate_lora(model, asked)
    return evaluate_frozen(model, asked, sliding={"blocks": False, "sliding": True}[way])
