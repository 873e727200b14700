"""A flat program as text: imports, what every machine runs, what needs Triton, the recipe."""

import ast
from collections import Counter
from dataclasses import dataclass

import python_minifier

from fairway.bundle.flatten import Flat, entry_name
from fairway.bundle.shorten import identifiers, library_names, rename, shorten
from fairway.bundle.trees import Transformer, walk
from fairway.bundle.wrap import START

# Spinning threads cost more than they save; read once, when torch starts its pool.
_FIRST = 'import os\nos.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")\n'


@dataclass(frozen=True, slots=True)
class Program:
    """The text of a program, and how many characters of it, before the last step of minifying,
    came from which module, and from imports. `names` says what became of those that it shares."""

    text: str
    characters: dict[str, int]
    imports: int
    names: dict[str, str]


def program(flat: Flat, short: bool) -> Program:
    """Return the whole program as text under its own names, or as short as it gets.

    It ends by defining `START`, which runs the recipe: threads that compile or import would wait
    for a program that is still being imported.
    """
    tree, origins = _tree(flat)
    if short:
        taken = library_names(frozenset(_origin(name)[0] for name in flat.externals))
        names = shorten(tree, taken | {START})
    else:
        names = _readable(tree)
    # Its own name is the only one that is certainly no other's.
    started = ast.unparse(tree.body[-1]).removesuffix(")") + f", *{START})"
    tree.body[-1:] = ast.parse(f"def {START}(*{START}): {started}").body
    _Imports().visit(tree)
    ast.fix_missing_locations(tree)
    counts: Counter[str] = Counter()
    for node, module in origins:
        counts[module] += len(ast.unparse(node))
    text = _FIRST + ast.unparse(tree) + "\n"
    imports = len(text) - sum(counts.values())
    return Program(minified(text) if short else text, dict(counts), imports, names)


def minified(text: str) -> str:
    """Return a program in as few characters as Python needs; names stay."""
    small: str = python_minifier.minify(
        text,
        remove_annotations=False,
        remove_literal_statements=True,
        hoist_literals=False,
        rename_locals=False,
        rename_globals=False,
        preserve_shebang=False,
    )
    return small


def _tree(flat: Flat) -> tuple[ast.Module, list[tuple[ast.stmt, str]]]:
    """Return the program, and each statement of a module with that module's name."""
    eager = [(_copy(item.node), item.module) for item in flat.items if not item.lazy]
    lazy = [(_copy(item.node), item.module) for item in flat.items if item.lazy]
    used = {name for node, _ in eager for name in _externals(node)}
    body: list[ast.stmt] = [_import(name) for name in sorted(used)]
    body += [node for node, _ in eager]
    if lazy:
        needed = {name for node, _ in lazy for name in _externals(node)} - used
        absent = ast.ExceptHandler(ast.Name("ImportError", ast.Load()), None, [ast.Pass()])
        imports = [_import(name) for name in sorted(needed)]
        body.append(ast.Try(imports, [absent], [node for node, _ in lazy], []))
    body += ast.parse(f"{entry_name('main')}({entry_name('Config')}())").body
    return ast.fix_missing_locations(ast.Module(body, [])), [*eager, *lazy]


def _copy(node: ast.stmt) -> ast.stmt:
    """Return the same statement anew. Not by `copy`: the minifier hangs its trees on nodes that
    Python shares among all trees."""
    return ast.parse(ast.unparse(node)).body[0]


def _externals(node: ast.AST) -> set[str]:
    return {n.id for n in walk(node) if isinstance(n, ast.Name) and n.id.startswith("X_")}


def _origin(name: str) -> tuple[str, str]:
    """Return (module, name in it or "") of an outside name."""
    module, _, inside = name.removeprefix("X_").replace("_dot_", ".").partition("__")
    return module, inside


class _Mark(ast.Assign):
    """Stands where an import will, until the outside name has its alias."""

    origin: tuple[str, str]


def _import(name: str) -> ast.stmt:
    mark = _Mark([ast.Name(name, ast.Store())], ast.Constant(None))
    mark.origin = _origin(name)
    return mark


class _Imports(Transformer):
    """Turns the marks into imports."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        if not isinstance(node, _Mark):
            return super().generic_visit(node)
        module, inside = node.origin
        alias = ast.unparse(node.targets[0])
        renamed = None if alias == (inside or module) else alias
        if inside:
            return ast.ImportFrom(module, [ast.alias(inside, renamed)], 0)
        return ast.Import([ast.alias(module, renamed)])


def _readable(tree: ast.Module) -> dict[str, str]:
    """Give everything its own name again, with that of its module where two have one."""
    used = {name for node in walk(tree) for name in identifiers(node)}
    taken = {name for name in used if name[:2] not in ("G_", "X_")}
    long = sorted(name for name in used if name[:2] in ("G_", "X_"))
    counts = Counter(_leaf(name)[0] for name in long)
    mapping = {}
    for name in long:
        leaf, module = _leaf(name)
        alone = counts[leaf] == 1 and leaf not in taken
        mapping[name] = leaf if alone else f"{leaf}_{module}"
    assert len(set(mapping.values())) == len(mapping), "two things of one name"
    rename(tree, mapping)
    return mapping


def _leaf(name: str) -> tuple[str, str]:
    """Return a name as its module has it, and the module's last name."""
    module, _, inside = name[2:].partition("__")
    last = module.replace("_dot_", ".").rpartition("." if name[0] == "X" else "_")[2]
    return inside or last, last if inside else "module"
