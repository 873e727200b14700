"""The parsed modules behind an entry, and the definition of every name in them.

`resolve` gives each definition of the package a unique name (`G_fairway_model_ops__norm`), so that
all modules can share one scope. Code that reads or imports it, under any alias, then uses that
name.
"""

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import fairway
from fairway.base.nodes import children, walk

ROOT = Path(fairway.__file__).parent
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_SCOPES = (ast.FunctionDef, ast.ClassDef, ast.Lambda, *_COMPREHENSIONS)


@dataclass
class Module:
    """A source file: its statements, and the imports behind its names.

    `internal` maps an alias to (module, name in it, or "" for the module itself), `external` to
    (module, name or ""). `lazy` modules are imported only when they are needed.
    """

    name: str
    tree: ast.Module
    lazy: bool
    defined: set[str] = field(default_factory=set)
    internal: dict[str, tuple[str, str]] = field(default_factory=dict)
    external: dict[str, tuple[str, str]] = field(default_factory=dict)


def source_file(module: str) -> Path | None:
    """Return the file of a module of the package, or None if there is none."""
    path = ROOT.joinpath(*module.split(".")[1:])
    found = [file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()]
    return found[0] if found and module.startswith("fairway.") else None


def source_text(module: str) -> str:
    """Return the source of a module of the package."""
    file = source_file(module)
    assert file is not None, f"no source file of {module}"
    return file.read_text("utf-8")


def load_modules(entry: str, instead: Mapping[str, str]) -> dict[str, Module]:
    """Return the entry and all modules that it imports, each after its imports; lazy ones last.

    `instead` has other texts for some modules.
    """
    found: dict[str, Module] = {}

    def visit(name: str, lazy: bool) -> None:
        if name in found:
            return
        text = instead[name] if name in instead else source_text(name)
        module = Module(name, ast.parse(text, name), lazy)
        found[name] = module
        waiting = _read_imports(module)
        for target, _ in module.internal.values():
            if target not in waiting:
                visit(target, lazy)
        # In the order of completion, so that every module comes after its imports.
        del found[name]
        found[name] = module
        for target in sorted(waiting):
            visit(target, True)

    visit(entry, False)
    eager = {name: module for name, module in found.items() if not module.lazy}
    return eager | found


def _read_imports(module: Module) -> set[str]:
    """Record the imports and definitions of a module; return its lazily imported modules."""
    waiting = set()
    for node in walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                assert not alias.name.startswith("fairway"), "import names from Fairway's modules"
                bound = alias.asname or alias.name.partition(".")[0]
                module.external[bound] = (alias.name if alias.asname else bound, "")
        elif isinstance(node, ast.ImportFrom):
            _read_from(module, node)
        elif target := lazy_import(node):
            module.internal[target[0]] = (target[1], "")
            waiting.add(target[1])
    for statement in module.tree.body:
        module.defined |= bound_names(statement)
    module.defined -= module.internal.keys() | module.external.keys()
    return waiting


def _read_from(module: Module, node: ast.ImportFrom) -> None:
    for alias in node.names:
        bound, origin = alias.asname or alias.name, node.module or ""
        if not origin.startswith("fairway"):
            module.external[bound] = (origin, alias.name)
        elif source_file(f"{origin}.{alias.name}"):
            module.internal[bound] = (f"{origin}.{alias.name}", "")
        else:
            module.internal[bound] = (origin, alias.name)


def lazy_import(node: ast.AST) -> tuple[str, str] | None:
    """Return (name, module) of `name = importlib.import_module("fairway...")`, else None."""
    if not (isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)):
        return None
    call, target = node.value, node.targets[0]
    if not (isinstance(call.func, ast.Attribute) and isinstance(target, ast.Name)):
        return None
    if ast.unparse(call.func) != "importlib.import_module":
        return None
    argument = call.args[0]
    assert isinstance(argument, ast.Constant), "a module imported by a name known here"
    return target.id, str(argument.value)


# ---------------------------------------------------------------------------------------------
# Scopes


def own_nodes(node: ast.AST) -> list[ast.AST]:
    """Return the nodes of a body that share its scope; inner scopes are listed but not entered."""
    found: list[ast.AST] = []
    _add_own(node, found)
    return found


def _add_own(node: ast.AST, found: list[ast.AST]) -> None:
    for child in children(node):
        found.append(child)
        if not isinstance(child, _SCOPES):
            _add_own(child, found)
        elif isinstance(child, _COMPREHENSIONS):
            # A walrus inside a comprehension binds a name outside it.
            found += [n.target for n in walk(child) if isinstance(n, ast.NamedExpr)]


