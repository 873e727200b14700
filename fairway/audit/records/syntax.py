"""Known patterns of invalid scoring in a script's syntax tree: what a reviewer should look at.

Names are what a tree has to go by, so a pattern is at most a reason to look, with its line. One is
more: a routine that trains on validation tokens, runs before the model is written, and is switched
on in the logs.
"""

import ast
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from fairway.audit.findings import Finding

_TARGET = re.compile(r"^(tgt|target|targets|next_tok|next_token|gold|actual|realized|y)(_\w*)?$")
_COST = re.compile(r"(nll|logp|log_prob|logprob|_lp|^lp)", re.IGNORECASE)
_BYTES = re.compile(r"(n_?bytes|byte_len|blen|num_bytes|nb)$", re.IGNORECASE)
_WEIGHT = re.compile(r"^(lam|lambda_?|lmbda|alpha|gate|mix_w|w_nn)\w*$", re.IGNORECASE)
_INSTALLS = re.compile(r"\b(apt(-get)?\s+install|pip3?\s+install|conda\s+install)\b")
_FETCHES = re.compile(r"\b(curl|wget)\s+\S*(https?:|-)")
_NETWORK = (
    "urllib.request.urlopen", "urllib.request.urlretrieve", "requests.get", "requests.post",
    "hf_hub_download", "snapshot_download", "socket.create_connection", "load_dataset",
)  # fmt: skip
_SHELLS = ("os.system", "os.popen", "subprocess.")

# Nodes visited for one script, about a microsecond each; the bundle of recipe `best` takes 376,000.
MOST_STEPS = 800_000
# Nodes of an expression that is shown; longer ones take a place, not a text.
_MOST_SHOWN = 150
# Parts of a dotted name that are looked at.
_MOST_PARTS = 8

Function = ast.FunctionDef | ast.AsyncFunctionDef


class _TooMuch(Exception):  # noqa: N818 - what is found, not what went wrong here
    """A script whose patterns take more steps than there are."""


class _Walk:
    """`ast.walk` with a budget for all calls: what is nested would be visited many times."""

    def __init__(self) -> None:
        self.left = MOST_STEPS

    def __call__(self, node: ast.AST) -> Iterator[ast.AST]:
        """Yield a node and all below it; _TooMuch once no steps are left."""
        for found in ast.walk(node):
            self.left -= 1
            if self.left < 0:
                raise _TooMuch
            yield found


@dataclass(frozen=True, slots=True)
class Script:
    """A parsed script: its file as named in findings, its tree, and the logs' settings."""

    file: str
    tree: ast.Module
    settings: Mapping[str, str]
    walk: _Walk = field(default_factory=_Walk)


def patterns(script: Script) -> Iterator[Finding]:
    """Yield what a reviewer should look at."""
    try:
        yield from _patterns(script)
    except _TooMuch:
        why = f"the script is too deep: its patterns were checked for {MOST_STEPS:,} steps only"
        yield Finding("note", "syntax", why, script.file)


def _patterns(script: Script) -> Iterator[Finding]:
    functions = [n for n in script.walk(script.tree) if isinstance(n, Function)]
    for function in functions:
        yield from _target_in_hash(script, function)
        yield from _gate_on_target(script, function)
        yield from _uniform_spread(script, function)
    yield from _calls(script)


def _strings(script: Script, tree: ast.AST) -> Iterator[str]:
    for node in script.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def _names(script: Script, node: ast.AST) -> set[str]:
    """Return all names and attributes inside a node."""
    found = set()
    for inner in script.walk(node):
        if isinstance(inner, ast.Name):
            found.add(inner.id)
        elif isinstance(inner, ast.Attribute):
            found.add(inner.attr)
        elif isinstance(inner, ast.arg):
            found.add(inner.arg)
    return found


