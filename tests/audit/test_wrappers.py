# ruff: noqa: E501 - packed sources in one line each
"""Wrappers of all shapes, opened to the script inside without running any of it."""

import base64
import lzma
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from audit.record import SCRIPT, Case

from fairway.audit.records.audit import audit_record
from fairway.audit.records.unwrap import unwrap

PACKED = zlib.compress(SCRIPT.encode())
TEXT = base64.b85encode(PACKED).decode()
IN = "import base64, zlib\n"
OPEN = "exec(zlib.decompress(base64.b85decode({})))\n"
HALF = len(TEXT) // 2
SHIFTED = "".join(chr(ord(c) + 1) for c in TEXT)

SHAPES = {
    "replace": IN + OPEN.format(f"{TEXT.replace('a', '~~~')!r}.replace('~~~', 'a')"),
    "translate": IN + f"t = str.maketrans({TEXT[0]!r} + '\\u0100', '\\u0100' + {TEXT[0]!r})\n"
    + OPEN.format(f"{TEXT.translate({ord(TEXT[0]): chr(256)})!r}.translate(t)"),
    "join": IN + OPEN.format(f"''.join({[TEXT[n : n + 50] for n in range(0, len(TEXT), 50)]!r})"),
    "slice": IN + OPEN.format(f"('xx' + {TEXT!r} + 'yy')[2:-2]"),
    "backwards": IN + OPEN.format(f"{TEXT[::-1]!r}[::-1]"),
    "reversed": IN + OPEN.format(f"''.join(reversed({TEXT[::-1]!r}))"),
    "hex": f"import zlib\nexec(zlib.decompress(bytes.fromhex({PACKED.hex()!r})).decode())",
    "one number": f"import zlib\nexec(zlib.decompress(({int.from_bytes(PACKED)}).to_bytes({len(PACKED)}, 'big')))"
    if len(str(int.from_bytes(PACKED))) < 4000 else f"import zlib\nexec(zlib.decompress((0x{PACKED.hex()}).to_bytes({len(PACKED)}, 'big')))",
    "list of bytes": f"import zlib\nexec(zlib.decompress(bytes({list(PACKED)})))",
    "xor": f"import zlib\nexec(zlib.decompress(bytes(b ^ 85 for b in {bytes(b ^ 85 for b in PACKED)!r})))",
    "shifted letters": IN + OPEN.format(f"''.join(chr(ord(c) - 1) for c in {SHIFTED!r})"),
    "pieces": IN + f"s = ''\nfor part in [{TEXT[:HALF]!r}, {TEXT[HALF:]!r}]:\n    s += part\n" + OPEN.format("s"),
    "in a function": IN + f"def load(data):\n    raw = base64.b85decode(data)\n    return zlib.decompress(raw).decode()\nsource = load({TEXT!r})\nexec(compile(source, 'inner', 'exec'), globals())",
    "in main": IN + f"def main():\n    code = zlib.decompress(base64.b85decode({TEXT!r}))\n    exec(code, {{'__name__': '__main__'}})\nif __name__ == '__main__':\n    main()",
    "decompressor": f"import zlib, base64\nd = zlib.decompressobj()\nexec(d.decompress(base64.b85decode({TEXT!r})))",
    "codecs": f"import codecs\nexec(codecs.decode(codecs.decode({base64.encodebytes(PACKED)!r}, 'base64'), 'zlib'))",
    "aliases": f"exec(__import__('zlib').decompress(__import__('base64').b85decode({TEXT!r})))",
    "getattr": f"import builtins, zlib, base64\ngetattr(builtins, 'ex' + 'ec')(zlib.decompress(base64.b85decode({TEXT!r})))",
    "lambda": IN + f"(lambda s: exec(s))(zlib.decompress(base64.b85decode({TEXT!r})))",
    "walrus": IN + f"if (s := zlib.decompress(base64.b85decode({TEXT!r}))):\n    exec(s)",
    "written and run": IN + f"import os, runpy\np = os.path.join(os.path.dirname(__file__), '_inner.py')\nwith open(p, 'wb') as f:\n    f.write(zlib.decompress(base64.b85decode({TEXT!r})))\nrunpy.run_path(p, run_name='__main__')",
    "written and imported": IN + f"import tempfile, os, sys\nd = tempfile.mkdtemp()\nopen(os.path.join(d, 'inner_train.py'), 'wb').write(zlib.decompress(base64.b85decode({TEXT!r})))\nsys.path.insert(0, d)\nimport inner_train",
    "loader": IN + f"import importlib.util as U\np = '/tmp/_x.py'\nopen(p, 'wb').write(zlib.decompress(base64.b85decode({TEXT!r})))\ns = U.spec_from_file_location('__main__', p)\nm = U.module_from_spec(s)\ns.loader.exec_module(m)",
    "json of files": f"import json, zlib, base64\nfiles = json.loads(zlib.decompress(base64.b85decode({base64.b85encode(zlib.compress(__import__('json').dumps({'a.py': SCRIPT, 'b.txt': 'x'}).encode()))!r})))\nexec(compile(files['a.py'], 'a.py', 'exec'))",
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_a_wrapper_of_any_shape_is_opened(shape: str) -> None:
    found = unwrap(SHAPES[shape])
    assert (found.layers[-1].source, found.stopped) == (SCRIPT, "")


BESIDE: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "bytes": ("import lzma\nexec(lzma.decompress(open('code.bin', 'rb').read()))", lzma.compress),
    "path": ("import zlib\nfrom pathlib import Path\nexec(zlib.decompress((Path(__file__).parent / 'code.bin').read_bytes()))", zlib.compress),
    "text": ("import base64, zlib, os\nwith open(os.path.join(os.path.dirname(os.path.abspath(__file__)), 'code.bin')) as f:\n    data = f.read().strip()\nexec(zlib.decompress(base64.b64decode(data)))", lambda s: base64.b64encode(zlib.compress(s))),
    "lzma.open": ("import lzma\nwith lzma.open('code.bin') as f:\n    exec(f.read())", lzma.compress),
    "suffix": ("import pathlib, zlib\nexec(zlib.decompress(pathlib.Path(__file__).with_name('code.bin').read_bytes()))", zlib.compress),
    "plain": ("exec(open(__file__.replace('train_gpt.py', 'code.bin')).read())", bytes),
    "runpy": ("import runpy\nrunpy.run_path('./code.bin', run_name='__main__')", bytes),
}  # fmt: skip


