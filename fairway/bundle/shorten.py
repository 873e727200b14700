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
from collections.abc import Iterator, Mapping, Sequence
from types import FunctionType
from typing import Any

import numpy as np
import torch

from fairway.bundle.modules import bound_names, children, scope_of, walk
from fairway.bundle.wrap import START

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
# Classes besides the settings whose fields stand in files.
_WRITTEN = {"Plan", "StepRecord", "Score"}
# Arguments of libraries that are functions, whose own arguments the library names.
_CALLBACKS = {"setup_context"}
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


# In which field a node of some kind has a name; of these kinds are variables.
_VARIABLES = {ast.Name: "id", ast.arg: "arg", ast.FunctionDef: "name", ast.ExceptHandler: "name"}
_SPELT = {**_VARIABLES, ast.Attribute: "attr", ast.ClassDef: "name", ast.keyword: "arg"}

Nodes = Sequence[ast.AST]


def identifiers(nodes: Nodes) -> list[str]:
    """Return the names that stand in some nodes themselves, once for each place."""
    named = ((node, _SPELT.get(type(node))) for node in nodes)
    return [name for node, field in named if field and (name := getattr(node, field))]


def rename(nodes: Nodes, names: dict[str, str], spelt: Mapping[Any, str] = _SPELT) -> None:
    """Rename by spelling, wherever a name of these kinds of nodes stands."""
    for node in nodes:
        if field := spelt.get(type(node)):
            name = getattr(node, field)
            setattr(node, field, names.get(name, name))
        elif isinstance(node, ast.Nonlocal | ast.Global):
            node.names = [names.get(name, name) for name in node.names]
        elif isinstance(node, ast.alias):
            node.asname = names.get(node.asname or node.name, node.asname)


def shorten(tree: ast.Module, libraries: frozenset[str]) -> dict[str, str]:
    """Give every name of a flat program that is its own a short one; return the shared ones."""
    nodes = walk(tree)
    mapping = _mapping(tree, nodes, libraries)
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    passed = {k.arg for call in calls for k in call.keywords if k.arg}
    # What is called with a dictionary of arguments, whose keys are strings somewhere.
    unpacked = {_callee(call) for call in calls if any(k.arg is None for k in call.keywords)}
    passed |= _parameters_of_callbacks(nodes)
    words = _strings(nodes)
    for function in _outermost(tree):
        spread = getattr(function, "name", "") in unpacked
        _rename_locals(function, passed | words if spread else passed)
    rename(nodes, mapping)
    return mapping


# ---------------------------------------------------------------------------------------------
# Names that the whole program shares


def _mapping(tree: ast.Module, nodes: Nodes, libraries: frozenset[str]) -> dict[str, str]:
    """Return short names for all that the whole program shares, the frequent ones first."""
    fixed = libraries | _strings(nodes) | _fields_in_files(tree) | _weights(tree)
    fixed |= _foreign_keywords(nodes) | _parameters_of_callbacks(nodes)
    ours = {name for name in _members(nodes) - fixed if not name.startswith("__")}
    ours |= {name for node in tree.body for name in bound_names(node)}
    counts = Counter(identifiers(nodes))
    order = sorted(ours & counts.keys() - _KEPT, key=lambda name: (-counts[name], name))
    free = (name for name in _names(string.ascii_uppercase) if name not in fixed | _KEPT)
    return dict(zip(order, free, strict=False))


def _names(first: str) -> Iterator[str]:
    """Yield names that begin with one of some letters, the short ones before the long ones."""
    rest = string.ascii_letters + string.digits
    for length in itertools.count():
        for parts in itertools.product(first, *[rest] * length):
            yield "".join(parts)


def _strings(nodes: Nodes) -> set[str]:
    """Return the strings that may be names: of attributes, of keys, in launches of kernels."""
    texts = (node.value for node in nodes if isinstance(node, ast.Constant))
    return {text for text in texts if isinstance(text, str) and text.isidentifier()}


def _fields_in_files(tree: ast.Module) -> set[str]:
    """Return the names of the fields that files hold: settings, plans, steps, scores."""
    return {
        item.target.id
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        if node.name.endswith("Config") or node.name.partition("_")[0] in _WRITTEN
        for item in node.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    }


def _weights(tree: ast.Module) -> set[str]:
    """Return what classes of PyTorch's modules keep: the names of weights in files."""
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    modules = [node for node in classes if any("nn" in ast.unparse(base) for base in node.bases)]
    return {name for node in modules for name in _assigned(walk(node))}


def _assigned(nodes: Nodes) -> set[str]:
    stored = (n for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store))
    return {node.attr for node in stored}


def _members(nodes: Nodes) -> set[str]:
    """Return what the program itself makes and names from afar: methods, fields, what it assigns,
    parameters that some call passes by name."""
    passed = {node.arg for node in nodes if isinstance(node, ast.keyword)}
    names = {node.arg for node in nodes if isinstance(node, ast.arg)} & passed
    for node in nodes:
        if isinstance(node, ast.ClassDef):
            names |= bound_names(ast.Module(node.body, []))
    return names | _assigned(nodes)


def _callee(call: ast.Call) -> str:
    """Return the last name of what is called; a kernel stands before the brackets of its grid."""
    function = call.func
    while isinstance(function, ast.Subscript):
        function = function.value
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _foreign_keywords(nodes: Nodes) -> set[str]:
    """Return the names that calls of functions from elsewhere pass."""
    defined = {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    calls = (n for n in nodes if isinstance(n, ast.Call) and _callee(n) not in defined)
    return {k.arg for call in calls for k in call.keywords if k.arg}


def _parameters_of_callbacks(nodes: Nodes) -> set[str]:
    """Return the parameters of functions that a library calls by name: what an operator keeps."""
    given = (k for n in nodes if isinstance(n, ast.Call) for k in n.keywords)
    called = {getattr(k.value, "id", "") for k in given if k.arg in _CALLBACKS}
    functions = (n for n in nodes if isinstance(n, ast.FunctionDef) and n.name in called)
    return {argument.arg for function in functions for argument in function.args.args}


# ---------------------------------------------------------------------------------------------
# Names inside one function

Function = ast.FunctionDef | ast.Lambda


def _outermost(tree: ast.AST) -> Iterator[Function]:
    """Yield functions that no other one contains, methods too."""
    for node in children(tree):
        if isinstance(node, Function):
            yield node
        else:
            yield from _outermost(node)


def _rename_locals(function: Function, passed: set[str]) -> None:
    """Rename what only this function knows; parameters that calls name are not its own."""
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
    """Return a node and all in it, in the order in which they stand."""
    found = [node]
    for child in children(node):
        found += _in_order(child)
    return found


def _local_names(nodes: Nodes) -> set[str]:
    """Return all names bound inside a function, in whatever scope of it."""
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
