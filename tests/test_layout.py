"""The shape of the package: one direction of imports, files for a sitting, nothing executed."""

import ast
import functools
import importlib.metadata
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import fairway

PACKAGE = Path(fairway.__file__).parent
TREE = PACKAGE.parent / "docs/tree.md"
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60
MAX_CLASS_LINES = 400
MAX_MODULES_ON_TOP = 6


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts)


def reading_order() -> list[str]:
    """Return the parts of the package in the order that its docstring states."""
    text = re.search(r"import one another:\n(.*?)\.", fairway.__doc__ or "", re.DOTALL)
    assert text, "fairway/__init__.py no longer states the reading order"
    return re.split(r"\s*[,|]\s*", text[1].strip())


@functools.cache
def nodes(source: str) -> tuple[ast.AST, ...]:
    """Return all nodes of a source, the module first; several rules look at each."""
    return tuple(ast.walk(ast.parse(source)))


def imports(source: str) -> Iterator[str]:
    """Yield the modules of Fairway that a source imports anywhere, such as 'data.tokens'."""
    for node in nodes(source):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the direction"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.partition(".")[2] for name in names if name.startswith("fairway."))


def part(module: str) -> str:
    return module.partition(".")[0]


def wrong_way(module: str, source: str, order: list[str]) -> list[str]:
    """Return the imports of a module that come from below it."""
    own = order.index(part(module))
    return [name for name in imports(source) if order.index(part(name)) > own]


def test_the_stated_order_names_every_part_once() -> None:
    parts = {part(module_name(file)) for file in FILES} - {"__init__"}
    assert sorted(reading_order()) == sorted(parts)


def faults(rule: Callable[[str], list[str]]) -> dict[str, list[str]]:
    """Return what a rule finds in the package, by module."""
    found = {module_name(file): rule(file.read_text()) for file in FILES}
    return {module: what for module, what in found.items() if what}


def test_modules_import_only_from_above() -> None:
    order = reading_order()
    modules = {module_name(file): file.read_text() for file in FILES}
    del modules["__init__"]
    wrong = {module: wrong_way(module, source, order) for module, source in modules.items()}
    assert {module: names for module, names in wrong.items() if names} == {}


def test_few_modules_lie_beside_the_folders() -> None:
    assert len([file for file in FILES if file.parent == PACKAGE]) <= MAX_MODULES_ON_TOP


def test_an_import_from_below_is_noticed() -> None:
    order = ["data", "model", "train"]
    source = "def late() -> None:\n    from fairway.train import train\n"
    assert wrong_way("data.tokens", source, order) == ["train.train"]
    assert wrong_way("data.tokens", "import fairway.model.gpt\n", order) == ["model.gpt"]


def test_no_circle_inside_a_package() -> None:
    known = {module_name(file).removesuffix(".__init__"): file for file in FILES}
    graph = {}
    for module, file in known.items():
        found = {name if name in known else name.rpartition(".")[0] for name in imports_of(file)}
        graph[module] = found & known.keys() - {module}
    while graph:
        leaves = {module for module, needs in graph.items() if not needs & graph.keys()}
        assert leaves, f"these import one another in a circle: {sorted(graph)}"
        graph = {module: needs for module, needs in graph.items() if module not in leaves}


def imports_of(file: Path) -> list[str]:
    return list(imports(file.read_text()))


def too_long(source: str) -> list[str]:
    """Return what of a file does not fit a sitting: itself, its functions, its classes."""
    lines = len(source.splitlines())
    found = [f"{lines} lines"] if lines > MAX_FILE_LINES else []
    for node in nodes(source):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            most = MAX_FUNCTION_LINES if isinstance(node, ast.FunctionDef) else MAX_CLASS_LINES
            found += [node.name] if (node.end_lineno or 0) - node.lineno >= most else []
    return found


def test_files_and_functions_fit_a_sitting() -> None:
    assert faults(too_long) == {}


def test_the_pipeline_has_no_large_class() -> None:
    sources = {file.stem: file.read_text() for file in FILES if file.parent.name == "pipeline"}
    assert len(sources) > 30
    classes = [n for text in sources.values() for n in nodes(text) if isinstance(n, ast.ClassDef)]
    assert [n.name for n in classes if (n.end_lineno or 0) - n.lineno >= 200] == []


def test_what_is_too_long_is_noticed() -> None:
    assert too_long("def f():\n" + "    pass\n" * MAX_FUNCTION_LINES) == ["f"]
    assert too_long("class A:\n" + "    a = 1\n" * MAX_CLASS_LINES) == ["A"]
    assert too_long("a = 1\n" * (MAX_FILE_LINES + 1)) == [f"{MAX_FILE_LINES + 1} lines"]