@pytest.mark.parametrize("kind", BESIDE)
def test_files_beside_a_wrapper_are_read(kind: str, tmp_path: Path) -> None:
    script, pack = BESIDE[kind]
    trap = "import subprocess\nsubprocess.run('pip install x', shell=True)\n"
    folder = Case(script=script).write(tmp_path)
    (folder / "code.bin").write_bytes(pack((trap + SCRIPT).encode()))
    found = {f.code for f in audit_record(folder).findings}
    assert "installs" in found and "unpack" not in found


def test_what_lies_behind_a_mark_in_the_script_itself_is_read() -> None:
    script = "import zlib, base64\nexec(zlib.decompress(base64.b85decode(open(__file__).read().split('#DATA ' + 'HERE ')[1].strip())))\n"
    assert unwrap(f"{script}#DATA HERE {TEXT}\n").layers[-1].source == SCRIPT


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("import marshal\nexec(marshal.loads(b'x' * 50))", "compiled or pickled Python"),
        ("import pickle\nexec(pickle.loads(open('code.bin', 'rb').read()))", "pickled"),
        ("import urllib.request as u\nexec(u.urlopen('http://x').read())", "line 2"),
        ("exec(open('missing.py').read())", "line 1"),
    ],
)
def test_what_is_not_followed_is_said(script: str, words: str, tmp_path: Path) -> None:
    findings = audit_record(Case(script=script).write(tmp_path)).findings
    assert any(f.code == "unpack" and words in f.why for f in findings)


HOSTILE = {
    "long product": "x = 'a' * 10 ** 9\nexec(x)",
    "doubling": "x = 'ab'\nfor n in range(10 ** 9):\n    x = x + x\nexec(x)",
    "growing replace": "x = 'a' * 100000\nexec(x.replace('a', x))",
    "growing translate": "x = 'a' * 100000\nexec(x.translate({97: x}))",
    "growing join": "x = 'a' * 100000\nexec(x.join(list(x)))",
    "endless calls": "def f(x):\n    return f(x)\nexec(f('a'))",
    "many turns": "x = ''\nfor a in range(100000):\n    for b in range(100000):\n        x += 'a'\nexec(x)",
    "great number": "x = 7\nfor n in range(100000):\n    x = x * x\nexec(str(x))",
    "many copies": "x = 'a' * 9000000\n" + "y = x[1:]\n" * 20_000 + "exec(y)",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_values_that_grow_without_end_are_given_up(kind: str) -> None:
    start_s = time.process_time()
    assert len(unwrap(HOSTILE[kind]).layers) == 1
    assert time.process_time() - start_s < 4