def _called(node: ast.Call) -> str:
    """Return the dotted name of what is called: at most its last parts."""
    parts: list[str] = []
    function = node.func
    while isinstance(function, ast.Attribute) and len(parts) < _MOST_PARTS:
        parts.append(function.attr)
        function = function.value
    if isinstance(function, ast.Name):
        parts.append(function.id)
    elif parts:
        # A method of a value that has no name.
        parts.append("")
    return ".".join(reversed(parts))


def _shown(script: Script, node: ast.AST) -> str:
    """Return an expression as text, or nothing if it is long."""
    few = sum(1 for _ in itertools.islice(script.walk(node), _MOST_SHOWN)) < _MOST_SHOWN
    return ast.unparse(node)[:120] if few else ""


# ---------------------------------------------------------------------------------------------
# Probabilities that depend on the token they are for


def _target_in_hash(script: Script, function: Function) -> Iterator[Finding]:
    for node in script.walk(function):
        if not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.Mod | ast.BitAnd):
            continue
        mixed = any(isinstance(n, ast.BitXor) for n in script.walk(node.left))
        if mixed and any(_TARGET.match(name) for name in _names(script, node.left)):
            why = (
                "a hash key holds the target: a count looked up by it belongs to whatever shares "
                "the bucket, and over all candidates such ratios sum to more than one"
            )
            text = _shown(script, node)
            yield Finding("warning", "hashed-target", why, script.file, node.lineno, text)
            return


def _gate_on_target(script: Script, function: Function) -> Iterator[Finding]:
    if not re.search(r"ppm|mix|ngram|tilt|gate", function.name, re.IGNORECASE):
        return
    for node in script.walk(function):
        if isinstance(node, ast.If):
            assigned = [t for s in node.body if isinstance(s, ast.Assign) for t in s.targets]
            test = node.test
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.IfExp):
            assigned, test = node.targets, node.value.test
        else:
            continue
        weights = [t.id for t in assigned if isinstance(t, ast.Name) and _WEIGHT.match(t.id)]
        if weights and any(_COST.search(name) for name in _names(script, test)):
            why = (
                "a mixing weight is chosen by what the realised symbol costs: whoever chooses so "
                "has seen it, and the probabilities no longer sum to one"
            )
            text = _shown(script, test)
            yield Finding("warning", "target-gate", why, script.file, node.lineno, text)
            return


def _uniform_spread(script: Script, function: Function) -> Iterator[Finding]:
    if not re.search(r"ppm|byte_?mix|mix", function.name, re.IGNORECASE):
        return
    for node in script.walk(function):
        if not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.Div):
            continue
        left, right = _names(script, node.left), _names(script, node.right)
        spreads = any(_COST.search(n) for n in left) and any(_BYTES.search(n) for n in right)
        if spreads and not any(n in ("sum", "total", "log") for n in left | right):
            why = (
                "a token's cost is spread evenly over its bytes: such shares are no distribution "
                "over bytes, and a mixture with one sums to more than one over the tokens"
            )
            text = _shown(script, node)
            yield Finding("warning", "uniform-spread", why, script.file, node.lineno, text)
            return


# ---------------------------------------------------------------------------------------------
# What a self-contained script does not do


def _calls(script: Script) -> Iterator[Finding]:
    for node in script.walk(script.tree):
        if not isinstance(node, ast.Call):
            continue
        name, line = _called(node), node.lineno
        if name.startswith(_SHELLS):
            words = " ".join(_strings(script, node))
            if _INSTALLS.search(words):
                why = "the script installs packages: it does not run as it was submitted"
                yield Finding("warning", "installs", why, script.file, line, words[:120])
            if _FETCHES.search(words):
                why = "the script fetches something: a submission must contain what it needs"
                yield Finding("warning", "network", why, script.file, line, words[:120])
        elif any(name == n or name.endswith(f".{n}") for n in _NETWORK):
            why = "the script reaches for the network: a submission must contain what it needs"
            yield Finding("warning", "network", why, script.file, line, name)
