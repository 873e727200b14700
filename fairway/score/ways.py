"""The ways to score a text: by a frozen model, or by one that learns from what it has scored."""

from fairway.model.gpt import GPT
from fairway.score.evaluation import Evaluation
from fairway.score.ledger import Score
from fairway.score.lora import evaluate_lora
from fairway.score.sgd import evaluate_sgd
from fairway.score.sliding import evaluate_frozen


def evaluate(model: GPT, asked: Evaluation, way: str) -> Score:
    """Return the score of a text by `blocks` (windows side by side), `sliding`, `sgd` or `lora`.

    The weights of a model that learns change: load it anew for another evaluation. Raises UserError
    for a text that is too short, LedgerError if the account does not add up.
    """
    if way == "sgd":
        return evaluate_sgd(model, asked)
    if way == "lora":
        return evaluate_lora(model, asked)
    return evaluate_frozen(model, asked, sliding={"blocks": False, "sliding": True}[way])
