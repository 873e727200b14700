"""`fairway bundle`: the files of a bundle and their digests."""

import ast
import functools
import gc
import platform
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import python_minifier

from fairway.base.errors import UserError
from fairway.base.files import (
    digest_bytes,
    digest_file,
    digest_json,
    read_bytes,
    read_json,
    write_atomic,
    write_json,
)
from fairway.base.folders import added_files
from fairway.base.nodes import walk
from fairway.base.notes import Notes
from fairway.bundle.flatten import Flat, flatten
from fairway.bundle.modules import ROOT, source_file
from fairway.bundle.parts import parts_left_out
from fairway.bundle.shorten import library_names, shorten
from fairway.bundle.wrap import MOST_FILE_BYTES, Started, unwrap, wrap
from fairway.config.settings import Config
from fairway.config.written import fixed_digest, from_dict, to_dict
from fairway.version import VERSION

SCRIPT, MANIFEST, REQUIREMENTS = "train_gpt.py", "bundle.json", "requirements.txt"
SCHEMA = 1
# The fields of a manifest besides the digests; `verify` reads them.
_FIELDS = {"config": dict, "fairway": str, "fixed_digest": str, "requirements": list}
_FIELDS |= {"sources": dict, "tools": dict}
# The packages that a bundle may import besides Python's own, and the packages that these include.
PACKAGES = ("brotli", "numba", "numpy", "rich", "safetensors", "sentencepiece", "torch")
_BROUGHT = ("llvmlite", "triton")
_BUNDLER = tuple(f"fairway.bundle.{path.stem}" for path in Path(__file__).parent.glob("[a-z]*.py"))
# Besides recipe and sources, the bytes of a bundle depend on these versions.
_TOOLS = (*PACKAGES, "llvmlite", "python-minifier")
# The recorded sizes of earlier bundles. Only the number is kept, and never a program: a shipped
# bundle is always built anew.
SIZES = Notes("bundle-bytes", "bytes")


@dataclass(frozen=True, slots=True)
class Program:
    """A short program: its text, the new names of shared names, the number of characters from each
    module ("" stands for imports and the start), and the modules that it imports."""

    text: str
    names: dict[str, str]
    characters: dict[str, int]
    imports: frozenset[str]


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle's file, its program with long names, its manifest, and the new names."""

    file: bytes
    plain: str
    manifest: dict[str, Any]
    names: dict[str, str]


def bundle(config: Config, ascii_only: bool = False) -> Bundle:
    """Return the bundle of a recipe: the same bytes for the same sources, recipe and tools."""
    return _bundle(_portable(config), ascii_only)


def bundle_bytes(config: Config) -> int:
    """Return the bytes of a recipe's bundle: the same for every seed, text and clock.

    It takes three or four seconds the first time; the number is kept for later processes.
    """
    key = digest_json(bundle_key(config))
    if type(found := SIZES.find(key)) is int:
        return found
    size = len(_file(_unstarted(config), _started(config)))
    SIZES.keep(key, size)
    return size


def bundle_key(config: Config) -> list[Any]:
    """Return everything that the bytes of a recipe's bundle depend on, ready for JSON."""
    python = [platform.python_version(), sys.platform, platform.machine()]
    return [fixed_digest(config), _sources(), python, _tools()]


def _bundle(config: Config, ascii_only: bool) -> Bundle:
    fixed, started = _unstarted(config), _started(config)
    flat, short = _made(fixed, _sources())
    file = wrap(short.text, started, ascii_only)
    plain = flat.text + started.call(len(file))
    modules = sorted({origin for origin in flat.origins if origin} | set(_BUNDLER))
    sources = {name: digest_file(path) for name in modules if (path := source_file(name))}
    manifest = {
        "schema": SCHEMA,
        "fairway": VERSION,
        "recipe": config.recipe,
        "fixed_digest": fixed_digest(config),
        "config": to_dict(config),
        "bytes": len(file),
        "digest": digest_bytes(file),
        "program_digest": digest_bytes(short.text.encode()),
        "plain_digest": digest_bytes(plain.encode()),
        "requirements": list(requirements(short.imports)),
        "sources": sources,
        "python": platform.python_version(),
        "tools": _tools(),
        "modules": _shares(short, len(file)),
        "parts_left_out": [part.asked_by for part in parts_left_out(fixed)],
    }
    return Bundle(file, plain, manifest, short.names)


def program(flat: Flat) -> Program:
    """Return a flat program in its shortest form; it defines and calls the same things."""
    tree = ast.parse(flat.text)
    modules = imported(tree)
    names = shorten(tree, library_names(modules))
    counts: Counter[str] = Counter()
    for origin, node in flat.statements(tree):
        counts[origin] += len(ast.unparse(node))
    return Program(python_minifier.unparse(tree), names, dict(counts), modules)


def imported(tree: ast.Module) -> frozenset[str]:
    """Return the modules that a program imports, or takes names from."""
    found = set()
    for node in walk(tree):
        if isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return frozenset(found)


@functools.lru_cache(maxsize=8)
def _made(config: Config, sources: str) -> tuple[Flat, Program]:
    """Return the programs of a recipe; `sources` is the digest of the sources on disk."""
    with _uncollected():
        flat = flatten(config)
        return flat, program(flat)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Turn the garbage collector off: of millions of nodes, nearly all stay alive.

    Repeated collections over them and all of PyTorch take a third of a bundle's time.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _file(fixed: Config, started: Started, ascii_only: bool = False) -> bytes:
    return wrap(_made(fixed, _sources())[1].text, started, ascii_only)


