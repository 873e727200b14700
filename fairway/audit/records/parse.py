"""Reads Python of any recent version as a syntax tree, with the present Python, without running it.

Newer grammar is first rewritten, line for line: f-strings with quotes inside, type parameters, type
statements. If that does not help, only the part before the first error is read.
"""

import ast
import re
import warnings
from dataclasses import dataclass

# The deepest nesting of brackets that a parser accepts.
_MOST_NESTED = 150
_PREFIXES = {"f", "rf", "fr", "F", "rF", "fR", "Rf", "Fr", "RF", "FR"}
_TYPE = re.compile(r"^([ \t]*)type[ \t]+(\w+)[ \t]*(?=[\[=])", re.MULTILINE)
_GENERIC = re.compile(r"^[ \t]*(?:async[ \t]+)?(?:def|class)[ \t]+\w+(\[)", re.MULTILINE)
_EXCEPT = re.compile(r"^([ \t]*except[ \t]+)([\w.]+(?:[ \t]*,[ \t]*[\w.]+)+)([ \t]*:)", re.M)
# Replaces an f-string until the tree exists.
_PLACEHOLDER = "__fairway_joined__"
_DEEP = "its expressions are nested too deeply"
# The number of attempts to read a part of a script.
_MOST_CUTS = 5


@dataclass(frozen=True, slots=True)
class Parsed:
    """A syntax tree, or None, and a text that says what it leaves out, if anything."""

    tree: ast.Module | None
    why: str = ""


def parsed(source: str) -> Parsed:
    """Return the syntax tree of a source; this raises nothing for any source."""
    source = source.removeprefix("\ufeff").replace("\x00", " ")
    if _nested(source) > _MOST_NESTED:
        return Parsed(None, f"its brackets are nested more than {_MOST_NESTED} deep")
    tree, error = _tree(source)
    if tree is None and error is not None:
        try:
            source = rewritten(source)
        except RecursionError:
            return Parsed(None, _DEEP)
        tree, error = _tree(source)
    if tree is not None:
        return Parsed(_joined(tree, source))
    return _part(source, error) if error is not None else Parsed(None, _DEEP)


def _tree(source: str) -> tuple[ast.Module | None, SyntaxError | None]:
    """Return a tree, or the error; neither if the source is too deep."""
    try:
        with warnings.catch_warnings():
            # A foreign script may cause a warning in every line.
            warnings.simplefilter("ignore")
            return ast.parse(source), None
    except SyntaxError as error:
        return None, error
    except (ValueError, RecursionError, MemoryError):
        return None, None


def _part(source: str, error: SyntaxError) -> Parsed:
    """Return the part before an error, in whole statements."""
    lines = source.split("\n")
    end = min(error.lineno or 0, len(lines)) - 1
    for _ in range(_MOST_CUTS):
        if end <= 0:
            break
        tree, found = _tree("\n".join(lines[:end]))
        if tree is not None and tree.body:
            return Parsed(_joined(tree, source), f"it could be read only up to line {end}")
        # The statement with the error begins at an unindented line.
        end = min(end, (found.lineno if found is not None else None) or end) - 1
        while end > 0 and not re.match(r"[A-Za-z@]", lines[end]):
            end -= 1
    return Parsed(None, "it could not be read as Python")


def _nested(source: str) -> int:
    """Return the deepest nesting of brackets outside strings."""
    deepest = depth = at = 0
    while (match := _BRACKET.search(source, at)) is not None:
        at = match.end()
        if match["quote"] is not None:
            at = _string_end(source, at, match["quote"])
        elif match[0] in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif match[0] in ")]}":
            depth = max(0, depth - 1)
    return deepest


_BRACKET = re.compile(r"[\[({})\]]|#[^\n]*|(?P<quote>\"\"\"|'''|\"|')")


# ---------------------------------------------------------------------------------------------
# Newer grammar


def rewritten(source: str) -> str:
    """Return a source without grammar of newer versions of Python, line for line."""
    source = _without_nested_quotes(source)
    source = _EXCEPT.sub(r"\1(\2)\3", source)
    source = _without_parameters(source)
    return _TYPE.sub(r"\1\2 ", source)


def _without_parameters(source: str) -> str:
    """Return a source without the type parameters of functions, classes and type statements."""
    parts, at = [], 0
    for match in sorted([*_GENERIC.finditer(source), *_TYPE.finditer(source)], key=re.Match.start):
        start = match.start(1) if match.re is _GENERIC else match.end()
        if start < at or source[start : start + 1] != "[":
            continue
        end = _closing(source, start)
        parts += [source[at:start], "\n" * source.count("\n", start, end)]
        at = end
    return "".join(parts) + source[at:]


