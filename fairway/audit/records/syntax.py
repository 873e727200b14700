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
    yield from _training_on_validation(script, functions)
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
# Validation tokens that reach an optimiser


def _training_on_validation(script: Script, functions: list[Function]) -> Iterator[Finding]:
    by_name = {function.name: function for function in functions}
    trains = {f.name for f in functions if _trains_unscored(script, f)}
    for function in functions:
        calls = sorted(
            (n for n in script.walk(function) if isinstance(n, ast.Call)), key=lambda n: n.lineno
        )
        written = next((c.lineno for c in calls if _WRITES.search(_called(c))), None)
        if written is None:
            continue
        for call in calls:
            name = _called(call).rpartition(".")[2]
            if call.lineno < written and (
                name in trains or _reaches(script, name, trains, by_name)
            ):
                yield _trained(script, function, call, name)


def _trains_unscored(script: Script, function: Function) -> bool:
    """Return whether a function trains on validation tokens that it has not scored itself."""
    own = {argument.arg for argument in script.walk(function.args) if isinstance(argument, ast.arg)}
    names = own | {n.id for n in script.walk(function) if isinstance(n, ast.Name)}
    if not any(_VALIDATION.search(name) for name in names):
        return False
    backward = _lines_of(script, function, "backward")
    if not backward or not _lines_of(script, function, "step"):
        return False
    # What is scored first is scored without gradients, and has a loss.
    scored = [
        n.lineno
        for n in script.walk(function)
        if isinstance(n, ast.With)
        and _ungraded(script, n)
        and any(_LOSS.search(name) for name in _names(script, n))
    ]
    return not scored or min(scored) > min(backward)


def _ungraded(script: Script, block: ast.With) -> bool:
    """Return whether a block runs without gradients."""
    names = _names(script, block.items[0].context_expr)
    return any(re.search("no_grad|inference_mode", name) for name in names)


def _lines_of(script: Script, function: Function, method: str) -> list[int]:
    """Return the lines in which a function calls a method."""
    calls = (n for n in script.walk(function) if isinstance(n, ast.Call))
    return [n.lineno for n in calls if isinstance(n.func, ast.Attribute) and n.func.attr == method]


def _reaches(
    script: Script, name: str, trains: set[str], by_name: dict[str, Function], depth: int = 3
) -> bool:
    """Return whether a function calls one that trains, over a few calls."""
    if name not in by_name or depth == 0 or _WRITES.search(name):
        return False
    inside = {
        _called(n).rpartition(".")[2] for n in script.walk(by_name[name]) if isinstance(n, ast.Call)
    } - {name}
    return bool(inside & trains) or any(
        _reaches(script, other, trains, by_name, depth - 1) for other in inside
    )


def _trained(script: Script, inside: Function, call: ast.Call, name: str) -> Finding:
    """Return the finding, as grave as the logs make it."""
    switches = _switches(script, inside, call)
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


def _switches(script: Script, function: Function, call: ast.Call) -> set[str]:
    """Return the names that the conditions around a call ask for."""
    found: set[str] = set()
    for node in script.walk(function):
        if isinstance(node, ast.If) and any(call in script.walk(part) for part in node.body):
            found |= {n.attr for n in script.walk(node.test) if isinstance(n, ast.Attribute)}
            found |= {n.id for n in script.walk(node.test) if isinstance(n, ast.Name)}
    return {name.lower() for name in found} - {"h", "args", "hparams", "hp", "cfg", "config"}


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
