"""Finds scores that depend on the token they are for, by patterns in a script's functions.

A syntax tree gives only names, so each finding is a reason to look at its line.
"""

import ast
import re
from collections.abc import Iterator

from fairway.audit.findings import Finding
from fairway.audit.records.trees import COST, TARGET, Function, Script, last_name
from fairway.base.nodes import walk

_HASHES = re.compile(r"hash|prime|key|bucket|mix|slot|ctx|^h\d?$|full", re.IGNORECASE)
_WEIGHT = re.compile(
    r"^_?(lam|lambda_?|lmbda|alpha|gate|w_nn|w_ppm|mix_?w|weight|mixing|blend)\w*$", re.IGNORECASE
)
# A cost that was known before the token: an average, or the cost of earlier tokens.
_BEFORE = re.compile(
    r"(ema|avg|mean|prev|last|running|history|expected|entropy|sum|best|train)", re.I
)
_TOKENS = re.compile(r"(tok|token|tgt|target|chunk|seq|ids|data|stream)", re.IGNORECASE)
_HINTS = re.compile(r"(hint|top|prob|gate|boost|valid|beta|conf|pred|expert|within|word)", re.I)
_STARTS = re.compile(r"(start|new_word|boundary|space|bnd|ws|is_word|begins)", re.IGNORECASE)
# Names of probabilities of the realised token.
_OF_TARGET = re.compile(
    r"(?:^|_)p(?:rob)?s?_(?:\w{1,12}_)?(?:tgt|targets?|gold|true|realised|realized|y)$|"
    r"(?:^|_)(?:tgt|target|gold)_p(?:rob)?s?$|^(?:\w{1,12}_)?p(?:rob)?s?_(?:tgt|target|gold)\b",
    re.IGNORECASE,
)
_HASH_CALLS = ("hash", "crc32", "adler32", "bitwise_xor", "xor")
_EACH = re.compile(r"(nll|ptl|per_tok|token_loss|logp|log_prob|tok_loss|p_tgt|prob_tgt)", re.I)
WHY = {
    "hashed-target": (
        "a hash key contains the target: a looked-up count belongs to all contexts in the bucket, "
        "and over all candidates such ratios sum to more than one"
    ),
    "target-gate": (
        "the cost of the realised symbol decides a mixing weight: this choice needs the symbol, "
        "and the probabilities no longer sum to one"
    ),
    "target-expert": (
        "an expert gives a hint for a place only if the token at that place begins a word, or only "
        "if it does not: its probabilities depend on that token"
    ),
    "oracle": (
        "the better of two costs of the realised token is taken: no distribution has both, and "
        "over all candidates such probabilities sum to more than one"
    ),
}


def check_peeks(script: Script, function: Function) -> Iterator[Finding]:
    """Yield findings where a function's probabilities seem to depend on the token they are for."""
    for code, find in (
        ("hashed-target", _hashed_target),
        ("target-gate", _gate_on_target),
        ("target-expert", _expert_on_target),
        ("oracle", _better_of_two),
    ):
        node = find(script, function)
        if node is not None:
            yield script.finding("warning", code, WHY[code], node)


def _hashed_target(script: Script, function: Function) -> ast.expr | None:
    """Return a masked hash that contains the target."""
    mixed: set[str] = set()
    every = _enumerated(script, function)
    for node in script.inside(function.body):
        value = getattr(node, "value", None)
        if value is None or not isinstance(
            node, ast.Assign | ast.AugAssign | ast.Return | ast.AnnAssign
        ):
            continue
        names = script.names(value) - every
        targeted = any(TARGET.match(name) for name in names)
        xored = isinstance(getattr(node, "op", None), ast.BitXor) or _is_mixed(script, value)
        multiplied = any(isinstance(n, ast.Mult) for n in script.walk(value))
        for inner in script.walk(value):
            if isinstance(inner, ast.BinOp) and isinstance(inner.op, ast.Mod | ast.BitAnd):
                left = script.names(inner.left) - every
                own = any(TARGET.match(n) for n in left) and (
                    _is_mixed(script, inner.left) or _is_summed(script, inner.left)
                )
                if own or left & mixed:
                    return inner
        into = script.assigned(node)
        if (
            targeted and xored and (multiplied or any(_HASHES.search(n) for n in names | into))
        ) or (names & mixed and not isinstance(node, ast.Return)):
            mixed |= into
        elif isinstance(node, ast.Assign):
            mixed -= into
    return None


