"""Short names for a flat program, the same for the same program.

Three kinds of names. Those of the program's scope and of its attributes, methods, fields and
parameters that calls name are renamed by their spelling, everywhere alike; whatever a library, a
file or a string may know them by keeps its name. Names local to one function are renamed inside it,
in the order in which they stand, so that functions look alike.
"""

import ast
import builtins
import contextlib
import dataclasses
import functools
import hashlib
import importlib
import inspect
import io
import itertools
import json
import keyword
import pathlib
import string
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from types import FunctionType
from typing import Any

import numpy as np
import torch

from fairway.bundle.modules import bound_names, parameters, scope_of
from fairway.bundle.wrap import START
from fairway.bundle.trees import Transformer, children, walk

# Classes and modules whose attributes keep their names, wherever they stand.
_LIBRARIES: tuple[Any, ...] = (
    *(torch, torch.Tensor, torch.nn.Module, torch.nn.Embedding, torch.nn.functional, torch.cuda),
    *(torch.optim.Optimizer, torch.distributed, torch.ops, torch.autograd.Function, torch.dtype),
    *(torch.autograd.function.FunctionCtx, torch.Generator, torch.backends, torch.linalg),
    *(torch.cuda.Event, torch.cuda.Stream, torch.device, torch.Size, torch.nn, torch.optim),
    *(np, np.ndarray, np.random.Generator, np.random.PCG64, np.float64, np.dtype, np.memmap),
    *(pathlib.Path, str, bytes, int, float, list, dict, set, tuple, range, slice, object),
    *(io.BytesIO, io.TextIOWrapper, threading.Event, threading.Thread, threading.Semaphore),
    *(hashlib.sha256(), json, dataclasses, contextlib.ExitStack, importlib, itertools),
    *(FunctionType, BaseException, OSError, property, memoryview),
)
# Triton's language, which only some machines have: what kernels say besides our own names.
_KERNEL_WORDS = {"constexpr", "dtype", "element_ty", "T", "to"}
# What starts a program; and how Triton's interpreter knows the annotation of constants.
_KEPT = {START, "tl"}


@functools.cache
def library_names(modules: frozenset[str] = frozenset()) -> frozenset[str]:
    """Return the attribute names of libraries, and the parameters that calls to them may name."""
    names = {name for library in _LIBRARIES for name in _attributes(library)} | _KERNEL_WORDS
    for module in sorted(modules):
        if module.partition(".")[0] == "triton":
            continue
        library = importlib.import_module(module)
        names |= _attributes(library)
        if module.partition(".")[0] not in ("torch", "numpy"):
            classes = [value for value in vars(library).values() if inspect.isclass(value)]
            names |= {name for value in classes for name in _attributes(value)}
    called: tuple[Any, ...] = (torch, torch.nn.functional, torch.Tensor, np, torch.optim.SGD)
    for owner in (*called, pathlib.Path):
        for value in vars(owner).values():
            with contextlib.suppress(TypeError, ValueError):
                names |= set(inspect.signature(value).parameters)
    return frozenset(names | set(keyword.kwlist) | set(dir(builtins)))


def _attributes(library: Any) -> set[str]:
    """Return the attributes of a class or module, but for what was imported by now."""
    with warnings.catch_warnings():
        # Looking at a deprecated attribute is not using it.
        warnings.simplefilter("ignore")
        return {name for name in dir(library) if not inspect.ismodule(getattr(library, name, None))}


class Names:
    """What a flat program calls things, and what it must not rename."""

    def __init__(self, tree: ast.Module, fixed: frozenset[str]) -> None:
        self.tree = tree
        ours = _members(tree) | _named_parameters(tree)
        self.fixed = fixed | _strings(tree) | _fields_in_files(tree) | _weights(tree)
        self.fixed |= _foreign_keywords(tree)
        self.shared = {n for n in ours if n not in self.fixed and not n.startswith("__")}
        self.globals = {name for node in tree.body for name in bound_names(node)}

    def mapping(self) -> dict[str, str]:
        """Return short names for all that the whole program shares, the frequent ones first."""
        counts = Counter(name for node in walk(self.tree) for name in identifiers(node))
        ours = (self.shared | self.globals) & counts.keys() - _KEPT
        order = sorted(ours, key=lambda name: (-counts[name], name))
        taken = self.fixed | _KEPT
        return dict(zip(order, (n for n in _upper_names() if n not in taken), strict=False))


