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
from fairway.base.notes import Notes
from fairway.base.outputs import require_absent
from fairway.bundle.flatten import Flat, flatten
from fairway.bundle.modules import ROOT, source_file, walk
from fairway.bundle.parts import parts_left_out
from fairway.bundle.shorten import library_names, shorten
from fairway.bundle.wrap import MOST_FILE_BYTES, Started, unwrap, wrap
from fairway.config.settings import Config
from fairway.config.written import fixed_digest, from_dict, to_dict
from fairway.version import VERSION

SCRIPT, MANIFEST, REQUIREMENTS = "train_gpt.py", "bundle.json", "requirements.txt"
SCHEMA = 1
# What a manifest says beside the digests, and `verify` reads.
_FIELDS = {"config": dict, "fairway": str, "fixed_digest": str, "requirements": list}
_FIELDS |= {"sources": dict, "tools": dict}
# What a bundle may import besides what comes with Python, and what these bring by themselves.
PACKAGES = ("brotli", "numba", "numpy", "rich", "safetensors", "sentencepiece", "torch")
_BROUGHT = ("llvmlite", "triton")
_BUNDLER = tuple(f"fairway.bundle.{path.stem}" for path in Path(__file__).parent.glob("[a-z]*.py"))
# What the bytes of a bundle are a function of, besides recipe and sources.
_TOOLS = (*PACKAGES, "llvmlite", "python-minifier")
# How large bundles were when they were measured before. Only that number is kept, never a program:
# what is shipped is always made anew.
SIZES = Notes("bundle-bytes", "bytes")


@dataclass(frozen=True, slots=True)
class Program:
    """A short program: its text, what became of the names it shares, and, for each module, how many
    of its characters came from there. ("" stands for imports and for the start.)"""

    text: str
    names: dict[str, str]
    characters: dict[str, int]


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle's file, its program with long names, its manifest, and what became of names."""

    file: bytes
    plain: str
    manifest: dict[str, Any]
    names: dict[str, str]


def bundle(config: Config, ascii_only: bool = False) -> Bundle:
    """Return the bundle of a recipe: the same bytes for the same sources, recipe and tools."""
    return _bundle(_portable(config), ascii_only)


def bundle_bytes(config: Config) -> int:
    """Return the bytes of a recipe's bundle: the same for every seed, text and clock.

    Takes three or four seconds the first time; it is noted for the next process that asks.
    """
    key = digest_json(bundle_key(config))
    if type(found := SIZES.find(key)) is int:
        return found
    size = len(_file(_unstarted(config), _started(config)))
    SIZES.keep(key, size)
    return size


def bundle_key(config: Config) -> list[Any]:
    """Return what the bytes of a recipe's bundle are a function of, ready for JSON."""
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
        "requirements": list(requirements(flat.text)),
        "sources": sources,
        "python": platform.python_version(),
        "tools": _tools(),
        "modules": _shares(short, len(file)),
        "parts_left_out": [part.asked_by for part in parts_left_out(fixed)],
    }
    return Bundle(file, plain, manifest, short.names)


def program(flat: Flat) -> Program:
    """Return a flat program as short as it gets; it defines and calls the same things."""
    tree = ast.parse(flat.text)
    names = shorten(tree, library_names(imported(tree)))
    counts: Counter[str] = Counter()
    for origin, node in flat.statements(tree):
        counts[origin] += len(ast.unparse(node))
    return Program(python_minifier.unparse(tree), names, dict(counts))


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
    """Return the programs of a recipe out of sources of a digest, which are those on disk."""
    with _uncollected():
        flat = flatten(config)
        return flat, program(flat)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Look for no garbage meanwhile: of millions of nodes nearly all live, or go by their counts.

    To look at them, and at all of PyTorch, again and again takes a third of a bundle's time.
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
    """Return a digest of all of the package's sources, as they lie on disk now."""
    files = sorted(ROOT.rglob("*.py"))
    return digest_bytes("".join(map(digest_file, files)).encode())


def _tools() -> dict[str, str]:
    return {name: metadata.version(name) for name in _TOOLS}


def _unstarted(config: Config) -> Config:
    """Return a config whose program is told seed, text and clock when it starts."""
    data, train = replace(config.data, source=""), replace(config.train, clock="wall", replay="")
    train = replace(train, init="")
    return replace(config, seed=0, data=data, train=train)


def _started(config: Config) -> Started:
    """Return what starts the bundle of a config; one that follows a run is told so elsewhere."""
    clock = "wall" if config.train.clock == "replay" else config.train.clock
    return Started(config.seed, _portable_source(config), clock)


def left_out(config: Config) -> list[str]:
    """Return what a recipe asks for and its bundle does not do: neither belongs to a score."""
    asked = {"prove.bytes": config.prove.bytes, "mixture.published": config.mixture.published}
    return [name for name, value in asked.items() if value]


def _portable(config: Config) -> Config:
    """Return a config without the paths of this machine: a bundle is told where its text is."""
    if config.train.clock == "replay":
        raise UserError(
            "train.clock is replay, which belongs to one run; bundle the recipe with wall or steps "
            "and start the bundle with --replay RUN"
        )
    if config.train.init:
        raise UserError(
            f"train.init is {config.train.init}, but a bundle holds no weights: it must train "
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
    require_absent(out, SCRIPT, MANIFEST, REQUIREMENTS)
    made = bundle(config, ascii_only)
    write_atomic(out / SCRIPT, made.file)
    write_json(out / MANIFEST, made.manifest)
    write_atomic(out / REQUIREMENTS, _lines(made.manifest["requirements"]))
    return made


def _lines(needed: Sequence[str]) -> bytes:
    return "".join(f"{line}\n" for line in needed).encode(errors="surrogatepass")


@functools.lru_cache(maxsize=8)
def requirements(program: str) -> tuple[str, ...]:
    """Return the packages that a bundle imports, at the versions installed here."""
    # The file unpacks itself by Brotli.
    needed = {"brotli", *(name.partition(".")[0] for name in imported(ast.parse(program)))}
    unknown = needed - {*PACKAGES, *_BROUGHT, *sys.stdlib_module_names}
    assert not unknown, f"what must be installed for {sorted(unknown)}?"
    # A local build of PyTorch is called 2.13.0+cpu; the index knows it without that.
    versions = {name: metadata.version(name).partition("+")[0] for name in PACKAGES}
    return tuple(f"{name}=={version}" for name, version in versions.items() if name in needed)


def check_bundle(folder: Path) -> dict[str, Any]:
    """Return the manifest of a bundle whose files are what it says.

    Raises UserError for a byte that differs.
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
