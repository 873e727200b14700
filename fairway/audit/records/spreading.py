"""Finds functions in a script that divide a token's probability among its bytes, by patterns."""

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
        "a token's cost is spread evenly over its bytes: such shares are not a distribution over "
        "bytes, and a mixture with them sums to more than one over the tokens"
    ),
    "first-byte-mix": (
        "a token is split into its first byte and the rest, and the rest is mixed with a byte "
        "model that never ends a token: over all candidates such probabilities sum to more than one"
    ),
}


def check_spreading(script: Script, function: Function) -> Iterator[Finding]:
    """Yield findings where a function computes probabilities of bytes from those of tokens."""
    names = script.names(function) | {function.name}
    if not all(any(map(pattern.search, names)) for pattern in (_MIXES, _BYTE_CODE)):
        return
    for code, find in (("uniform-spread", _uniform), ("first-byte-mix", _first_byte)):
        node = find(script, function)
        if node is not None:
            yield script.finding("warning", code, WHY[code], node)


def _uniform(script: Script, function: Function) -> ast.expr | None:
    """Return a cost divided by a number of bytes, or a probability to the power of 1 / bytes."""
    for node in script.walk(function):
        if isinstance(node, ast.Call) and node.args and _is_root(script, node):
            return node
        if not isinstance(node, ast.BinOp):
            continue
        counts = script.says(node.right, _BYTES)
        totals = any(script.says(side, _TOTALS) for side in (node.left, node.right))
        costs = script.says(node.left, COST) and not totals
        if isinstance(node.op, ast.Div) and counts and costs:
            return node
        power = node.right if isinstance(node.op, ast.Pow) else None
        over = isinstance(power, ast.BinOp) and isinstance(power.op, ast.Div)
        tokens = "len" in script.names(node.right) and script.says(node.left, _TOKEN)
        if over and (counts or tokens):
            return node
    return None


def _is_root(script: Script, node: ast.Call) -> bool:
    """Return whether a call is the exponential of a cost over a number of bytes: a root."""
    match node.args[0]:
        case ast.BinOp(op=ast.Div(), right=count) if last_name(node) == "exp":
            return "len" in script.names(count) or script.says(count, _BYTES)
    return False


def _first_byte(script: Script, function: Function) -> ast.expr | None:
    """Return a token's probability divided by the probability of its first byte."""
    for node in script.walk(function):
        if not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.Div | ast.Sub):
            continue
        sides = (node.left, node.right)
        logs = isinstance(node.op, ast.Div) or all(script.says(side, COST) for side in sides)
        first = [script.says(side, _FIRST) for side in sides]
        if logs and first == [False, True] and script.says(node.left, _TOKEN):
            return node
    return None