def bound_names(node: ast.AST) -> set[str]:
    """Return the names that a statement or a whole body binds in its own scope."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    names: set[str] = set()
    for item in (node, *own_nodes(node)):
        if isinstance(item, ast.FunctionDef | ast.ClassDef):
            names.add(item.name)
        elif isinstance(item, ast.Name) and isinstance(item.ctx, ast.Store):
            names.add(item.id)
        elif isinstance(item, ast.ExceptHandler) and item.name:
            names.add(item.name)
        elif isinstance(item, ast.Import | ast.ImportFrom):
            names |= {a.asname or a.name.partition(".")[0] for a in item.names}
    return names


def parameters(function: ast.FunctionDef | ast.Lambda) -> list[ast.arg]:
    """Return all parameters of a function, in order."""
    a = function.args
    rest = [arg for arg in (a.vararg, a.kwarg) if arg]
    return [*a.posonlyargs, *a.args, *a.kwonlyargs, *rest]


def scope_of(function: ast.FunctionDef | ast.Lambda) -> set[str]:
    """Return the local names of a function, without those of inner functions."""
    names = {arg.arg for arg in parameters(function)}
    body = function.body if isinstance(function.body, list) else [function.body]
    for statement in body:
        names |= bound_names(statement)
        inside = (
            () if isinstance(statement, ast.FunctionDef | ast.ClassDef) else own_nodes(statement)
        )
        for node in (statement, *inside):
            if isinstance(node, ast.Global | ast.Nonlocal):
                names -= set(node.names)
    return names


def _imported_inside(function: ast.FunctionDef) -> set[str]:
    """Return the names from Fairway's modules that a function imports when it runs."""
    names: set[str] = set()
    for node in own_nodes(ast.Module(function.body, [])):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fairway"):
            names |= {alias.asname or alias.name for alias in node.names}
        elif target := lazy_import(node):
            names.add(target[0])
    return names


def is_kernel(node: ast.FunctionDef) -> bool:
    """Return whether a compiler or a registry reads the annotations of a function."""
    words = ("jit", "custom_op")
    return any(word in ast.unparse(item) for item in node.decorator_list for word in words)


class _Resolver(ast.NodeTransformer):
    """Gives every name that is not local its unique name in the whole program."""

    def __init__(self, module: Module, modules: dict[str, Module]) -> None:
        self.module, self.modules = module, modules
        self.scopes: list[set[str]] = []
        self.aliases = module.internal.keys() | module.external.keys()

    def _global(self, name: str) -> bool:
        return not any(name in scope for scope in self.scopes)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if self._global(node.id):
            node.id = unique(self.module, node.id, self.modules)
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        value = node.value
        if isinstance(value, ast.Name) and self._global(value.id):
            target, name = self.module.internal.get(value.id, ("", "-"))
            if not name:
                flat = unique(self.modules[target], node.attr, self.modules)
                return ast.copy_location(ast.Name(flat, node.ctx), node)
        self.generic_visit(node)
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        if self._global(node.name):
            node.name = unique(self.module, node.name, self.modules)
        node.decorator_list = [self.visit(item) for item in node.decorator_list]
        return self._function(node)

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        return self._function(node)

    def _function(self, node: ast.FunctionDef | ast.Lambda) -> ast.AST:
        a = node.args
        a.defaults = [self.visit(value) for value in a.defaults]
        a.kw_defaults = [value and self.visit(value) for value in a.kw_defaults]
        for arg in parameters(node):
            arg.annotation = arg.annotation and self.visit(arg.annotation)
        if isinstance(node, ast.Lambda):
            self.scopes.append(scope_of(node))
            node.body = self.visit(node.body)
        else:
            node.returns = node.returns and self.visit(node.returns)
            self.scopes.append(scope_of(node) - _imported_inside(node))
            node.body = self._body(node.body)
        self.scopes.pop()
        return node

    def _body(self, body: list[ast.stmt]) -> list[ast.stmt]:
        kept: list[ast.stmt] = []
        for statement in body:
            found = self.visit(statement)
            kept += found if isinstance(found, list) else [found] if found else []
        return kept or [ast.Pass()]

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        if self._global(node.name):
            node.name = unique(self.module, node.name, self.modules)
        node.decorator_list = [self.visit(item) for item in node.decorator_list]
        node.bases = [self.visit(item) for item in node.bases]
        node.keywords = [self.visit(item) for item in node.keywords]
        own = bound_names(ast.Module(node.body, []))
        body: list[ast.stmt] = []
        for statement in node.body:
            # Methods cannot use the names of their class directly.
            inner = not isinstance(statement, ast.FunctionDef)
            self.scopes.append(own if inner else set())
            if isinstance(statement, ast.FunctionDef):
                statement.decorator_list = [self.visit(item) for item in statement.decorator_list]
                body.append(self._method(statement))
            else:
                body.append(self.visit(statement))
            self.scopes.pop()
        node.body = body
        return node

    def _method(self, node: ast.FunctionDef) -> ast.stmt:
        self._function(node)
        return node

    def _comprehension(self, node: ast.AST) -> ast.AST:
        names = {
            name.id
            for generator in getattr(node, "generators", [])
            for name in walk(generator.target)
            if isinstance(name, ast.Name)
        }
        self.scopes.append(names)
        self.generic_visit(node)
        self.scopes.pop()
        return node

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _comprehension

    def visit_Import(self, node: ast.Import) -> ast.AST | None:
        return node if self.scopes else None

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
        own = (node.module or "").startswith("fairway")
        return None if own or not self.scopes else node

    def visit_Assign(self, node: ast.Assign) -> ast.AST | None:
        if lazy_import(node):
            return None
        self.generic_visit(node)
        return node


def unique(module: Module, name: str, modules: dict[str, Module]) -> str:
    """Return the unique name of a module's global name in the whole program."""
    if name in module.internal:
        target, inside = module.internal[name]
        return unique(modules[target], inside, modules) if inside else name
    if name in module.external:
        origin, inside = module.external[name]
        return "X_" + "__".join((origin, inside)).replace(".", "_dot_")
    if name in module.defined:
        return f"G_{module.name.replace('.', '_')}__{name}"
    return name


def resolve(modules: dict[str, Module]) -> None:
    """Rename, in every module, all references to definitions and imports of the modules."""
    for module in modules.values():
        resolver = _Resolver(module, modules)
        module.tree.body = resolver._body(module.tree.body)
