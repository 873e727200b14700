"""Bundles: one file that carries a program, its manifest and its requirements."""

import base64
import json
import random
import tempfile
from pathlib import Path
from typing import Any

import brotli

from fairway.base.files import digest_bytes, read_bytes
from fairway.bundle.build import MANIFEST, REQUIREMENTS, SCRIPT, check_bundle, write_bundle
from fairway.bundle.wrap import Started, unwrap, wrap
from fairway.config.written import fixed_digest, from_dict
from fairway.recipes import recipe

from . import Case, Files
from .damage import damaged, odd_json, spoil_value


def _whole() -> Files:
    """Return the bundle of a recipe."""
    with tempfile.TemporaryDirectory() as folder:
        write_bundle(recipe("smoke"), Path(folder) / "made")
        return files_of(Path(folder) / "made")


def files_of(made: Path) -> Files:
    """Return the files of a bundle that are spoiled here."""
    return {name: (made / name).read_bytes() for name in (SCRIPT, MANIFEST, REQUIREMENTS)}


class Bundles:
    """A bundle of a recipe as it is written, and small ones of both alphabets."""

    name = "bundle"

    def specimens(self) -> list[Files]:
        """Return a whole bundle and single scripts."""
        program = "import sys\n\n\ndef start():\n    print(sys.argv, '\u00e9')\n" * 20
        started = Started(seed=42, source="local", clock="")
        alone = [wrap(program, started, ascii_only) for ascii_only in (False, True)]
        return [_whole(), *({SCRIPT: script} for script in alone)]

    def spoil(self, files: Files, rng: random.Random) -> Case:
        """Spoil bytes, or what they carry, with the manifest's digests made right again."""
        script = files[SCRIPT]
        kind = rng.random()
        if kind < 0.4:
            name = rng.choice(list(files))
            return Case({name: damaged(files[name], rng)}, False, name)
        if kind < 0.7:
            script, note = _carrying(damaged(unwrap(script).encode(), rng), rng), "program"
        elif kind < 0.8:
            script, note = _carrying(b"#" * rng.choice((10**6, 10**7, 10**8)), rng), "bomb"
        else:
            script, note = _source(rng), "source"
        if MANIFEST not in files:
            return Case({SCRIPT: script}, True, note)
        manifest = json.loads(files[MANIFEST])
        if rng.random() < 0.5:
            script, note = files[SCRIPT], "manifest" + spoil_value(manifest, rng)
        if rng.random() < 0.1:
            return Case({MANIFEST: odd_json(manifest, rng)}, True, "odd manifest")
        if isinstance(manifest, dict):
            manifest |= {"bytes": len(script), "digest": digest_bytes(script)}
        return Case({SCRIPT: script, MANIFEST: json.dumps(manifest).encode()}, True, note)

    def read(self, folder: Path) -> Any:
        """Return the program, and the manifest where there is one."""
        manifest = check_bundle(folder) if (folder / MANIFEST).exists() else None
        return unwrap(read_bytes(folder / SCRIPT)), manifest

    def wrong(self, files: Files, case: Case, found: Any) -> str:
        """Compare with the general decoders, and with the digests of the manifest."""
        program, manifest = found
        script = case.changes.get(SCRIPT, files[SCRIPT])
        assert isinstance(script, bytes)
        if manifest is not None:
            if digest_bytes(script) != manifest["digest"]:
                return "the script is another than the manifest's"
            if digest_bytes(program.encode()) != manifest["program_digest"]:
                return "the program is another than the manifest's"
            if fixed_digest(from_dict(manifest["config"])) != manifest["fixed_digest"]:
                return "the settings are others"
            return ""
        # A script alone has no digest; what it says it carries is what it is.
        return "" if program.encode() in _carried(script) else "the program is another"


def _carrying(program: bytes, rng: random.Random) -> bytes:
    """Return a script that carries some bytes."""
    packed = brotli.compress(program, quality=1)
    if rng.random() < 0.2:
        packed = damaged(packed, rng)
    literal = f"base64.b85decode('{base64.b85encode(packed).decode()}')"
    return f"import base64,brotli\nx=brotli.decompress({literal})\n".encode()


def _source(rng: random.Random) -> bytes:
    """Return a source that is hard to read."""
    many = rng.choice((100, 1_000, 20_000))
    return rng.choice(
        (
            b"(" * many, b"x" + b".a" * many, b"-" * many + b"1", b"1" + b"+1" * many,
            b"brotli.decompress(" * many + b")" * many, b"'\\q'\n" * many, b"\0" * many,
            b"[" * 99 + b"]" * 99, b"#coding:nothing\n" + b"x=1\n" * many, b"lambda:" * many + b"0",
            b"brotli.decompress()\n" * many, b"x=f'" + b"{" * many, b"9" * many, b"\xff" * many,
            b"brotli.decompress('x'.encode('latin1'))", b"brotli.decompress(a.b85decode('\xff'))",
            b"if x:\n" + b" if x:\n" * many, b"{" * 60 + b":" * 60, b"x" * many + b"\r" * many,
        )
    )  # fmt: skip


def _carried(script: bytes) -> list[bytes]:
    """Return all that a script's literals unfold to, by the libraries themselves."""
    import ast
    import contextlib
    import warnings

    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ast.parse(script)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
            continue
        for packed in (_latin1(node.value), _base85(node.value)):
            with contextlib.suppress(brotli.error):
                found.append(brotli.decompress(packed))
    return found


def _latin1(text: str) -> bytes:
    return text.encode("latin1", "replace")


def _base85(text: str) -> bytes:
    try:
        return base64.b85decode(text)
    except ValueError:
        return b""
