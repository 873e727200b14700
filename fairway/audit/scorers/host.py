"""A process that holds one Python scorer and answers questions line by line.

`python -m fairway.audit.scorers.host SCORER` runs the scorer's code here, where the audit can limit
its time, stop it, and start it anew.
"""

import functools
import json
import math
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

import numpy as np

from fairway.base.errors import UserError, shown
from fairway.base.terminal import sentence
from fairway.config.settings import unknown_name
from fairway.recipes.own import call_in_file, call_registered, guarded, is_file, registered

# The entry points by which an installed package registers scorers.
GROUP = "fairway.scorers"


def command_of(scorer: str) -> list[str]:
    """Return the command of a process that answers for a scorer."""
    return [sys.executable, "-m", "fairway.audit.scorers.host", scorer]


def made(argument: str) -> Any:
    """Return the scorer that a file makes, or one that an installed package registers.

    Raises UserError for a name that nobody registers, and for an object that is no scorer.
    """
    if is_file(argument):
        called = call_in_file(argument, "scorer", None)
    elif (found := call_registered(GROUP, argument, "scorer", None)) is not None:
        called = found
    else:
        raise UserError(unknown_name("scorer", argument, registered(GROUP)))
    scorer = called.value
    for name in ("vocab_size", "score"):
        if not hasattr(scorer, name):
            raise UserError(
                f"{argument} made a {type(scorer).__name__} without '{name}'; a scorer has "
                "vocab_size and score(ids), see docs/RULES.md"
            )
    return scorer


def serve(argument: str, lines: Any, say: Callable[[dict[str, Any]], None]) -> None:
    """Describe the scorer, then answer every line; an error is an answer, too."""
    try:
        scorer = made(argument)
        size = guarded(lambda: int(scorer.vocab_size), f"vocab_size of {argument}")
        hello = {"vocab_size": size, "separate": getattr(scorer, "separate", False) is True}
        if hasattr(scorer, "row_tolerance_nats"):
            what = f"row_tolerance_nats of {argument}"
            hello["row_tolerance"] = guarded(lambda: float(scorer.row_tolerance_nats), what)
        say({**hello, "rows": hasattr(scorer, "row"), "bytes": hasattr(scorer, "byte_counts")})
        for line in lines:
            question = json.loads(line)
            found = guarded(functools.partial(_answer, scorer, question), argument)
            say(found if isinstance(found, dict) else _charges(found, argument))
    except UserError as error:
        say({"error": sentence(str(error))})


def _answer(scorer: Any, question: dict[str, Any]) -> dict[str, Any] | list[Any]:
    """Return the scorer's answer; of a score, what it gave for every token."""
    ids = np.array(question["ids"], np.int64)
    if "row" in question:
        return {"row": [float(nats) for nats in scorer.row(ids, question["row"])]}
    if "bytes" in question:
        return {"bytes": [float(count) for count in scorer.byte_counts(ids)]}
    # A scorer that never stops is cut at the length that the audit refuses.
    given = zip(scorer.score(ids), range(2 * len(ids) + 1), strict=False)
    return [answer for answer, _ in given]


def _charges(given: list[Any], name: str) -> dict[str, Any]:
    """Return positions and costs; UserError for anything else, and for no number."""
    found = []
    for answer in given:
        try:
            at, nats = answer
            found.append((int(at), float(nats)))
        except (TypeError, ValueError):
            raise UserError(
                f"score(ids) of {name} gave {shown(answer)}; it must give pairs (position, cost in "
                "nats)"
            ) from None
        if math.isnan(found[-1][1]):
            raise UserError(
                f"score(ids) of {name} gave NaN as the cost of token {found[-1][0]}; a cost is a "
                "number of nats, or infinite for a token that cannot come"
            )
    return {"index": [at for at, _ in found], "nats": [nats for _, nats in found]}


def main() -> None:
    """Answer on standard output; all prints of the scorer go to standard error."""
    # Prints of C code and of child processes go to the file descriptor, not to sys.stdout.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(value: dict[str, Any]) -> None:
        print(json.dumps(value), file=out, flush=True)

    with redirect_stdout(sys.stderr):
        serve(sys.argv[1], sys.stdin, say)


if __name__ == "__main__":
    main()