def _is_mixed(script: Script, value: ast.expr) -> bool:
    """Return whether parts of an expression are combined like a hash."""
    for node in script.walk(value):
        if isinstance(node, ast.BitXor):
            return True
        if isinstance(node, ast.Call) and last_name(node) in _HASH_CALLS:
            return True
    return False


def _is_summed(script: Script, value: ast.expr) -> bool:
    """Return whether the target is added to a hash that was multiplied by a large number."""
    for node in script.walk(value):
        if not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.Add):
            continue
        for one, other in ((node.left, node.right), (node.right, node.left)):
            target = script.says(one, TARGET)
            if target and _is_grown(other) and script.says(other, _HASHES):
                return True
    return False


def _is_grown(node: ast.expr) -> bool:
    """Return whether a value is multiplied by a number above any size of a vocabulary."""
    if not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.Mult):
        return False
    numbers = [n.value for n in (node.left, node.right) if isinstance(n, ast.Constant)]
    return any(isinstance(n, int) and n >= 10_000 for n in numbers)


def _enumerated(script: Script, function: Function) -> set[str]:
    """Return names that take every candidate: loops over a vocabulary, or its `arange`."""
    found: set[str] = set()
    for node in script.inside(function.body):
        if isinstance(node, ast.For) and isinstance(node.target, ast.Name):
            if any(re.search(r"vocab|candidates|^V$", name) for name in script.names(node.iter)):
                found.add(node.target.id)
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            names = script.names(node.value)
            if "arange" in names and any(re.search(r"vocab|^V$", name) for name in names):
                found |= script.assigned(node)
    return found


def _gate_on_target(script: Script, function: Function) -> ast.expr | None:
    """Return a condition on the realised symbol's cost that decides a mixing weight."""
    read = _of_target(script, function)
    for node in script.walk(function):
        test, weights = _chosen(script, function, node)
        if test is None or not any(_WEIGHT.match(name) for name in weights):
            continue
        names = {n for n in script.names(test) if not _BEFORE.search(n)}
        if any(COST.search(n) or _OF_TARGET.search(n) for n in names) or names & read:
            return test
        if _at_target(script, test):
            return test
    return None


def _chosen(script: Script, function: Function, node: ast.AST) -> tuple[ast.expr | None, set[str]]:
    """Return a condition, and the names that it decides."""
    if isinstance(node, ast.If):
        return node.test, {n for s in node.body for n in script.assigned(s)}
    if not isinstance(node, ast.Assign | ast.Return) or node.value is None:
        return None, set()
    weights = script.assigned(node)
    if isinstance(node, ast.Return):
        weights = {function.name}
    if isinstance(node.value, ast.IfExp):
        return node.value.test, weights
    if isinstance(node.value, ast.Call) and len(node.value.args) == 3:
        return (node.value.args[0] if last_name(node.value) == "where" else None), weights
    return None, set()


def _of_target(script: Script, function: Function) -> set[str]:
    """Return names of values that were read from a distribution at the realised token."""
    found: set[str] = set()
    if not script.names(function) & {"gather", "take_along_axis"}:
        return found
    for node in script.walk(function):
        if not isinstance(node, ast.Assign):
            continue
        for inner in script.walk(node.value):
            gathers = isinstance(inner, ast.Call) and last_name(inner) in (
                "gather",
                "take_along_axis",
            )
            if gathers and script.says(inner, TARGET):
                found |= script.assigned(node)
    return found