def forbidden(source: str) -> list[str]:
    """Return what a source does that loads code from data, or hides errors."""
    found = []
    for node in nodes(source):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            found.append("bare except")
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in ("eval", "exec", "compile", "__import__", "torch.load", "np.load"):
                found.append(name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
            found += [n for n in names if n in ("pickle", "marshal", "shelve", "dill", "joblib")]
    return found


def test_nothing_is_executed_or_swallowed() -> None:
    assert faults(forbidden) == {}


def test_the_forbidden_is_noticed() -> None:
    source = "import pickle\ntry:\n    eval('1')\n    torch.load(f)\nexcept:\n    pass\n"
    assert sorted(forbidden(source)) == ["bare except", "eval", "pickle", "torch.load"]
    assert forbidden("model.eval()\n") == []


def undocumented(source: str) -> list[str]:
    """Return what is public and without docstring: module, functions, classes, their methods."""
    found = []

    def visit(body: list[ast.stmt]) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                if not ast.get_docstring(node):
                    found.append(node.name)
                if isinstance(node, ast.ClassDef):
                    visit(node.body)

    module = nodes(source)[0]
    assert isinstance(module, ast.Module)
    visit(module.body)
    return found if ast.get_docstring(module) else ["the module", *found]


def test_what_is_public_is_documented() -> None:
    assert faults(undocumented) == {}


def test_a_missing_docstring_is_noticed() -> None:
    source = "class A:\n    '''A.'''\n    def f(self): pass\n    def _g(self): pass\n"
    assert undocumented(source) == ["the module", "f"]
    assert undocumented(f"'''What for.'''\n{source}") == ["f"]


def listed_files(text: str) -> set[str]:
    """Return the files of the tree that a text draws below `fairway/`, as 'data/tokens.py'.

    An entry is the first word of its line, further right the deeper it lies; the files of a folder
    may also follow its name. Indented headings (#) after a blank line may stand between entries.
    The tree ends where the indentation does.
    """
    text = re.sub(r"\n\n +# .*\n", "\n", text)
    tree = re.search(r"^( *)fairway/.*\n((?:.*\S.*\n?)*)", text, re.MULTILINE)
    files: set[str] = set()
    folders: list[tuple[int, str]] = []
    for line in tree[2].splitlines() if tree else []:
        entry = re.match(r"^([\s\u2500-\u257f*\u2022\u25cf]*)([\w.]+/?)(.*)", line)
        if not (tree and entry) or len(entry[1]) <= len(tree[1]):
            break
        depth, name, rest = len(entry[1]), entry[2], entry[3]
        folders = [(at, folder) for at, folder in folders if at < depth]
        if name.endswith("/"):
            folders.append((depth, name))
        names = re.match(r"([\s,*\u2022\u25cf]*[\w]+\.py\b)*", rest)
        inside = re.findall(r"\w+\.py", names[0] if names else "")
        prefix = "".join(folder for _, folder in folders)
        files |= {prefix + file for file in (name, *inside) if file.endswith(".py")}
    return files


def test_the_tree_in_the_docs_is_the_package() -> None:
    package = {file.relative_to(PACKAGE).as_posix() for file in FILES}
    assert listed_files(TREE.read_text()) == {
        name for name in package if not name.endswith("__init__.py")
    }


def test_the_readme_has_the_folders_in_their_order() -> None:
    drawn, listed = (
        re.findall(r"^ +(\w+)/", text.partition("fairway/\n")[2], re.MULTILINE)
        for text in ((PACKAGE.parent / "README.md").read_text(), TREE.read_text())
    )
    # Folders inside of these are listed by the other page alone.
    assert drawn == [name for name in listed if (PACKAGE / name).is_dir()]
    assert len(drawn) == len(list(PACKAGE.glob("*/__init__.py")))


def test_no_script_hides_a_module_of_others() -> None:
    """Python looks beside a script first: a script named coverage.py broke numba's import."""
    scripts = {file.stem for file in (PACKAGE.parent / "benchmarks").glob("*.py")}
    installed = set(importlib.metadata.packages_distributions()) | set(sys.stdlib_module_names)
    assert not scripts & installed


@pytest.mark.parametrize(
    "tree",
    [
        "fairway/  the package\n  errors.py  see cli.py\n  data/\n    tokens.py  ids\n  run.py *",
        "fairway/\n├── errors.py ●  x\n├── data/\n│   └── tokens.py\n└── run.py",
        "    fairway/\n      * errors.py  x\n        data/  tokens.py  ids\n      * run.py",
        "    fairway/\n      errors.py, run.py  what both do\n      data/\n        tokens.py *",
    ],
)
def test_trees_of_several_styles_are_read(tree: str) -> None:
    text = f"Look into fairway/cli.py.\n\n{tree}\n\n    other.py\ntests/test_x.py\n"
    assert listed_files(text) == {"errors.py", "data/tokens.py", "run.py"}
