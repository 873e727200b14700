"""Makes one program from the modules that a recipe needs, as readable as they are.

Modules are found by their imports, and every name is resolved to one definition. Everything that
cannot be reached is left out, even single methods. The code stays the same, except for parts that
only readers need: docstrings, annotations of functions and variables, and the help of settings.
"""

import ast
import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fairway.base.nodes import walk
from fairway.bundle.modules import is_kernel, load_modules, resolve
from fairway.bundle.parts import texts_instead
from fairway.bundle.shake import Item, items_of, shake
from fairway.bundle.shorten import identifiers, rename
from fairway.bundle.wrap import START
from fairway.config.settings import Config

ENTRY = "fairway.pipeline.solo"
# Waiting threads that spin cost more than they save. Torch reads this when it starts its threads.
_FIRST = 'import os\nos.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")\n'


@dataclass(frozen=True, slots=True)
class Flat:
    """A program with its own names, and the modules of its statements, in order."""

    text: str
    origins: tuple[str, ...]

    def statements(self, tree: ast.Module) -> Iterator[tuple[str, ast.stmt]]:
        """Yield the statements of this program's tree, each with its module ("" for none)."""
        nodes: list[ast.stmt] = []
        for node in tree.body:
            nodes += [*node.body, *node.orelse] if isinstance(node, ast.Try) else [node]
        yield from zip(self.origins, nodes, strict=True)


def flatten(config: Config) -> Flat:
    """Return the code that a recipe's run needs, in one scope and in a working order.

    It ends by defining `START`, which runs the recipe. The import must end before the run starts:
    threads that compile or import would otherwise wait for it.
    """
    run = f"{_flat_name(ENTRY, 'main')}({_stated(config)}, *told)"
    start = ast.parse(f"def {START}(*told): {run}").body[0]
    kept, externals = _reached(ENTRY, texts_instead(config), _Stripper(), start)
    head = ast.parse(_FIRST).body
    return _program(kept, externals, head, [start])


def flatten_module(entry: str, names: Sequence[str], instead: Mapping[str, str]) -> Flat:
    """Return a module of the package as one module, with everything that the given names need.

    Docstrings, the help of settings, and all methods of classes in the module's folder stay.
    `instead` has other texts for some modules. Definitions that need optional packages are made
    only if these are installed.
    """
    wanted = ", ".join(_flat_name(entry, name) for name in names)
    start = ast.parse(f"({wanted},)").body[0]
    whole = (entry.rpartition(".")[0],)
    kept, externals = _reached(entry, instead, _Stripper(for_readers=True), start, whole)
    return _program(kept, externals, [], [])


def _reached(
    entry: str,
    instead: Mapping[str, str],
    stripper: "_Stripper",
    start: ast.stmt,
    whole: tuple[str, ...] = (),
) -> tuple[list[Item], set[str]]:
    """Return the items of a module, and of what it imports, that a statement reaches.

    Classes of modules whose names begin with one of `whole` keep all their methods.
    """
    modules = load_modules(entry, instead)
    for module in modules.values():
        stripper.visit(module.tree)
    resolve(modules)
    items = items_of(modules)
    for item in items:
        if item.module.startswith(whole):
            # The callers of its methods are not known here.
            item.methods = {}
    return shake(items, start)


def _flat_name(module: str, name: str) -> str:
    return f"G_{module.replace('.', '_')}__{name}"


def _stated(node: Any) -> str:
    """Return the expression for a part of a config, with the values that are not defaults."""
    if not dataclasses.is_dataclass(node):
        return repr(node)
    kind: Any = type(node)
    default = kind()
    values = {item.name: getattr(node, item.name) for item in dataclasses.fields(node)}
    differ = {name: v for name, v in values.items() if v != getattr(default, name)}
    said = ", ".join(f"{name}={_stated(value)}" for name, value in differ.items())
    return f"{_flat_name(kind.__module__, kind.__name__)}({said})"


