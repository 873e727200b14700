"""Finds smaller errors: wrong training files, smoothed losses as scores, mixed documents."""

import ast
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase

from fairway.audit.findings import Finding
from fairway.audit.records.trees import Function, Script, targets

_TRAIN_FILES = re.compile(r"^_?train\w*(files?|glob|pattern|paths?|shards?)$", re.IGNORECASE)
# The name of a validation shard of the challenge.
_VAL_SHARD = "fineweb_val_000000.bin"
_SMEAR = re.compile(r"smear", re.IGNORECASE)
_BOS = re.compile(r"(^|_)bos(_|$)|not_bos|doc_start|is_first|document_start", re.IGNORECASE)
_PACKED = re.compile(r"cu_seqlens|varlen|doc(ument)?_mask|block_mask|doc_ids", re.IGNORECASE)


def check_lapses(script: Script) -> Iterator[Finding]:
    """Yield findings: training files with the validation text, smoothed scores, mixed documents."""
    yield from _train_files(script)
    yield from _smoothed(script)
    yield from _smeared(script)


def _train_files(script: Script) -> Iterator[Finding]:
    """Yield a pattern of training files that also matches the validation shards."""
    for node in script.walk(script.tree):
        names: list[str] = []
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            names = [getattr(t, "id", getattr(t, "attr", "")) for t in targets(node)]
            value: ast.AST = node.value
        elif isinstance(node, ast.keyword):
            names, value = [node.arg or ""], node.value
        if not any(_TRAIN_FILES.match(name) for name in names):
            continue
        for text in script.strings(value):
            pattern = text.replace("\\", "/").rpartition("/")[2]
            if "*" in pattern and fnmatchcase(_VAL_SHARD, pattern):
                why = (
                    f"the pattern of the training files also matches {_VAL_SHARD}: if both are in "
                    "one folder, the model trains on the validation text"
                )
                line = getattr(node, "lineno", getattr(value, "lineno", 0))
                yield Finding("warning", "train-glob", why, script.file, line, text[:120])
                return


def _smoothed(script: Script) -> Iterator[Finding]:
    """Yield a loss with label smoothing that evaluations also use."""
    for function in script.functions:
        if "training" in script.names(function) or not _evaluates(function):
            continue
        for node in script.walk(function):
            if not isinstance(node, ast.Call):
                continue
            for keyword in node.keywords:
                plain = isinstance(keyword.value, ast.Constant) and not keyword.value.value
                if keyword.arg == "label_smoothing" and not plain:
                    why = (
                        "the loss is smoothed in training and in scoring: such a score is not the "
                        "cost of the text"
                    )
                    shown = script.shown(keyword.value)
                    yield Finding("warning", "smoothed-eval", why, script.file, node.lineno, shown)
                    return


def _evaluates(function: Function) -> bool:
    """Return whether evaluations call a function, by its name or as a model."""
    return function.name == "forward" or bool(re.search(r"eval|score|valid", function.name))


def _smeared(script: Script) -> Iterator[Finding]:
    """Yield a mixing with the previous token that crosses documents which should be separate."""
    gates = [n for n in script.walk(script.tree) if isinstance(n, ast.ClassDef)]
    methods = {id(f) for n in gates if _SMEAR.search(n.name) for f in n.body}
    smears = [f for f in script.functions if _mixes_before(script, f, id(f) in methods)]
    if not smears or not script.says(script.tree, _PACKED):
        return
    for function in script.functions:
        of_gate = id(function) in methods or script.says(function, _SMEAR)
        if of_gate and any(_masks(script, node) for node in script.walk(function)):
            return
    why = (
        "attention keeps documents apart, but each token is mixed with the one before, and nothing "
        "masks the first token of a document: the end of another document leaks into it"
    )
    yield Finding("warning", "smear", why, script.file, smears[0].lineno, smears[0].name)


def _masks(script: Script, node: ast.AST) -> bool:
    """Return whether a node compares tokens with the token that begins a document."""
    if not isinstance(node, ast.Compare):
        return False
    names = script.names(node)
    number = any(isinstance(n, ast.Constant) and n.value in (0, 1, 2) for n in node.comparators)
    return any(_BOS.search(n) for n in names) or (
        number and any(re.search(r"ids|tok|input", n) for n in names)
    )


def _mixes_before(script: Script, function: Function, of_gate: bool) -> bool:
    """Return whether a function mixes each position with the one before: x[:, :-1] and a gate."""
    names = {function.name, *script.names(function)}
    if not of_gate and not any(_SMEAR.search(name) for name in names):
        return False
    for node in script.walk(function):
        match node:
            case ast.Slice(lower=None, upper=ast.UnaryOp(operand=ast.Constant(value=1))):
                return True
    return False
