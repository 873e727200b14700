"""Scores that depend on the token they are for: patterns in a script's functions.

Names are what a tree has to go by, so each finding is a reason to look, with its line.
"""

import ast
import re
from collections.abc import Iterator

from fairway.audit.findings import Finding
from fairway.audit.records.trees import COST, TARGET, Function, Script

_HASHES = re.compile(r"hash|prime|key|bucket|mix|slot|ctx|^h\d?$|full", re.IGNORECASE)
_WEIGHT = re.compile(
    r"^_?(lam|lambda_?|lmbda|alpha|gate|w_nn|w_ppm|mix_?w|weight|mixing|blend)\w*$", re.IGNORECASE
)
# A cost that was known before the token: an average, the cost of what came before.
_BEFORE = re.compile(
    r"(ema|avg|mean|prev|last|running|history|expected|entropy|sum|best|train)", re.I
)
_TOKENS = re.compile(r"(tok|token|tgt|target|chunk|seq|ids|data|stream)", re.IGNORECASE)
_HINTS = re.compile(r"(hint|top|prob|gate|boost|valid|beta|conf|pred|expert|within|word)", re.I)
_STARTS = re.compile(r"(start|new_word|boundary|space|bnd|ws|is_word|begins)", re.IGNORECASE)
_EACH = re.compile(r"(nll|ptl|per_tok|token_loss|logp|log_prob|tok_loss|p_tgt|prob_tgt)", re.I)
WHY = {
    "hashed-target": (
        "a hash key holds the target: a count looked up by it belongs to whatever shares the "
        "bucket, and over all candidates such ratios sum to more than one"
    ),
    "target-gate": (
        "a mixing weight is chosen by what the realised symbol costs: whoever chooses so has seen "
        "it, and the probabilities no longer sum to one"
    ),
    "target-expert": (
        "an expert speaks up for a place only if the token that stands there begins a word, or "
        "does not: its probabilities depend on that token"
    ),
    "oracle": (
        "the better of two costs of the realised token is taken: no distribution gives both, and "
        "over all candidates such probabilities sum to more than one"
    ),
}


def check_peeks(script: Script, function: Function) -> Iterator[Finding]:
    """Yield where a function's probabilities seem to depend on the token they are for."""
    for code, find in (
        ("hashed-target", _hashed_target),
        ("target-gate", _gate_on_target),
        ("target-expert", _expert_on_target),
        ("oracle", _better_of_two),
    ):
        node = find(script, function)
        if node is not None:
            shown = script.shown(node)
            yield Finding("warning", code, WHY[code], script.file, node.lineno, shown)


def _hashed_target(script: Script, function: Function) -> ast.expr | None:
    """Return a masked hash into which the target was mixed."""
    mixed: set[str] = set()
    every = _enumerated(script, function)
    for node in script.statements(function):
        value = getattr(node, "value", None)
        if value is None or not isinstance(
            node, ast.Assign | ast.AugAssign | ast.Return | ast.AnnAssign
        ):
            continue
        names = script.names(value) - every
        targeted = any(TARGET.match(name) for name in names)
        xored = isinstance(getattr(node, "op", None), ast.BitXor) or any(
            isinstance(n, ast.BitXor) for n in script.walk(value)
        )
        multiplied = any(isinstance(n, ast.Mult) for n in script.walk(value))
        for inner in script.walk(value):
            if isinstance(inner, ast.BinOp) and isinstance(inner.op, ast.Mod | ast.BitAnd):
                left = script.names(inner.left) - every
                own = any(TARGET.match(n) for n in left) and any(
                    isinstance(n, ast.BitXor) for n in script.walk(inner.left)
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


def _enumerated(script: Script, function: Function) -> set[str]:
    """Return names that go through all candidates: loops over a vocabulary, `arange` of one."""
    found: set[str] = set()
    for node in script.statements(function):
        if isinstance(node, ast.For) and isinstance(node.target, ast.Name):
            if any(re.search(r"vocab|candidates|^V$", name) for name in script.names(node.iter)):
                found.add(node.target.id)
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            names = script.names(node.value)
            if "arange" in names and any(re.search(r"vocab|^V$", name) for name in names):
                found |= script.assigned(node)
    return found


def _gate_on_target(script: Script, function: Function) -> ast.expr | None:
    """Return a condition on the realised symbol's cost by which a mixing weight is chosen."""
    for node in script.walk(function):
        test: ast.expr | None = None
        if isinstance(node, ast.If):
            assigned = {n for s in node.body for n in script.assigned(s)}
            test = node.test
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.IfExp):
            assigned, test = script.assigned(node), node.value.test
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            call = node.value
            name = getattr(call.func, "attr", getattr(call.func, "id", ""))
            assigned = script.assigned(node)
            test = call.args[0] if name == "where" and len(call.args) == 3 else None
        if test is None or not any(_WEIGHT.match(name) for name in assigned):
            continue
        if any(COST.search(n) and not _BEFORE.search(n) for n in script.names(test)):
            return test
    return None


def _expert_on_target(script: Script, function: Function) -> ast.expr | None:
    """Return a condition on token i under which a hint for place i is written."""
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
    """Return the names of a loop's place and token, as far as it has them."""
    target = loop.target
    if isinstance(target, ast.Name):
        return target.id, ""
    if isinstance(target, ast.Tuple) and len(target.elts) == 2:
        first, second = target.elts
        if isinstance(first, ast.Name) and isinstance(second, ast.Name):
            return first.id, second.id if _TOKENS.search(second.id) else ""
    return "", ""


def _reads_token(value: ast.expr, index: str) -> bool:
    """Return whether an expression is the token of this place."""
    for node in ast.walk(value):
        if (
            isinstance(node, ast.Subscript)
            and isinstance(node.slice, ast.Name)
            and node.slice.id == index
            and isinstance(node.value, ast.Name)
            and _TOKENS.search(node.value.id)
        ):
            return True
    return False


def _writes(script: Script, body: list[ast.stmt], index: str) -> bool:
    """Return whether statements write a hint for a place."""
    for node in script.inside(body):
        for target in node.targets if isinstance(node, ast.Assign) else []:
            if (
                isinstance(target, ast.Subscript)
                and isinstance(target.slice, ast.Name)
                and target.slice.id == index
                and isinstance(target.value, ast.Name)
                and _HINTS.search(target.value.id)
            ):
                return True
    return False


def _better_of_two(script: Script, function: Function) -> ast.expr | None:
    """Return a minimum over two costs of the realised token."""
    subtracted = {
        name
        for node in script.walk(function)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub)
        for name in script.names(node)
    }
    for node in script.walk(function):
        if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Call):
            continue
        call = node.value
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        if name not in ("minimum", "min", "fmin") or len(call.args) != 2:
            continue
        sides = [script.names(argument) for argument in call.args]
        each = all(any(_EACH.search(n) and not _BEFORE.search(n) for n in s) for s in sides)
        # The largest of two logarithms is subtracted to add them safely: that is no choice.
        if each and not script.assigned(node) & subtracted:
            return call
    return None