def identifiers(node: ast.AST) -> list[str]:
    """Return the names that stand in a node itself."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute):
        return [node.attr]
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.arg | ast.keyword):
        return [node.arg or ""]
    return []


def _upper_names() -> Iterator[str]:
    yield from string.ascii_uppercase
    for first, second in itertools.product(
        string.ascii_uppercase, string.ascii_letters + string.digits
    ):
        yield first + second
    for parts in itertools.product(string.ascii_uppercase, string.ascii_letters, string.digits):
        yield "".join(parts)


def _lower_names() -> Iterator[str]:
    yield from string.ascii_lowercase
    for first, second in itertools.product(string.ascii_lowercase, string.ascii_letters):
        yield first + second


def _strings(tree: ast.Module) -> set[str]:
    """Return the strings that may be names: of attributes, of keys, in launches of kernels."""
    return {
        node.value
        for node in walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if node.value.isidentifier()
    }


def _is_written(node: ast.ClassDef) -> bool:
    return node.name.endswith("Config") or node.name.split("_")[0] in ("Plan", "StepRecord", "Score")


def _fields_in_files(tree: ast.Module) -> set[str]:
    """Return the names of the fields that files hold: settings, plans, steps, scores."""
    return {
        item.target.id
        for node in tree.body
        if isinstance(node, ast.ClassDef) and _is_written(node)
        for item in node.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    }


def _weights(tree: ast.Module) -> set[str]:
    """Return what classes of PyTorch's modules keep: the names of weights in files."""
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and any("nn" in ast.unparse(b) for b in node.bases):
            found |= {
                n.attr
                for n in walk(node)
                if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)
            }
    return found


def _members(tree: ast.Module) -> set[str]:
    """Return the attributes that the program itself makes: methods, fields, what it assigns."""
    names = set()
    for node in walk(tree):
        if isinstance(node, ast.ClassDef):
            names |= bound_names(ast.Module(node.body, []))
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
    return names


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.Lambda]:
    for node in walk(tree):
        if isinstance(node, ast.FunctionDef | ast.Lambda):
            yield node


def _calls(tree: ast.AST) -> Iterator[ast.Call]:
    for node in walk(tree):
        if isinstance(node, ast.Call):
            yield node


def _named_parameters(tree: ast.Module) -> set[str]:
    """Return the parameters of functions here that some call passes by name."""
    passed = {k.arg for call in _calls(tree) for k in call.keywords if k.arg}
    return {arg.arg for f in _functions(tree) for arg in parameters(f) if arg.arg in passed}


def _callee(call: ast.Call) -> str:
    """Return the last name of what is called; a kernel stands before the brackets of its grid."""
    function = call.func
    while isinstance(function, ast.Subscript):
        function = function.value
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _unpacked(tree: ast.Module) -> set[str]:
    """Return what is called with a dictionary of arguments, whose keys are strings somewhere."""
    return {_callee(call) for call in _calls(tree) if any(k.arg is None for k in call.keywords)}


def _foreign_keywords(tree: ast.Module) -> set[str]:
    """Return the names that calls of functions from elsewhere pass."""
    defined = {n.name for n in walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    found = set()
    for call in _calls(tree):
        if _callee(call) not in defined:
            found |= {k.arg for k in call.keywords if k.arg}
    return found


# ---------------------------------------------------------------------------------------------
# Renaming


def shorten(tree: ast.Module, libraries: frozenset[str]) -> dict[str, str]:
    """Give every name of a flat program that is its own a short one; return the shared ones."""
    names = Names(tree, libraries)
    mapping = names.mapping()
    passed = {k.arg for call in _calls(tree) for k in call.keywords if k.arg}
    unpacked, words = _unpacked(tree), _strings(tree)
    for function in _outermost(tree):
        spread = getattr(function, "name", "") in unpacked
        _rename_locals(function, passed | words if spread else passed)
    rename(tree, mapping)
    return mapping


def rename(tree: ast.Module, names: dict[str, str]) -> None:
    """Rename by spelling, wherever a name stands: variables, attributes, parameters, keywords."""
    _Renamer(names).visit(tree)


def _outermost(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.Lambda]:
    """Yield functions that no other one contains, methods too."""
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, ast.FunctionDef | ast.Lambda):
            yield node
        else:
            waiting += children(node)


