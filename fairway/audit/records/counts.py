"""Checks how a script counts bytes of pieces, and how many documents it validates on."""

import ast
import re
from collections.abc import Iterator, Sequence

from fairway.audit.findings import Finding
from fairway.audit.records.trees import Function, Script, targets

_MARKER = "\u2581"
_TABLE = re.compile(r"(byte|blen|piece_len|tok_len)", re.IGNORECASE)
_SPACES = re.compile(r"(space|leading)", re.IGNORECASE)
_VAL_DOCS = re.compile(r"^--?(n(um)?[-_])?val(idation)?[-_](n(um)?[-_])?(docs|documents)$")
_VAL_DOCS_NAME = re.compile(r"^(n(um)?_)?val(idation)?_(n(um)?_)?(docs|documents)$", re.IGNORECASE)
# The number of documents in the challenge's validation text.
_DOCUMENTS = 50_000


def check_bytes_of_pieces(scripts: Sequence[Script]) -> Iterator[Finding]:
    """Yield tables of bytes that count a piece wrongly, in the scripts of one record."""
    adds = any(_adds_space(script) for script in scripts)
    for script in scripts:
        for function in script.functions:
            names = script.names(function)
            if "id_to_piece" not in names and "IdToPiece" not in names:
                continue
            yield from _table(script, function, adds)


def _adds_space(script: Script) -> bool:
    """Return whether a script adds a byte for a leading space when it sums scores."""
    for node in script.walk(script.tree):
        value = None
        if isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Add):
            value = node.value
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            value = node.right
        if value is None or not script.says(value, _SPACES):
            continue
        if any(isinstance(n, ast.BitAnd) for n in script.walk(value)):
            return True
    return False


def _table(script: Script, function: Function, adds: bool) -> Iterator[Finding]:
    """Yield findings about a function that fills a table of bytes."""
    stores = [
        node
        for node in script.inside(function.body)
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Subscript)
        and script.says(node.targets[0].value, _TABLE)
        and "len" in script.names(node.value)
    ]
    for node in stores:
        one_more = isinstance(node.value, ast.BinOp) and isinstance(node.value.op, ast.Add)
        if adds and one_more and _is_one(node.value):
            why = (
                "a leading space is counted in the table of bytes, and again in the sum of the "
                "scores: there are too many bytes, and the score is too low"
            )
            yield script.finding("invalid", "space-twice", why, node)
            return
    texts = set(script.strings(function))
    stripped = any(_MARKER in text for text in texts) or script.names(function) & {
        "lstrip", "replace", "removeprefix", "decode", "decode_pieces",
    }  # fmt: skip
    if stores and not stripped:
        why = (
            "the marker of a leading space is counted as its three bytes of UTF-8: there are too "
            "many bytes, and the score is too low"
        )
        yield script.finding("warning", "marker-bytes", why, stores[-1])
        return
    asked = any("byte" in name.lower() for name in _asked(script, function))
    if stores and not asked and not any("0x" in text.lower() for text in texts):
        why = (
            "pieces for one byte (<0x..>) are counted by their names of six letters: a text with "
            "such pieces gets too many bytes"
        )
        yield script.finding("note", "byte-pieces", why, stores[-1])


def _asked(script: Script, function: Function) -> set[str]:
    """Return the names of the questions (`is...`) that a function asks a tokenizer."""
    return {
        node.func.attr
        for node in script.walk(function)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        and node.func.attr.lower().startswith("is")
    }  # fmt: skip


def _is_one(node: ast.expr) -> bool:
    assert isinstance(node, ast.BinOp)
    sides = (node.left, node.right)
    return any(isinstance(n, ast.Constant) and n.value in (1, 1.0) for n in sides)


def check_val_docs(script: Script) -> Iterator[Finding]:
    """Yield a finding if a preparation script takes too few documents for validation by default."""
    for node in script.walk(script.tree):
        found = _default(node)
        if found is not None and 0 < found < _DOCUMENTS:
            why = (
                f"by default the first {found:,} documents are for validation and all that follow "
                f"are training text; the challenge scores the first {_DOCUMENTS:,}, so the model "
                "is trained on some of them"
            )
            yield script.finding("warning", "val-docs-default", why, node)
            return


def _default(node: ast.AST) -> int | None:
    """Return the number of validation documents that a statement sets by default."""
    if isinstance(node, ast.Call):
        first = node.args[0] if node.args else None
        if isinstance(first, ast.Constant) and _VAL_DOCS.match(str(first.value)):
            for keyword in node.keywords:
                if keyword.arg == "default" and isinstance(keyword.value, ast.Constant):
                    value = keyword.value.value
                    return value if isinstance(value, int) else None
        return None
    if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Constant):
        names = [t.id for t in targets(node) if isinstance(t, ast.Name)]
        if any(_VAL_DOCS_NAME.match(name) for name in names) and isinstance(node.value.value, int):
            return node.value.value
    return None
