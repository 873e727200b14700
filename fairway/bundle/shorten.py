"""Gives a flat program short names, the same ones for the same program.

Global names, attributes, methods, fields, and parameters that calls name are renamed by spelling,
the same everywhere. A name that a library, a file or a string may use stays. Names local to a
function are renamed inside it in order of appearance, so that functions look alike and compress
well.
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
from collections.abc import Iterator, Mapping, Sequence
from types import FunctionType
from typing import Any

import numpy as np
import torch

from fairway.base.nodes import children, walk
from fairway.bundle.modules import bound_names, scope_of
from fairway.bundle.wrap import START

# Classes and modules whose attribute names are kept everywhere.
_LIBRARIES: tuple[Any, ...] = (
    *(torch, torch.Tensor, torch.nn.Module, torch.nn.Embedding, torch.nn.functional, torch.cuda),
    *(torch.optim.Optimizer, torch.distributed, torch.ops, torch.autograd.Function, torch.dtype),
    *(torch.autograd.function.FunctionCtx, torch.Generator, torch.backends, torch.linalg),
    *(torch.cuda.Event, torch.cuda.Stream, torch.device, torch.Size, torch.nn, torch.optim),
    *(np, np.ndarray, np.random.Generator, np.random.PCG64, np.float64, np.dtype, np.memmap),
    *(np.ufunc, type(np.empty(0).flags)),
    *(pathlib.Path, str, bytes, int, float, list, dict, set, tuple, range, slice, object),
    *(io.BytesIO, io.TextIOWrapper, threading.Event, threading.Thread, threading.Semaphore),
    *(hashlib.sha256(), json, dataclasses, contextlib.ExitStack, importlib, itertools),
    *(FunctionType, BaseException, OSError, property, memoryview),
)
# Names of Triton's language, which only some machines have, in kernels.
_KERNEL_WORDS = {"constexpr", "dtype", "element_ty", "T", "to"}
# Classes besides the settings whose fields are written to files.
_WRITTEN = {"Plan", "StepRecord", "Score"}
# Arguments of libraries that are functions; the library names the arguments of these functions.
_CALLBACKS = {"setup_context"}
# The function that starts a program, and the annotation by which Triton recognises constants.
_KEPT = {START, "tl"}


@functools.cache
def library_names(modules: frozenset[str] = frozenset()) -> frozenset[str]:
    """Return attribute names of libraries, and names of parameters that calls to them may use."""
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
    """Return the attributes of a class or module, except modules imported in it."""
    with warnings.catch_warnings():
        # Reading a deprecated attribute warns, although it is not used.
        warnings.simplefilter("ignore")
        return {name for name in dir(library) if not inspect.ismodule(getattr(library, name, None))}


# The field with the name, for each kind of node that has one; the first kinds are variables.
_VARIABLES = {ast.Name: "id", ast.arg: "arg", ast.FunctionDef: "name", ast.ExceptHandler: "name"}
_SPELT = {**_VARIABLES, ast.Attribute: "attr", ast.ClassDef: "name", ast.keyword: "arg"}

Nodes = Sequence[ast.AST]


def identifiers(nodes: Nodes) -> list[str]:
    """Return the names in the given nodes without their children, once per occurrence."""
    named = ((node, _SPELT.get(type(node))) for node in nodes)
    return [name for node, field in named if field and (name := getattr(node, field))]


def rename(nodes: Nodes, names: dict[str, str], spelt: Mapping[Any, str] = _SPELT) -> None:
    """Replace names in all nodes of these kinds, wherever they occur."""
    for node in nodes:
        if field := spelt.get(type(node)):
            name = getattr(node, field)
            setattr(node, field, names.get(name, name))
        elif isinstance(node, ast.Nonlocal | ast.Global):
            node.names = [names.get(name, name) for name in node.names]
        elif isinstance(node, ast.alias):
            node.asname = names.get(node.asname or node.name, node.asname)


def shorten(tree: ast.Module, libraries: frozenset[str]) -> dict[str, str]:
    """Give every own name of a flat program a short one; return the shared ones."""
    nodes = [*walk(tree)]
    mapping = _mapping(tree, nodes, libraries)
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    passed = {k.arg for call in calls for k in call.keywords if k.arg}
    # Functions called with a dictionary of arguments, whose keys are strings elsewhere.
    unpacked = {_callee(call) for call in calls if any(k.arg is None for k in call.keywords)}
    passed |= _parameters_of_callbacks(nodes)
    words = _strings(nodes)
    for function in _outermost(tree):
        spread = getattr(function, "name", "") in unpacked
        _rename_locals(function, passed | words if spread else passed)
    rename(nodes, mapping)
    return mapping


# ---------------------------------------------------------------------------------------------
# Names shared by the whole program


def _mapping(tree: ast.Module, nodes: Nodes, libraries: frozenset[str]) -> dict[str, str]:
    """Return short names for all names that the program shares, the shortest for frequent ones."""
    fixed = libraries | _strings(nodes) | _fields_in_files(tree) | _weights(tree)
    fixed |= _foreign_keywords(nodes) | _parameters_of_callbacks(nodes) | _of_imports(nodes)
    ours = {name for name in _members(nodes) - fixed if not name.startswith("__")}
    ours |= {name for node in tree.body for name in bound_names(node)}
    counts = Counter(identifiers(nodes))
    order = sorted(ours & counts.keys() - _KEPT, key=lambda name: (-counts[name], name))
    free = (name for name in _names(string.ascii_uppercase) if name not in fixed | _KEPT)
    return dict(zip(order, free, strict=False))


def _names(first: str) -> Iterator[str]:
    """Yield names that begin with one of the given letters, short ones first."""
    rest = string.ascii_letters + string.digits
    for length in itertools.count():
        for parts in itertools.product(first, *[rest] * length):
            yield "".join(parts)


def _strings(nodes: Nodes) -> set[str]:
    """Return strings that may be names: of attributes, of keys, in launches of kernels."""
    texts = (node.value for node in nodes if isinstance(node, ast.Constant))
    return {text for text in texts if isinstance(text, str) and text.isidentifier()}


def _fields_in_files(tree: ast.Module) -> set[str]:
    """Return the names of fields that are written to files: settings, plans, steps, scores."""
    return {
        item.target.id
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        if node.name.endswith("Config") or node.name.partition("_")[0] in _WRITTEN
        for item in node.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    }


def _weights(tree: ast.Module) -> set[str]:
    """Return the attributes of classes derived from `torch.nn`: names of weights in files."""
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    modules = [node for node in classes if any("nn" in ast.unparse(base) for base in node.bases)]
    return {name for node in modules for name in _assigned([*walk(node)])}


def _assigned(nodes: Nodes) -> set[str]:
    stored = (n for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store))
    return {node.attr for node in stored}


def _members(nodes: Nodes) -> set[str]:
    """Return the program's own names that other code may use: methods, fields, assigned
    attributes, and parameters that some call passes by name."""
    passed = {node.arg for node in nodes if isinstance(node, ast.keyword)}
    names = {node.arg for node in nodes if isinstance(node, ast.arg)} & passed
    for node in nodes:
        if isinstance(node, ast.ClassDef):
            names |= bound_names(ast.Module(node.body, []))
    return names | _assigned(nodes)


def _callee(call: ast.Call) -> str:
    """Return the last name of a called function; for a kernel, the name before its grid."""
    function = call.func
    while isinstance(function, ast.Subscript):
        function = function.value
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _foreign_keywords(nodes: Nodes) -> set[str]:
    """Return the keywords in calls of functions that the program does not define."""
    defined = {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    calls = (n for n in nodes if isinstance(n, ast.Call) and _callee(n) not in defined)
    return {k.arg for call in calls for k in call.keywords if k.arg}


def _of_imports(nodes: Nodes) -> set[str]:
    """Return the attributes that are looked up in what is imported: `at` for `np.add.at`."""
    imports = (node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom))
    imported = {(name.asname or name.name.partition(".")[0]) for n in imports for name in n.names}
    found = set()
    for node in nodes:
        root = node
        while isinstance(root, ast.Attribute):
            root = root.value
        if isinstance(node, ast.Attribute) and isinstance(root, ast.Name) and root.id in imported:
            found.add(node.attr)
    return found


def _parameters_of_callbacks(nodes: Nodes) -> set[str]:
    """Return the parameters of functions that a library calls by keyword."""
    given = (k for n in nodes if isinstance(n, ast.Call) for k in n.keywords)
    called = {getattr(k.value, "id", "") for k in given if k.arg in _CALLBACKS}
    functions = (n for n in nodes if isinstance(n, ast.FunctionDef) and n.name in called)
    return {argument.arg for function in functions for argument in function.args.args}


# ---------------------------------------------------------------------------------------------
# Names inside one function

Function = ast.FunctionDef | ast.Lambda


def _outermost(tree: ast.AST) -> Iterator[Function]:
    """Yield functions, and methods, that are not inside another function."""
    for node in children(tree):
        if isinstance(node, Function):
            yield node
        else:
            yield from _outermost(node)


def _rename_locals(function: Function, passed: set[str]) -> None:
    """Rename the local names of a function, except parameters that calls name."""
    nodes = _in_order(function)
    named = {node.arg for node in nodes if isinstance(node, ast.arg)} & passed
    bound = [name for node in nodes[1:] for name in _bound_here(node)]
    own = _local_names(nodes).intersection(bound) - named
    seen = {name for node in nodes for name in _read_here(node)} - own
    taken = seen | named | set(keyword.kwlist) | set(dir(builtins))
    free = (name for name in _names(string.ascii_lowercase) if name not in taken)
    order = dict(zip((n for n in dict.fromkeys(bound) if n in own), free, strict=False))
    rename(nodes[1:], order, _VARIABLES)


def _in_order(node: ast.AST) -> list[ast.AST]:
    """Return a node and all nodes in it, in the order of the source."""
    found = [node]
    for child in children(node):
        found += _in_order(child)
    return found


def _local_names(nodes: Nodes) -> set[str]:
    """Return all names bound inside a function, in any of its scopes."""
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, Function):
            names |= scope_of(node)
        elif isinstance(node, ast.comprehension):
            names |= {n.id for n in walk(node.target) if isinstance(n, ast.Name)}
    return names


def _read_here(node: ast.AST) -> list[str]:
    if isinstance(node, ast.alias):
        return [node.asname or node.name.partition(".")[0]]
    return [node.id] if isinstance(node, ast.Name) else []


def _bound_here(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Store):
        return []
    return [name] if (name := getattr(node, _VARIABLES.get(type(node), ""), None)) else []