def _sources() -> str:
    """Return a digest of all sources of the package, as they are on disk now."""
    files = sorted(ROOT.rglob("*.py"))
    return digest_bytes("".join(map(digest_file, files)).encode())


def _tools() -> dict[str, str]:
    return {name: metadata.version(name) for name in _TOOLS}


def _unstarted(config: Config) -> Config:
    """Return a config without seed, text and clock, which the program gets at its start."""
    data, train = replace(config.data, source=""), replace(config.train, clock="wall", replay="")
    train = replace(train, init="")
    return replace(config, seed=0, data=data, train=train)


def _started(config: Config) -> Started:
    """Return the start arguments of a config's bundle; a run to follow is given elsewhere."""
    clock = "wall" if config.train.clock == "replay" else config.train.clock
    return Started(config.seed, _portable_source(config), clock)


def left_out(config: Config) -> list[str]:
    """Return settings of a recipe that its bundle ignores, because no score depends on them."""
    asked = {"prove.bytes": config.prove.bytes, "mixture.published": config.mixture.published}
    return [name for name, value in asked.items() if value]


def _portable(config: Config) -> Config:
    """Return a config without this machine's paths: a bundle gets the path of its text later."""
    if config.train.clock == "replay":
        raise UserError(
            "train.clock is replay, which belongs to one run; bundle the recipe with wall or steps "
            "and start the bundle with --replay RUN"
        )
    if config.train.init:
        raise UserError(
            f"train.init is {config.train.init}, but a bundle contains no weights: it must train "
            "from its code and the text alone; bundle the recipe without train.init"
        )
    return replace(config, data=replace(config.data, source=_portable_source(config)))


def _portable_source(config: Config) -> str:
    return config.data.source if config.data.source == "embedded" else ""


def _shares(short: Program, size_bytes: int) -> list[dict[str, Any]]:
    """Return the file's bytes by module, in proportion to its characters; they sum to the file."""
    counts = sorted(short.characters.items(), key=lambda item: (-item[1], item[0]))
    total, before, found = sum(n for _, n in counts), 0, []
    for name, count in counts:
        start, before = before, before + count
        share = before * size_bytes // total - start * size_bytes // total
        found.append({"name": name or "imports", "characters": count, "bytes": share})
    return found


def write_bundle(config: Config, out: Path, ascii_only: bool = False) -> Bundle:
    """Write train_gpt.py, its manifest and its requirements into a folder; overwrite nothing."""
    with added_files(out, SCRIPT, REQUIREMENTS, MANIFEST) as folder:
        return write_files(config, folder, ascii_only)


def write_files(config: Config, folder: Path, ascii_only: bool = False) -> Bundle:
    """Write the same files into a folder of the caller, who keeps them together."""
    made = bundle(config, ascii_only)
    write_atomic(folder / SCRIPT, made.file)
    write_atomic(folder / REQUIREMENTS, _lines(made.manifest["requirements"]))
    write_json(folder / MANIFEST, made.manifest)
    return made


def _lines(needed: Sequence[str]) -> bytes:
    return "".join(f"{line}\n" for line in needed).encode(errors="surrogatepass")


def requirements(imports: frozenset[str]) -> tuple[str, ...]:
    """Return the packages that a bundle imports, at the versions installed here."""
    # The file unpacks itself with Brotli.
    needed = {"brotli", *(name.partition(".")[0] for name in imports)}
    unknown = needed - {*PACKAGES, *_BROUGHT, *sys.stdlib_module_names}
    assert not unknown, f"the package of {sorted(unknown)} is missing from PACKAGES"
    # A local build of PyTorch has a version like 2.13.0+cpu; the index lists it without the suffix.
    versions = {name: metadata.version(name).partition("+")[0] for name in PACKAGES}
    return tuple(f"{name}=={version}" for name, version in versions.items() if name in needed)


def check_bundle(folder: Path) -> dict[str, Any]:
    """Return the manifest of a bundle after checking its files against it.

    Raises UserError if any byte differs.
    """
    manifest, path = read_json(folder / MANIFEST), folder / SCRIPT
    data = read_bytes(path, MOST_FILE_BYTES)
    needed = read_bytes(folder / REQUIREMENTS, MOST_FILE_BYTES)
    found = {"bytes": len(data), "digest": digest_bytes(data)}
    found["program_digest"] = digest_bytes(unwrap(data).encode())
    for name, value in found.items():
        if not isinstance(manifest, dict) or manifest.get(name) != value:
            raise UserError(f"{path} is not the bundle of {folder / MANIFEST}: {name} is {value}")
    for name, kind in _FIELDS.items():
        if not isinstance(manifest.get(name), kind):
            raise UserError(
                f"{folder / MANIFEST} has no valid '{name}'; make the bundle again with "
                "fairway bundle"
            )
    if needed != _lines(manifest["requirements"]):
        raise UserError(f"{folder / REQUIREMENTS} does not match {folder / MANIFEST}")
    if fixed_digest(from_dict(manifest["config"])) != manifest["fixed_digest"]:
        raise UserError(f"the settings in {folder / MANIFEST} do not match its fixed_digest")
    return dict(manifest)