def _local_names(function: ast.FunctionDef | ast.Lambda) -> set[str]:
    """Return all names bound inside a function, in whatever scope of it."""
    names = set()
    for node in walk(function):
        if isinstance(node, ast.FunctionDef | ast.Lambda):
            names |= scope_of(node)
        elif isinstance(node, ast.comprehension):
            names |= {n.id for n in walk(node.target) if isinstance(n, ast.Name)}
    return names


def _rename_locals(function: ast.FunctionDef | ast.Lambda, passed: set[str]) -> None:
    """Rename what only this function knows; parameters that calls name are not its own."""
    named = {a.arg for f in _functions(function) for a in parameters(f)} & passed
    order: dict[str, str] = {}
    bound = [name for node in _in_order(function) for name in _bound_here(node)]
    own = _local_names(function).intersection(bound) - named
    seen = {name for node in walk(function) for name in _read_here(node)} - own
    taken = seen | named | set(keyword.kwlist) | set(dir(builtins))
    free = (name for name in _lower_names() if name not in taken)
    for name in bound:
        if name in own and name not in order:
            order[name] = next(free)
    _LocalRenamer(order).visit(function)


def _read_here(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [a.asname or a.name.partition(".")[0] for a in node.names]
    return [node.id] if isinstance(node, ast.Name) else []


def _in_order(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for child in children(node):
        yield from _in_order(child)


def _bound_here(node: ast.AST) -> list[str]:
    if isinstance(node, ast.arg):
        return [node.arg]
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        return [node.id]
    if isinstance(node, ast.ExceptHandler) and node.name:
        return [node.name]
    if isinstance(node, ast.FunctionDef):
        return [node.name]
    return []


class _VariableRenamer(Transformer):
    """Renames variables and parameters."""

    def __init__(self, names: dict[str, str]) -> None:
        self.names = names

    def visit_Name(self, node: ast.Name) -> ast.AST:
        node.id = self.names.get(node.id, node.id)
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.arg = self.names.get(node.arg, node.arg)
        self.generic_visit(node)
        return node


class _LocalRenamer(_VariableRenamer):
    """Renames variables and parameters of one outermost function; attributes stay."""

    def __init__(self, names: dict[str, str]) -> None:
        super().__init__(names)
        self.top = True

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> ast.AST:
        node.name = node.name and self.names.get(node.name, node.name)
        self.generic_visit(node)
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        if not self.top:
            node.name = self.names.get(node.name, node.name)
        self.top = False
        self.generic_visit(node)
        return node

    def _scope(self, node: ast.Nonlocal | ast.Global) -> ast.AST:
        node.names = [self.names.get(name, name) for name in node.names]
        return node

    visit_Nonlocal = _scope
    visit_Global = _scope


class _Renamer(_VariableRenamer):
    """Renames what the whole program shares, in whatever place its name stands."""

    def visit_alias(self, node: ast.alias) -> ast.AST:
        bound = node.asname or node.name
        node.asname = self.names.get(bound, node.asname)
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        node.attr = self.names.get(node.attr, node.attr)
        self.generic_visit(node)
        return node

    def visit_keyword(self, node: ast.keyword) -> ast.AST:
        node.arg = node.arg and self.names.get(node.arg, node.arg)
        self.generic_visit(node)
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.name = self.names.get(node.name, node.name)
        self.generic_visit(node)
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        node.name = self.names.get(node.name, node.name)
        self.generic_visit(node)
        return node

    def _scope(self, node: ast.Nonlocal | ast.Global) -> ast.AST:
        node.names = [self.names.get(name, name) for name in node.names]
        return node

    visit_Nonlocal = _scope
    visit_Global = _scope
