"""Finds the definitions that an entry can reach: statements of modules, methods of classes.

A class keeps the statements of its body, and the methods that Python or PyTorch call themselves.
Any other method stays if reachable code names it as an attribute or in a string.
"""

import ast
from dataclasses import dataclass, field

from fairway.base.nodes import children, walk
from fairway.bundle.modules import Module, bound_names

# Methods that libraries call on classes derived from theirs.
_CALLED = {"forward", "backward", "__call__"}


@dataclass
class Item:
    """A top-level statement: the names it defines, its module, and its methods by name.

    `acts_on` are definitions that it completes without being named itself, such as a registration.
    """

    module: str
    lazy: bool
    node: ast.stmt
    names: set[str]
    acts_on: set[str] = field(default_factory=set)
    methods: dict[str, ast.FunctionDef] = field(default_factory=dict)
    kept: bool = False


def items_of(modules: dict[str, Module]) -> list[Item]:
    """Return the statements of resolved modules in order, without docstrings."""
    return [
        _item(module, node)
        for module in modules.values()
        for node in module.tree.body
        if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
    ]


def _item(module: Module, node: ast.stmt) -> Item:
    item = Item(module.name, module.lazy, node, bound_names(node), _acts_on(node))
    if isinstance(node, ast.ClassDef):
        item.methods = {
            n.name: n for n in node.body if isinstance(n, ast.FunctionDef) and not _always(n.name)
        }
    return item


def _acts_on(node: ast.stmt) -> set[str]:
    """Return the definition that a bare call or a decorator belongs to."""
    roots: list[ast.expr] = node.decorator_list if isinstance(node, ast.FunctionDef) else []
    if isinstance(node, ast.Expr):
        roots = [node.value]
    found = set()
    for root in roots:
        while isinstance(root, ast.Call | ast.Attribute):
            root = root.func if isinstance(root, ast.Call) else root.value
        if isinstance(root, ast.Name) and root.id.startswith("G_"):
            found.add(root.id)
    return found


def _always(name: str) -> bool:
    return (name.startswith("__") and name.endswith("__")) or name in _CALLED


class _Reach:
    def __init__(self, items: list[Item]) -> None:
        self.owner = {name: item for item in items for name in item.names}
        self.attributes: set[str] = set()
        self.externals: set[str] = set()
        self.waiting: list[tuple[str, ast.FunctionDef]] = []
        self.methods: set[int] = set()

    def item(self, item: Item) -> None:
        if item.kept:
            return
        item.kept = True
        skipped = {id(node) for node in item.methods.values()}
        self.waiting += item.methods.items()
        self.node(item.node, skipped)

    def node(self, node: ast.AST, skipped: set[int]) -> None:
        for inner in _walk(node, skipped):
            if isinstance(inner, ast.Name):
                self.name(inner.id)
            elif isinstance(inner, ast.Attribute):
                self.attributes.add(inner.attr)
            elif isinstance(inner, ast.Constant) and isinstance(inner.value, str):
                self.attributes.add(inner.value)

    def name(self, name: str) -> None:
        if name in self.owner:
            self.item(self.owner[name])
        elif name.startswith("X_"):
            self.externals.add(name)

    def settle(self, items: list[Item]) -> None:
        """Add the methods that are called, and the code they reach, until nothing is added."""
        grown = True
        while grown:
            grown, waiting = False, self.waiting
            for item in items:
                if not item.kept and any(self.owner[name].kept for name in item.acts_on):
                    self.item(item)
                    grown = True
            self.waiting = []
            for name, node in waiting:
                if name in self.attributes:
                    self.methods.add(id(node))
                    self.node(node, set())
                    grown = True
                else:
                    self.waiting.append((name, node))


def _walk(node: ast.AST, skipped: set[int]) -> list[ast.AST]:
    """Return a node and all nodes in it, except the skipped ones."""
    found = [node]
    for inner in found:
        found += [child for child in children(inner) if id(child) not in skipped]
    return found


def shake(items: list[Item], start: ast.stmt) -> tuple[list[Item], set[str]]:
    """Return the items that a statement reaches, without unreached methods, and external names.

    Raises AssertionError for a name without a definition.
    """
    reach = _Reach(items)
    reach.node(start, set())
    reach.settle(items)
    kept = [item for item in items if item.kept]
    for item in kept:
        dropped = {id(n) for n in item.methods.values() if id(n) not in reach.methods}
        if isinstance(item.node, ast.ClassDef):
            item.node.body = [n for n in item.node.body if id(n) not in dropped] or [ast.Pass()]
    for item_node in (start, *(item.node for item in kept)):
        _require_known(item_node, reach)
    return kept, reach.externals


def _require_known(root: ast.stmt, reach: _Reach) -> None:
    for node in walk(root):
        if isinstance(node, ast.Name) and node.id.startswith("G_"):
            assert node.id in reach.owner, f"{node.id} is not defined anywhere"
