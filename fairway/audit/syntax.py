"""Known patterns of invalid scoring in a script's syntax tree: what a reviewer should look at.

Names are what a tree has to go by, so a pattern is at most a reason to look, with its line. One is
more: a routine that trains on validation tokens, runs before the model is written, and is switched
on in the logs.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fairway.audit.findings import Finding

_VALIDATION = re.compile(r"(^|_)val(_|$|id)", re.IGNORECASE)
_TARGET = re.compile(r"^(tgt|target|targets|next_tok|next_token|gold|actual|realized|y)(_\w*)?$")
_COST = re.compile(r"(nll|logp|log_prob|logprob|_lp|^lp)", re.IGNORECASE)
_BYTES = re.compile(r"(n_?bytes|byte_len|blen|num_bytes|nb)$", re.IGNORECASE)
_WEIGHT = re.compile(r"^(lam|lambda_?|lmbda|alpha|gate|mix_w|w_nn)\w*$", re.IGNORECASE)
_WRITES = re.compile(r"(^|_)(serialize|serialise|quantize|quantise|gptq|pack)(_|$)", re.IGNORECASE)
_LOSS = re.compile(r"(loss|nll|logits|cross_entropy|score)", re.IGNORECASE)
_INSTALLS = re.compile(r"\b(apt(-get)?\s+install|pip3?\s+install|conda\s+install)\b")
_FETCHES = re.compile(r"\b(curl|wget)\s+\S*(https?:|-)")
_NETWORK = (
    "urllib.request.urlopen", "urllib.request.urlretrieve", "requests.get", "requests.post",
    "hf_hub_download", "snapshot_download", "socket.create_connection", "load_dataset",
)  # fmt: skip
_SHELLS = ("os.system", "os.popen", "subprocess.")

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Script:
    """A parsed script: its file as named in findings, its tree, and the logs' settings."""

    file: str
    tree: ast.Module
    settings: Mapping[str, str]


def patterns(script: Script) -> Iterator[Finding]:
    """Yield what a reviewer should look at."""
    functions = [n for n in ast.walk(script.tree) if isinstance(n, Function)]
    yield from _training_on_validation(script, functions)
    for function in functions:
        yield from _target_in_hash(script, function)
        yield from _gate_on_target(script, function)
        yield from _uniform_spread(script, function)
    yield from _calls(script)