class _Stripper(ast.NodeTransformer):
    """Removes parts that only readers need.

    Annotations that a program reads stay: those of fields and of compiled functions. In a program
    `for_readers`, docstrings and help stay, too.
    """

    def __init__(self, for_readers: bool = False) -> None:
        self.fields, self.for_readers = False, for_readers

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        fields, self.fields = self.fields, False
        if not is_kernel(node):
            node.returns = None
            self.generic_visit(node)
        self.fields = fields
        self._drop_docstring(node)
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        fields, self.fields = self.fields, True
        self.generic_visit(node)
        self.fields = fields
        self._drop_docstring(node)
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        self.generic_visit(node)
        if self.fields:
            return node
        return node.value and ast.copy_location(ast.Assign([node.target], node.value), node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id == "opt" and not self.for_readers:
            node.args[1] = ast.Constant("")
        return node

    def _drop_docstring(self, node: ast.FunctionDef | ast.ClassDef) -> None:
        if not self.for_readers and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]


# ---------------------------------------------------------------------------------------------
# The text of the program


def _program(
    items: list[Item], externals: set[str], first: list[ast.stmt], last: list[ast.stmt]
) -> Flat:
    """Return a program of imports, of items for every machine, and of items with more packages.

    The statements of `first` come first, and those of `last` last.
    """
    eager = [item for item in items if not item.lazy]
    lazy = [item for item in items if item.lazy]
    used = {n.id for item in eager for n in walk(item.node) if isinstance(n, ast.Name)} & externals
    nodes = [*walk(ast.Module([*(item.node for item in items), *last], []))]
    names = _own_names(nodes)
    rename(nodes, names)
    head = [*first, *(_import(name, names[name]) for name in sorted(used))]
    later = [_import(name, names[name]) for name in sorted(externals - used)]
    tree = ast.Module([*head, *(item.node for item in eager)], [])
    if lazy:
        absent = ast.ExceptHandler(ast.Name("ImportError", ast.Load()), None, [ast.Pass()])
        tree.body.append(ast.Try(later, [absent], [item.node for item in lazy], []))
    tree.body += last
    origins = [*(item.module for item in eager), *[""] * len(later)]
    lazily = [item.module for item in lazy]
    origins = [*[""] * len(head), *origins, *lazily, *[""] * len(last)]
    return Flat(ast.unparse(ast.fix_missing_locations(tree)) + "\n", tuple(origins))


def _import(name: str, alias: str) -> ast.stmt:
    """Return the import of an outside name under an alias."""
    module, _, inside = name.removeprefix("X_").replace("_dot_", ".").partition("__")
    renamed = None if alias == (inside or module) else alias
    if inside:
        return ast.ImportFrom(module, [ast.alias(inside, renamed)], 0)
    return ast.Import([ast.alias(module, renamed)])


def _own_names(nodes: Sequence[ast.AST]) -> dict[str, str]:
    """Return for every item its own name, with as much of its module's name as makes it unique."""
    used = {START, *identifiers(nodes)}
    left = {name for name in used if name[:2] in ("G_", "X_")}
    # Triton's interpreter recognises compile-time constants by this spelling of the annotation.
    mapping = {"X_triton_dot_language__": "tl"}
    left, taken, words = left - mapping.keys(), used - left, 0
    while left:
        told = {name: _told(name, words) for name in sorted(left)}
        counts = Counter(told.values())
        mapping |= {
            name: own for name, own in told.items() if counts[own] == 1 and own not in taken
        }
        taken, left, words = taken | set(mapping.values()), left - mapping.keys(), words + 1
    return mapping


def _told(name: str, words: int) -> str:
    """Return a name without its module, plus this number of last words of the module's name."""
    module, _, inside = name[2:].partition("__")
    path = ["module", *module.replace("_dot_", "_").split("_")]
    inside = inside or path.pop()
    return "_".join([inside, *path[max(len(path) - words, 0) :]])