def _at_target(script: Script, test: ast.expr) -> bool:
    """Return whether a condition asks about the realised token, for example the start of a word."""
    return any(
        isinstance(node, ast.Subscript)
        and script.says(node.slice, TARGET)
        and script.says(node.value, _STARTS)
        for node in script.walk(test)
    )


def _expert_on_target(script: Script, function: Function) -> ast.expr | None:
    """Return a condition on token i that guards the writing of a hint for place i."""
    for loop in script.walk(function):
        if not isinstance(loop, ast.For):
            continue
        index, token = _loop_names(loop)
        if not index:
            continue
        known: set[str] = {token} if token else set()
        flags: set[str] = set()
        for node in script.inside(loop.body):
            if isinstance(node, ast.Assign):
                names = script.names(node.value)
                if names & known and any(_STARTS.search(n) for n in names):
                    flags |= script.assigned(node)
                elif _reads_token(node.value, index):
                    known |= script.assigned(node)
            elif isinstance(node, ast.If):
                names = script.names(node.test)
                tests = names & flags or (names & known and any(_STARTS.search(n) for n in names))
                if tests and _writes(script, node.body, index):
                    return node.test
    return None


def _loop_names(loop: ast.For) -> tuple[str, str]:
    """Return the names of a loop's index and token, or ''."""
    target = loop.target
    if isinstance(target, ast.Name):
        return target.id, ""
    if isinstance(target, ast.Tuple) and len(target.elts) == 2:
        first, second = target.elts
        if isinstance(first, ast.Name) and isinstance(second, ast.Name):
            return first.id, second.id if _TOKENS.search(second.id) else ""
    return "", ""


def _reads_token(value: ast.expr, index: str) -> bool:
    """Return whether an expression is the token at this index."""
    return any(_is_item(node, index, _TOKENS) for node in walk(value))


def _is_item(node: ast.AST, index: str, of: re.Pattern[str]) -> bool:
    """Return whether an expression is the item at an index of an object with such a name."""
    match node:
        case ast.Subscript(value=ast.Name(id=name), slice=ast.Name(id=at)):
            return at == index and bool(of.search(name))
    return False


def _writes(script: Script, body: list[ast.stmt], index: str) -> bool:
    """Return whether statements write a hint at an index."""
    stores = (node for node in script.inside(body) if isinstance(node, ast.Assign))
    return any(_is_item(target, index, _HINTS) for node in stores for target in node.targets)


def _better_of_two(script: Script, function: Function) -> ast.expr | None:
    """Return a minimum over two costs of the realised token."""
    if not script.names(function) & {"minimum", "min", "fmin", "where"}:
        return None
    subtracted = {
        name
        for node in script.walk(function)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub)
        for name in script.names(node)
    }
    for node in script.walk(function):
        # The larger of two logarithms is subtracted to add them safely; that is not a choice.
        if isinstance(node, ast.Assign) and script.assigned(node) & subtracted:
            continue
        value = getattr(node, "value", None)
        if not isinstance(node, ast.Assign | ast.AugAssign | ast.Return) or value is None:
            continue
        for inner in script.walk(value):
            if isinstance(inner, ast.Call) and _is_better(script, inner):
                return inner
    return None


def _is_better(script: Script, call: ast.Call) -> bool:
    """Return whether a call returns the better of two costs of the realised token."""
    name, sides = last_name(call), [script.names(argument) for argument in call.args]
    if name == "where" and len(sides) == 3 and isinstance(call.args[0], ast.Compare):
        compared = [call.args[0].left, call.args[0].comparators[0]]
        both = {ast.dump(node) for node in compared}
        return both == {ast.dump(node) for node in call.args[1:]} and _are_costs(sides[1:])
    if name not in ("minimum", "min", "fmin") or len(sides) != 2:
        return False
    return _are_costs(sides)


def _are_costs(sides: list[frozenset[str]]) -> bool:
    return all(any(_EACH.search(n) and not _BEFORE.search(n) for n in side) for side in sides)
