"""Recipes of others: a function in a Python file, or one that an installed package registers.

The code of a recipe runs only when a command names it. The returned settings and the text of its
files are then stored in the run's folder, so reading the folder executes nothing.
"""

import ast
import importlib.abc
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from fairway.base.errors import UserError
from fairway.base.files import digest_bytes, read_bytes
from fairway.base.terminal import line
from fairway.config.settings import unknown_name

_FILE = re.compile(r"(?P<file>.+\.py)(:(?P<name>.*))?", re.DOTALL)
_MOST_FILE_BYTES = 1 << 20
_MOST_WORDS = 300
_DEFINED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)
# The name of the file's module among Python's modules while it runs.
_MODULE = "fairway_own_code"


@dataclass(frozen=True, slots=True)
class Source:
    """A Python file that was executed: its name without folders, its digest and its text."""

    name: str
    digest: str
    text: str


@dataclass(frozen=True, slots=True)
class Called:
    """The result of a foreign function, and its origin.

    `package` is the name and version of the package that registers it; empty for a file. `files`
    begins with the function's own file; the others are imported files of the same folder.
    """

    value: Any
    name: str
    package: str
    files: tuple[Source, ...]


def is_file(argument: str) -> bool:
    """Return whether an argument names a Python file: `path.py`, or `path.py:function`."""
    return _FILE.fullmatch(argument) is not None


def call_in_file(argument: str, what: str, kind: type[Any] | None) -> Called:
    """Execute a Python file and call its function: the one named behind ':', or the only one.

    Error sentences name `what` the function makes; `kind` is the class that it must return. Every
    mistake in the file is a UserError with one sentence.
    """
    found = _FILE.fullmatch(argument)
    assert found is not None
    path, name = Path(found["file"]), found["name"]
    own = _read(path)
    tree = _parsed(own, path)
    if name is None and not any(isinstance(node, _DEFINED) for node in ast.walk(tree)):
        raise UserError(
            f"{path} defines no function; write one that returns a {_kind_name(kind, what)}"
        )
    with _executing(path) as beside:
        module = _executed(own, path)
        function = _function(module, path, name, what, kind)
        title = name or function.__name__
        value = _value(function, f"{path}:{title}", what, kind)
        return Called(value, title, "", (own, *beside()))


def call_registered(group: str, name: str, what: str, kind: type[Any] | None) -> Called | None:
    """Call the function that an installed package registers under a name, or return None.

    `group` is the group of its entry point. UserError if two packages register the name, or if the
    function cannot be loaded, fails or returns something else.
    """
    points = [point for point in metadata.entry_points(group=group) if point.name == name]
    if not points:
        return None
    packages = sorted({_package(point) for point in points})
    if len(points) > 1:
        raise UserError(
            f"{what} '{name}' is registered {len(points)} times, by {' and '.join(packages)}; "
            "uninstall one, or name a file"
        )
    place = f"{what} '{name}' of {packages[0]}"
    with redirect_stdout(sys.stderr):
        function = guarded(points[0].load, f"{place} cannot be loaded: it")
        if not callable(function):
            raise UserError(f"{place} is {_short(function)} and not a function")
        value = _value(function, place, what, kind)
    return Called(value, name, packages[0], tuple(_module_file(function)))


def registered(group: str) -> list[str]:
    """Return the names that installed packages register in a group; nothing is loaded."""
    return sorted({point.name for point in metadata.entry_points(group=group)})


def _package(point: metadata.EntryPoint) -> str:
    return "a package" if point.dist is None else f"{point.dist.name} {point.dist.version}"


def _module_file(function: Any) -> Iterator[Source]:
    """Yield the file of a function, if it is a readable Python file."""
    try:
        yield _read(Path(inspect.getsourcefile(function) or ""))
    except (TypeError, UserError):
        return


# ---------------------------------------------------------------------------------------------
# Reading and executing a file


def _read(path: Path, name: str = "") -> Source:
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a Python file")
    data = read_bytes(path, _MOST_FILE_BYTES)
    try:
        return Source(name or path.name, digest_bytes(data), data.decode())
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8: {error.reason} at byte {error.start:,}") from None


