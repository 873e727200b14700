"""Parameters that every call gives the same constant: the constant takes their place.

Sound where all uses of a function are calls that can be seen: a function of the program's scope
that is never passed on, or a method whose name no other class and no library has.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from fairway.bundle.fold import fold_with
from fairway.bundle.modules import is_kernel, parameters
from fairway.bundle.shake import Item
from fairway.bundle.trees import Transformer, walk


@dataclass
class _Uses:
    """All calls of one function, and whether it is also used in another way."""

    function: ast.FunctionDef
    bound: bool
    calls: list[ast.Call]
    escapes: bool = False


def specialise(items: list[Item], libraries: frozenset[str]) -> bool:
    """Put constants in place of such parameters, here and in all calls; return whether any was."""
    changed = False
    for uses in _uses_by_function(items, libraries):
        if uses.escapes or not uses.calls or not _plain(uses):
            continue
        for parameter in list(_candidates(uses)):
            value = _common(uses, parameter)
            if isinstance(value, ast.Constant):
                _replace(uses, parameter, value)
                changed = True
    return changed


def drop_empty(items: list[Item], libraries: frozenset[str]) -> bool:
    """Remove calls of functions that do nothing, and values that nobody reads; return if any."""
    empty = {
        name for name, uses in _by_name(items, libraries).items() if _does_nothing(uses.function)
    }
    dropper = _Dropper(empty)
    for item in items:
        dropper.visit(item.node)
    return dropper.dropped


def _does_nothing(function: ast.FunctionDef) -> bool:
    return all(isinstance(node, ast.Pass) for node in function.body)


class _Dropper(Transformer):
    def __init__(self, empty: set[str]) -> None:
        self.empty, self.dropped = empty, False
        self.read: set[str] | None = None

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        outermost = self.read is None and not is_kernel(node)
        if outermost:
            self.read = {
                n.id
                for n in walk(node)
                if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Store)
            } | {name for n in walk(node) if isinstance(n, ast.Nonlocal) for name in n.names}
        self.generic_visit(node)
        if outermost:
            self.read = None
        return node

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        target = node.targets[0]
        single = isinstance(target, ast.Name) and len(node.targets) == 1
        if self.read is None or not single or not isinstance(target, ast.Name):
            return node
        if target.id in self.read or _acts(node.value):
            return node
        self.dropped = True
        return ast.Pass()

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        call = node.value
        if not (isinstance(call, ast.Call) and _key(call.func) in self.empty):
            return node
        # What arguments compute may matter elsewhere; names and constants do not.
        if any(_acts(part) for part in (*call.args, call.func)):
            return node
        self.dropped = True
        return ast.Pass()


def _acts(node: ast.expr) -> bool:
    """Return whether computing an expression may do more than give a value."""
    kinds = (ast.Call, ast.Yield, ast.YieldFrom, ast.NamedExpr)
    harmless = ("int", "len", "float")
    return any(
        isinstance(n, kinds)
        and not (isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id in harmless)
        for n in walk(node)
    )


def _uses_by_function(items: list[Item], libraries: frozenset[str]) -> list[_Uses]:
    by_name = _by_name(items, libraries)
    _count(items, by_name)
    return list(by_name.values())


def _by_name(items: list[Item], libraries: frozenset[str]) -> dict[str, _Uses]:
    """Return the functions whose calls can be told by a name, which is .name for a method."""
    by_name: dict[str, _Uses] = {}
    methods: dict[str, list[ast.FunctionDef]] = {}
    for item in items:
        if isinstance(item.node, ast.FunctionDef) and not item.node.decorator_list:
            by_name[item.node.name] = _Uses(item.node, False, [])
        if isinstance(item.node, ast.ClassDef):
            for node in item.node.body:
                if isinstance(node, ast.FunctionDef):
                    methods.setdefault(node.name, []).append(node)
                    if node.name == "__init__" and not item.node.bases:
                        by_name[item.node.name] = _Uses(node, True, [])
    for name, found in methods.items():
        own = len(found) == 1 and name not in libraries and not name.startswith("__")
        if own and not found[0].decorator_list:
            by_name[f".{name}"] = _Uses(found[0], True, [])
    return by_name


def _count(items: list[Item], by_name: dict[str, _Uses]) -> None:
    called = set()
    nodes = [node for item in items for node in walk(item.node)]
    for node in nodes:
        if isinstance(node, ast.Call) and (key := _key(node.func)) in by_name:
            by_name[key].calls.append(node)
            called.add(id(node.func))
    for node in nodes:
        # A string may ask for an attribute.
        key = f".{node.value!s}" if isinstance(node, ast.Constant) else _key(node)
        if key in by_name and id(node) not in called:
            by_name[key].escapes = True


def _key(node: ast.AST) -> str:
    if isinstance(node, ast.Name):
        return node.id
    return f".{node.attr}" if isinstance(node, ast.Attribute) else ""


def _plain(uses: _Uses) -> bool:
    """Return whether the arguments of every call can be told apart."""
    a = uses.function.args
    starred = any(
        any(isinstance(arg, ast.Starred) for arg in call.args)
        or any(keyword.arg is None for keyword in call.keywords)
        for call in uses.calls
    )
    return not (starred or a.vararg or a.kwarg or a.posonlyargs)


def _candidates(uses: _Uses) -> Iterator[str]:
    """Yield the parameters that the function never binds anew."""
    stored = {
        n.id
        for n in walk(uses.function)
        if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)
    }
    inner = {
        arg.arg
        for f in walk(uses.function)
        if isinstance(f, ast.FunctionDef | ast.Lambda) and f is not uses.function
        for arg in parameters(f)
    }
    for arg in parameters(uses.function)[1 if uses.bound else 0 :]:
        if arg.arg not in stored | inner:
            yield arg.arg


def _position(uses: _Uses, parameter: str) -> int | None:
    names = [arg.arg for arg in uses.function.args.args][1 if uses.bound else 0 :]
    return names.index(parameter) if parameter in names else None


def _default(uses: _Uses, parameter: str) -> ast.expr | None:
    a = uses.function.args
    names = [arg.arg for arg in a.args]
    if parameter in names:
        at = names.index(parameter) - len(names) + len(a.defaults)
        return a.defaults[at] if at >= 0 else None
    return a.kw_defaults[[arg.arg for arg in a.kwonlyargs].index(parameter)]


def _argument(uses: _Uses, call: ast.Call, parameter: str) -> ast.expr | None:
    position = _position(uses, parameter)
    if position is not None and position < len(call.args):
        return call.args[position]
    passed = [keyword.value for keyword in call.keywords if keyword.arg == parameter]
    return passed[0] if passed else _default(uses, parameter)


def _common(uses: _Uses, parameter: str) -> ast.expr | None:
    values = [_argument(uses, call, parameter) for call in uses.calls]
    first = values[0]
    if not isinstance(first, ast.Constant):
        return None
    same = all(isinstance(v, ast.Constant) and _same(v.value, first.value) for v in values)
    return first if same else None


def _same(a: object, b: object) -> bool:
    return type(a) is type(b) and a == b


def _replace(uses: _Uses, parameter: str, value: ast.Constant) -> None:
    function, a = uses.function, uses.function.args
    position = _position(uses, parameter)
    for call in uses.calls:
        if position is not None and position < len(call.args):
            del call.args[position]
        call.keywords = [keyword for keyword in call.keywords if keyword.arg != parameter]
    if position is not None:
        at = position + (1 if uses.bound else 0)
        default = at - len(a.args) + len(a.defaults)
        if default >= 0:
            del a.defaults[default]
        del a.args[at]
    else:
        at = [arg.arg for arg in a.kwonlyargs].index(parameter)
        del a.kwonlyargs[at]
        del a.kw_defaults[at]
    fold_with({parameter: value}, function)