def _closing(source: str, start: int) -> int:
    """Return the index after the bracket that closes the one at `start`."""
    depth = 0
    for at in range(start, min(len(source), start + 2_000)):
        depth += (source[at] in "[(") - (source[at] in "])")
        if not depth:
            return at + 1
    return start + 1


def _without_nested_quotes(source: str) -> str:
    """Return a source with newer f-strings replaced by calls of a placeholder with their parts."""
    parts: list[str] = []
    at, after, was_call = 0, -1, False
    while (match := _TOKEN.search(source, at)) is not None:
        between = source[at : match.start()]
        parts.append(between)
        if match["quote"] is None:
            parts.append(match[0])
            at = match.end()
            continue
        call = ""
        if match["prefix"] in _PREFIXES:
            call, at = _fstring(source, match.end(), match["quote"])
        else:
            at = _string_end(source, match.end(), match["quote"])
        # Adjacent strings are joined; a call among them needs a plus.
        if after >= 0 and (call or was_call) and not source[after : match.start()].strip():
            parts.append("+")
        parts.append(call or source[match.start() : at])
        after, was_call = at, bool(call)
    return "".join(parts) + source[at:]


_TOKEN = re.compile(
    r"#[^\n]*|(?P<prefix>(?<![\w])[A-Za-z]{1,2}|)(?P<quote>\"\"\"|'''|\"|')", re.DOTALL
)


def _string_end(source: str, at: int, quote: str) -> int:
    """Return the index after a string whose text begins at `at`."""
    while at < len(source):
        if source.startswith(quote, at):
            return at + len(quote)
        if len(quote) == 1 and source[at] == "\n":
            return at
        at += 2 if source[at] == "\\" else 1
    return len(source)


def _fstring(source: str, at: int, quote: str) -> tuple[str, int]:
    """Return a call for an f-string of newer Python, or '' for others, and the end."""
    start, text, arguments, newer = at, "", [], False
    while at < len(source):
        if source.startswith(quote, at):
            arguments.append(repr(text))
            lost = source.count("\n", start, at) - sum(a.count("\n") for a in arguments)
            call = f"{_PLACEHOLDER}({','.join(arguments)}{chr(10) * max(0, lost)})"
            return call if newer else "", at + len(quote)
        char = source[at]
        if len(quote) == 1 and char == "\n":
            return "", at
        if source.startswith(("{{", "}}"), at):
            text += char
            at += 2
        elif char == "{":
            began = at
            inner, at = _replacement(source, at + 1)
            arguments += [repr(text), f"({inner})"]
            field, text = source[began:at], ""
            newer = newer or quote in field or any(c in field for c in "\\#")
            newer = newer or (len(quote) == 1 and (quote in field or "\n" in field))
        else:
            step = 2 if char == "\\" else 1
            text += source[at : at + step]
            at += step
    return "", at


def _replacement(source: str, at: int) -> tuple[str, int]:
    """Return the expression of a replacement field, and the index after its brace."""
    depth, parts, start = 0, [], at
    while at < len(source):
        match = _TOKEN.match(source, at)
        if match is not None and match["quote"] is not None:
            if match["prefix"] in _PREFIXES:
                began = at
                text, at = _fstring(source, match.end(), match["quote"])
                parts.append(text or source[began:at])
            else:
                end = _string_end(source, match.end(), match["quote"])
                parts.append(source[at:end])
                at = end
            continue
        char = source[at]
        if depth == 0 and char in "}:!" and not source.startswith("!=", at):
            break
        depth += (char in "([{") - (char in ")]}")
        parts.append(char)
        at += 1
    expression = "".join(parts).rstrip()
    if expression.endswith("=") and not expression.endswith(("==", "!=", "<=", ">=")):
        expression = expression[:-1]
    # The format of a field may contain fields.
    at, depth = max(at, start), 1
    while at < len(source) and depth:
        depth += (source[at] == "{") - (source[at] == "}")
        at += 1
    return expression or "None", at


class _Joined(ast.NodeTransformer):
    """Turns placeholders into f-strings."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if not (isinstance(node.func, ast.Name) and node.func.id == _PLACEHOLDER):
            return node
        values: list[ast.expr] = []
        for number, value in enumerate(node.args):
            if number % 2 == 0:
                values.append(value)
            else:
                values.append(ast.copy_location(ast.FormattedValue(value, -1, None), value))
        return ast.copy_location(ast.JoinedStr(values), node)


def _joined(tree: ast.Module, source: str) -> ast.Module:
    if _PLACEHOLDER not in source:
        return tree
    try:
        return _Joined().visit(tree)  # type: ignore[no-any-return]
    except RecursionError:
        return tree