def _parsed(source: Source, path: Path) -> ast.Module:
    try:
        return ast.parse(source.text.removeprefix("\ufeff"))
    except SyntaxError as error:
        raise UserError(f"{path} is not Python: {error.msg}, line {error.lineno or 1}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"{path} is not Python: {line(str(error))}") from None


class _Text(importlib.abc.SourceLoader):
    """Python code that was read before, so that the executed code is the recorded code."""

    def __init__(self, source: Source, path: Path) -> None:
        self._source, self._path = source, path

    def get_filename(self, fullname: str) -> str:
        return str(self._path)

    def get_data(self, path: Any) -> bytes:
        return self._source.text.encode()


@contextmanager
def _executing(path: Path) -> Iterator[Callable[[], list[Source]]]:
    """Let a file import files of its folder, and print to standard error; yield a list of these.

    Its folder is last in the search for modules, so that it hides no installed module. The modules
    of the folder are removed afterwards, since another file may have others with these names.
    """
    folder, before = path.parent.resolve(), set(sys.modules)
    sys.path.append(str(folder))

    def new() -> dict[str, Path]:
        found = {n: getattr(sys.modules[n], "__file__", None) for n in set(sys.modules) - before}
        inside = {n: Path(f) for n, f in found.items() if f and n.partition(".")[0] != _MODULE}
        return {n: f for n, f in inside.items() if _beside(f, folder)}

    def sources() -> list[Source]:
        return [_read(f, f.relative_to(folder).as_posix()) for f in sorted(new().values())]

    try:
        with redirect_stdout(sys.stderr):
            yield sources
    finally:
        sys.path.remove(str(folder))
        for name in (*new(), _MODULE):
            sys.modules.pop(name, None)


def _beside(file: Path, folder: Path) -> bool:
    """Return whether a module belongs to a recipe's folder and is not installed below it."""
    if file.suffix != ".py" or not file.is_relative_to(folder):
        return False
    return not {"site-packages", "dist-packages"} & set(file.relative_to(folder).parts)


def _executed(source: Source, path: Path) -> ModuleType:
    loader = _Text(source, path.resolve())
    spec = importlib.util.spec_from_loader(_MODULE, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look up their module.
    sys.modules[_MODULE] = module
    guarded(lambda: loader.exec_module(module), str(path))
    return module


# ---------------------------------------------------------------------------------------------
# Choosing and calling a function


def _function(
    module: ModuleType, path: Path, name: str | None, what: str, kind: type[Any] | None
) -> Callable[..., Any]:
    """Return the function of a name, or the only one that fits."""
    named: dict[str, Any] = vars(module)
    fitting: dict[str, Callable[..., Any]] = {n: f for n, f in named.items() if _fits(f, n, kind)}
    if name is None:
        if len(fitting) == 1:
            return next(iter(fitting.values()))
        if fitting:
            raise UserError(
                f"{path} defines {len(fitting)} {what}s ({', '.join(fitting)}); name one, as in "
                f"{path}:{next(iter(fitting))}"
            )
        raise UserError(
            f"{path} defines no {what}: no public function that takes no arguments and returns a "
            f"{_kind_name(kind, what)}"
        )
    known = [n for n, value in named.items() if callable(value) and not n.startswith("_")]
    if name not in named:
        raise UserError(f"{path}: {unknown_name('function', name, known or fitting)}")
    function = named[name]
    if not callable(function):
        raise UserError(f"{path}:{name} is {_short(function)} and not a function")
    return cast(Callable[..., Any], function)


def _fits(value: Any, name: str, kind: type[Any] | None) -> bool:
    """Return whether a function of a file can be chosen without a name."""
    # A class makes its own objects, but no config.
    callables = inspect.isfunction(value) or (kind is None and inspect.isclass(value))
    if not callables or name.startswith("_") or value.__module__ != _MODULE:
        return False
    said = inspect.get_annotations(value).get("return")
    if kind is not None and said not in (None, kind, kind.__name__):
        return False
    try:
        inspect.signature(value).bind()
    except TypeError:
        return False
    return True


def _value(function: Callable[..., Any], place: str, what: str, kind: type[Any] | None) -> Any:
    value = guarded(lambda: function(), place)
    if kind is not None and not isinstance(value, kind):
        if inspect.iscoroutine(value):
            value.close()
        raise UserError(f"{place} returned {_short(value)}, not a {_kind_name(kind, what)}")
    return value


def guarded(work: Callable[[], Any], place: str) -> Any:
    """Return the result of foreign code; its exceptions become a UserError with the line."""
    try:
        return work()
    except KeyboardInterrupt:
        raise
    # Exceptions may have any class: SystemExit ends a program, and some tools have their own.
    except BaseException as error:
        said = line(str(error))[:_MOST_WORDS]
        raise UserError(
            f"{place} raised {type(error).__name__}{f': {said}' if said else ''}{_line_of(error)}"
        ) from None


def _line_of(error: BaseException) -> str:
    """Return the innermost line outside of Fairway and Python where an error arose, in words."""
    ours = Path(__file__).parents[1]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        if file.is_file() and not file.is_relative_to(ours) and not _of_python(file):
            return f" (line {frame.lineno} of {line(file.name)})"
    return ""


def _of_python(file: Path) -> bool:
    return file.is_relative_to(Path(ast.__file__).parent)


def _short(value: Any) -> str:
    """Return the kind of a value, in a word or two."""
    return "None" if value is None else f"a value of type {type(value).__name__}"


def _kind_name(kind: type[Any] | None, what: str) -> str:
    return what if kind is None else kind.__name__