def strings(tree: ast.AST) -> Iterator[str]:
    """Yield all constant strings of a tree."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def _names(node: ast.AST) -> set[str]:
    """Return all names and attributes inside a node."""
    found = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    found |= {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}
    return found | {n.arg for n in ast.walk(node) if isinstance(n, ast.arg)}


def _called(node: ast.Call) -> str:
    return ast.unparse(node.func) if isinstance(node.func, ast.Name | ast.Attribute) else ""


# ---------------------------------------------------------------------------------------------
# Validation tokens that reach an optimiser


def _training_on_validation(script: Script, functions: list[Function]) -> Iterator[Finding]:
    by_name = {function.name: function for function in functions}
    trains = {f.name for f in functions if _trains_unscored(f)}
    for function in functions:
        calls = sorted(
            (n for n in ast.walk(function) if isinstance(n, ast.Call)), key=lambda n: n.lineno
        )
        written = next((c.lineno for c in calls if _WRITES.search(_called(c))), None)
        if written is None:
            continue
        for call in calls:
            name = _called(call).rpartition(".")[2]
            if call.lineno < written and (name in trains or _reaches(name, trains, by_name)):
                yield _trained(script, function, call, name)


def _trains_unscored(function: Function) -> bool:
    """Return whether a function trains on validation tokens that it has not scored itself."""
    own = {argument.arg for argument in ast.walk(function.args) if isinstance(argument, ast.arg)}
    names = own | {n.id for n in ast.walk(function) if isinstance(n, ast.Name)}
    if not any(_VALIDATION.search(name) for name in names):
        return False
    backward = _lines_of(function, "backward")
    if not backward or not _lines_of(function, "step"):
        return False
    # What is scored first is scored without gradients, and has a loss.
    scored = [
        n.lineno
        for n in ast.walk(function)
        if isinstance(n, ast.With)
        and re.search(r"no_grad|inference_mode", ast.unparse(n.items[0].context_expr))
        and any(_LOSS.search(name) for name in _names(n))
    ]
    return not scored or min(scored) > min(backward)


def _lines_of(function: Function, method: str) -> list[int]:
    """Return the lines in which a function calls a method."""
    calls = (n for n in ast.walk(function) if isinstance(n, ast.Call))
    return [n.lineno for n in calls if isinstance(n.func, ast.Attribute) and n.func.attr == method]


def _reaches(name: str, trains: set[str], by_name: dict[str, Function], depth: int = 3) -> bool:
    """Return whether a function calls one that trains, over a few calls."""
    if name not in by_name or depth == 0 or _WRITES.search(name):
        return False
    inside = {
        _called(n).rpartition(".")[2] for n in ast.walk(by_name[name]) if isinstance(n, ast.Call)
    } - {name}
    return bool(inside & trains) or any(
        _reaches(other, trains, by_name, depth - 1) for other in inside
    )


def _trained(script: Script, inside: Function, call: ast.Call, name: str) -> Finding:
    """Return the finding, as grave as the logs make it."""
    switches = _switches(inside, call)
    known = {s: script.settings[s] for s in switches if s in script.settings}
    off = [s for s, value in known.items() if value.strip().lower() in ("false", "0", "0.0", "")]
    what = f"{name}() trains on validation tokens before the model is written"
    if off:
        why = f"{what}, but the logs say that {off[0]} is off"
        return Finding("note", "val-training-off", why, script.file, call.lineno, name)
    if known or not switches:
        how = f"; the logs say that {next(iter(known))} is on" if known else ""
        why = f"{what}: the text is learned, then scored{how}"
        return Finding("invalid", "val-training", why, script.file, call.lineno, name)
    why = f"{what} if {' and '.join(sorted(switches))}; the logs do not say"
    return Finding("warning", "val-training", why, script.file, call.lineno, name)


def _switches(function: Function, call: ast.Call) -> set[str]:
    """Return the names that the conditions around a call ask for."""
    found: set[str] = set()
    for node in ast.walk(function):
        if isinstance(node, ast.If) and any(call in ast.walk(part) for part in node.body):
            found |= {n.attr for n in ast.walk(node.test) if isinstance(n, ast.Attribute)}
            found |= {n.id for n in ast.walk(node.test) if isinstance(n, ast.Name)}
    return {name.lower() for name in found} - {"h", "args", "hparams", "hp", "cfg", "config"}


# ---------------------------------------------------------------------------------------------
# Probabilities that depend on the token they are for


def _target_in_hash(script: Script, function: Function) -> Iterator[Finding]:
    for node in ast.walk(function):
        if not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.Mod | ast.BitAnd):
            continue
        mixed = any(isinstance(n, ast.BitXor) for n in ast.walk(node.left))
        if mixed and any(_TARGET.match(name) for name in _names(node.left)):
            why = (
                "a hash key holds the target: a count looked up by it belongs to whatever shares "
                "the bucket, and over all candidates such ratios sum to more than one"
            )
            text = ast.unparse(node)[:120]
            yield Finding("warning", "hashed-target", why, script.file, node.lineno, text)
            return


def _gate_on_target(script: Script, function: Function) -> Iterator[Finding]:
    if not re.search(r"ppm|mix|ngram|tilt|gate", function.name, re.IGNORECASE):
        return
    for node in ast.walk(function):
        if isinstance(node, ast.If):
            assigned = [t for s in node.body if isinstance(s, ast.Assign) for t in s.targets]
            test = node.test
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.IfExp):
            assigned, test = node.targets, node.value.test
        else:
            continue
        weights = [t.id for t in assigned if isinstance(t, ast.Name) and _WEIGHT.match(t.id)]
        if weights and any(_COST.search(name) for name in _names(test)):
            why = (
                "a mixing weight is chosen by what the realised symbol costs: whoever chooses so "
                "has seen it, and the probabilities no longer sum to one"
            )
            text = ast.unparse(test)[:120]
            yield Finding("warning", "target-gate", why, script.file, node.lineno, text)
            return


def _uniform_spread(script: Script, function: Function) -> Iterator[Finding]:
    if not re.search(r"ppm|byte_?mix|mix", function.name, re.IGNORECASE):
        return
    for node in ast.walk(function):
        if not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.Div):
            continue
        left, right = _names(node.left), _names(node.right)
        spreads = any(_COST.search(n) for n in left) and any(_BYTES.search(n) for n in right)
        if spreads and not any(n in ("sum", "total", "log") for n in left | right):
            why = (
                "a token's cost is spread evenly over its bytes: such shares are no distribution "
                "over bytes, and a mixture with one sums to more than one over the tokens"
            )
            text = ast.unparse(node)[:120]
            yield Finding("warning", "uniform-spread", why, script.file, node.lineno, text)
            return


# ---------------------------------------------------------------------------------------------
# What a self-contained script does not do


def _calls(script: Script) -> Iterator[Finding]:
    for node in ast.walk(script.tree):
        if not isinstance(node, ast.Call):
            continue
        name, line = _called(node), node.lineno
        if name.startswith(_SHELLS):
            words = " ".join(strings(node))
            if _INSTALLS.search(words):
                why = "the script installs packages: it does not run as it was submitted"
                yield Finding("warning", "installs", why, script.file, line, words[:120])
            if _FETCHES.search(words):
                why = "the script fetches something: a submission must contain what it needs"
                yield Finding("warning", "network", why, script.file, line, words[:120])
        elif any(name == n or name.endswith(f".{n}") for n in _NETWORK):
            why = "the script reaches for the network: a submission must contain what it needs"
            yield Finding("warning", "network", why, script.file, line, name)
