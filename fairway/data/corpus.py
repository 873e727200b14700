"""The embedded corpus: English documentation that every machine with Fairway already has.

It consists of docstrings and help topics of the standard library and of the packages that Fairway
uses. They are read with `ast`, so nothing is imported. Each module is one document, and repeated
paragraphs are kept once. The text depends only on the versions in `corpus_versions`.
"""

import ast
import platform
import sysconfig
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path, PurePosixPath

from fairway.data.documents import Document, corpus_digest
from fairway.data.parallel import map_parallel
from fairway.data.prose import prose

__all__ = ["Document", "corpus_digest", "corpus_versions", "embedded_documents"]

# Packages that Fairway needs at run time, directly or not. Developers' tools are left out, so that
# the corpus of a checkout and of an installation are the same.
_PACKAGE_NAMES = """
anyio click contourpy cycler filelock fonttools fsspec h11 httpcore httpcore2 httpx httpx2
huggingface_hub idna jinja2 markdown-it-py matplotlib mpmath networkx numpy packaging pillow pyarrow
pygments pyparsing python-dateutil rich safetensors scipy setuptools sympy torch tqdm typer
typing_extensions zstandard
"""
_PACKAGES = _PACKAGE_NAMES.split()
_SKIPPED_NAMES = "test tests testing idle_test _vendor __pycache__ site-packages dist-packages"
_SKIPPED_PARTS = frozenset(_SKIPPED_NAMES.split())
_MIN_LITERAL_CHARS = 60
_MIN_DOCUMENT_CHARS = 200
_CHUNK_FILES = 16


def embedded_documents() -> list[Document]:
    """Return the embedded corpus in a fixed order; each paragraph occurs in one document only."""
    sources = list(_sources())
    paragraphs = map_parallel(_module_prose, [path for _, path in sources], "reading", _CHUNK_FILES)
    documents: list[Document] = []
    seen: set[str] = set()
    for (name, _), found in zip(sources, paragraphs, strict=True):
        kept = [paragraph for paragraph in found if _first_time(paragraph, seen)]
        text = "\n".join(kept)
        if len(text) >= _MIN_DOCUMENT_CHARS:
            documents.append(Document(name, text))
    return documents


def corpus_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages whose documentation is the corpus."""
    packages = {name: _distribution(name) for name in _PACKAGES}
    found = {name: package.version for name, package in packages.items() if package}
    return {"python": platform.python_version(), **found}


def _distribution(name: str) -> metadata.Distribution | None:
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None


def _sources() -> Iterator[tuple[str, Path]]:
    """Yield (name, file) of every module, sorted by package and path."""
    library = Path(sysconfig.get_path("stdlib"))
    inside = (PurePosixPath(path.relative_to(library)) for path in library.rglob("*.py"))
    yield from ((f"python/{path}", library / path) for path in sorted(filter(_is_wanted, inside)))
    for name in _PACKAGES:
        package = _distribution(name)
        files = [PurePosixPath(path) for path in (package.files or ())] if package else []
        for path in sorted(filter(_is_wanted, files)):
            assert package is not None
            yield f"{name}/{path}", Path(str(package.locate_file(path)))


def _is_wanted(path: PurePosixPath) -> bool:
    is_test = path.name.startswith("test_") or path.name == "conftest.py"
    return path.suffix == ".py" and not is_test and not _SKIPPED_PARTS.intersection(path.parts)


def _module_prose(path: Path) -> list[str]:
    """Return the prose paragraphs of one source file; none if it cannot be read."""
    try:
        source = path.read_bytes()
        # Half of all files have no text of more than a line; parsing takes most of the time.
        if b'"""' not in source and b"'''" not in source:
            return []
        with warnings.catch_warnings():
            # Users need no warnings about escape sequences in other packages.
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError, RecursionError):
        return []
    return [paragraph for text in _literals(tree) for paragraph in prose(text)]


def _literals(node: ast.AST) -> Iterator[str]:
    """Yield the documentation among statements, in order: docstrings, and long texts in calls.

    Torch and NumPy attach documentation with calls, and help topics are a dictionary. A text of one
    line in a call is a message and not documentation. Other expressions, which are most of a tree,
    are not visited.
    """
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Expr | ast.Assign):
            if isinstance(child.value, ast.Constant | ast.Call | ast.Dict):
                yield from (
                    leaf.value
                    for leaf in ast.walk(child.value)
                    if isinstance(leaf, ast.Constant)
                    and isinstance(leaf.value, str)
                    and len(leaf.value) >= _MIN_LITERAL_CHARS
                    and (leaf is child.value or "\n" in leaf.value)
                )
        elif isinstance(child, ast.stmt | ast.ExceptHandler):
            yield from _literals(child)


def _first_time(paragraph: str, seen: set[str]) -> bool:
    """Return whether no earlier paragraph had the same letters, and record this one."""
    key = "".join(filter(str.isalpha, paragraph.casefold()))
    if key in seen:
        return False
    seen.add(key)
    return True
