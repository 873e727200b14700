"""A token's probability divided among its bytes: patterns in a script's functions."""

import ast
import re
from collections.abc import Iterator

from fairway.audit.findings import Finding
from fairway.audit.records.trees import COST, Function, Script, last_name

_BYTES = re.compile(
    r"^(n_?bytes?|num_bytes|byte_len\w*|blen|nb|n_?b|(rep|piece|tok|token|byte|char)_?lens?|per_tok_len"
    r"|tok_bytes|token_bytes|seq_len_bytes|n_by|bytes_per_token|m|k|L|nbytes)$"
)
_MIXES = re.compile(r"(lam|lambda|alpha|gate|w_nn|ppm|mix|blend|logaddexp)", re.IGNORECASE)
_BYTE_CODE = re.compile(r"(ppm|byte|lz77|cm_|order)", re.IGNORECASE)
_TOKEN = re.compile(r"(tok|token|full|joint|seq)\w*(_p|p|prob|lp|logp)?|^p_(tok|token|full)", re.I)
_FIRST = re.compile(
    r"(b0|b_0|byte_?0|first_?byte|byte0|firstbyte|p_first|head_byte)", re.IGNORECASE
)
_TOTALS = re.compile(
    r"^(sum|total|mean|log|val_loss|loss_sum|nll_sum|all)$|_sum$|total", re.IGNORECASE
)
WHY = {
    "uniform-spread": (
        "a token's cost is spread evenly over its bytes: such shares are no distribution over "
        "bytes, and a mixture with one sums to more than one over the tokens"
    ),
    "first-byte-mix": (
        "a token is split into its first byte and the rest, and the rest is mixed with a byte "
        "model that never ends a token: over all candidates such probabilities sum to more than one"
    ),
}


def check_spreading(script: Script, function: Function) -> Iterator[Finding]:
    """Yield where a function makes probabilities of bytes from those of tokens."""
    names = script.names(function) | {function.name}
    if not any(_MIXES.search(n) for n in names) or not any(
        _BYTE_CODE.search(n) for n in names | {function.name}
    ):
        return
    for code, find in (("uniform-spread", _uniform), ("first-byte-mix", _first_byte)):
        node = find(script, function)
        if node is not None:
            shown = script.shown(node)
            yield Finding("warning", code, WHY[code], script.file, node.lineno, shown)


def _uniform(script: Script, function: Function) -> ast.expr | None:
    """Return a cost divided by a number of bytes, or a probability raised to one over it."""
    for node in script.walk(function):
        if isinstance(node, ast.Call) and node.args and _is_root(script, node):
            return node
        if not isinstance(node, ast.BinOp):
            continue
        left, right = script.names(node.left), script.names(node.right)
        counts = any(_BYTES.match(n) for n in right)
        costs = any(COST.search(n) for n in left) and not any(
            _TOTALS.search(n) for n in left | right
        )
        if isinstance(node.op, ast.Div) and counts and costs:
            return node
        power = node.right if isinstance(node.op, ast.Pow) else None
        over = isinstance(power, ast.BinOp) and isinstance(power.op, ast.Div)
        if over and (counts or ("len" in right and any(_TOKEN.search(n) for n in left))):
            return node
    return None


def _is_root(script: Script, node: ast.Call) -> bool:
    """Return whether an exponential of a cost over a number of bytes is taken: a root."""
    inner = node.args[0]
    if (
        last_name(node) != "exp"
        or not isinstance(inner, ast.BinOp)
        or not isinstance(inner.op, ast.Div)
    ):
        return False
    right = script.names(inner.right)
    return "len" in right or any(_BYTES.match(n) for n in right)


def _first_byte(script: Script, function: Function) -> ast.expr | None:
    """Return a token's probability divided by that of its first byte."""
    for node in script.walk(function):
        if not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.Div | ast.Sub):
            continue
        left, right = script.names(node.left), script.names(node.right)
        logs = isinstance(node.op, ast.Div) or all(
            any(COST.search(n) for n in side) for side in (left, right)
        )
        first = [any(_FIRST.search(n) for n in side) for side in (left, right)]
        if logs and first == [False, True] and any(_TOKEN.search(n) for n in left):
            return node
    return None
