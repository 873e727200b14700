# ruff: noqa: E501 - packed sources in one line each
"""Scripts unpacked and read, never run."""

import base64
import bz2
import gzip
import lzma
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import brotli
import pytest
import zstandard
from audit.record import SCRIPT, Case, wrapped

from fairway.audit.records.audit import audit_record
from fairway.audit.records.literals import MOST_BYTES
from fairway.audit.records.unwrap import MOST_DEPTH, MOST_PARSED, unwrap

B85 = base64.b85encode
STYLES: dict[str, Callable[[bytes], str]] = {
    "lzma": lambda s: f"import lzma,base64\nexec(lzma.decompress(base64.b85decode({B85(lzma.compress(s))!r})))",
    "zlib": lambda s: f"exec(__import__('zlib').decompress(__import__('base64').b64decode({base64.b64encode(zlib.compress(s))!r})))",
    "gzip": lambda s: f"from gzip import decompress as d\nimport base64\nblob = base64.a85decode({base64.a85encode(gzip.compress(s))!r})\nexec(compile(d(blob).decode('utf-8'), 'x', 'exec'), globals())",
    "brotli": lambda s: f"import brotli as b, base64\nexec(b.decompress(base64.b85decode({B85(brotli.compress(s))!r})))",
    "zstd": lambda s: f"import zstandard, base64\nsrc = base64.b85decode({B85(zstandard.compress(s))!r})\nexec(zstandard.decompress(src))",
    "bz2": lambda s: f"import bz2, binascii\nexec(bz2.decompress(binascii.unhexlify('{bz2.compress(s).hex()}')))",
    "halves": lambda s: f"import zlib,base64\na={B85(zlib.compress(s))[:50]!r}\nb={B85(zlib.compress(s))[50:]!r}\nexec(zlib.decompress(base64.b85decode(a+b)))",
    "raw": lambda s: wrapped(s.decode()),
}  # fmt: skip


@pytest.mark.parametrize("style", STYLES)
def test_every_style_of_bootstrap_is_opened(style: str) -> None:
    found = unwrap(STYLES[style](SCRIPT.encode()))
    assert (len(found.layers), found.layers[-1].source, found.stopped) == (2, SCRIPT, "")


def test_nested_bootstraps_are_opened_down_to_the_last() -> None:
    source = SCRIPT
    for style in STYLES.values():
        source = style(source.encode())
    found = unwrap(source)
    assert found.layers[-1].source == SCRIPT
    assert found.layers[-1].depth == len(STYLES)
    for style in STYLES.values():
        source = style(source.encode())
    assert f"more than {MOST_DEPTH} deep" in unwrap(source).stopped


def test_what_is_plain_or_unknown_stays_as_it_is() -> None:
    unknown = [
        SCRIPT, "exec(open(__file__).read())", "exec(f(b'x'))", "exec(zlib.decompress(b'no'))",
        "import lzma\nexec(lzma.decompress(b'x' * 9))", "x = x\nexec(x)", "exec('print(1)')",
        "import lzma\nexec(lzma.decompress(b'1', format=lzma.FORMAT_RAW, filters=[{'id': 99}]))",
    ]  # fmt: skip
    for source in unknown:
        assert [layer.source for layer in unwrap(source).layers] == [source]


@pytest.mark.parametrize("style", STYLES)
def test_a_bomb_is_not_unpacked(style: str) -> None:
    found = unwrap(STYLES[style](b"#" * (MOST_BYTES + 1)))
    assert len(found.layers) == 1
    assert f"more than {MOST_BYTES:,} bytes" in found.stopped


def test_a_doubling_and_a_hungry_filter_are_stopped() -> None:
    doubling = "".join(f"a{n + 1} = a{n} + a{n}\n" for n in range(60))
    assert len(unwrap(f"a0 = 'x'\n{doubling}exec(a60)").layers) == 1
    filters = "[{'id': lzma.FILTER_LZMA2, 'dict_size': 1500000000}]"
    hungry = f"import lzma\nexec(lzma.decompress(b'x', lzma.FORMAT_RAW, None, {filters}))"
    assert "dictionary" in unwrap(hungry).stopped
    assert unwrap("(" * 5000 + "exec('x')").layers[0].tree is None


def test_nothing_is_executed(tmp_path: Path) -> None:
    trap = f"open({str(tmp_path / 'trap')!r}, 'w').write('sprung')\n"
    case = Case(script=trap + wrapped(trap + SCRIPT))
    folder = case.write(tmp_path / "record")
    (folder / "helper.py").write_text(trap)
    audit_record(folder)
    assert not (tmp_path / "trap").exists()


# ---------------------------------------------------------------------------------------------
# Patterns

PRE_EVAL = """
def pre_quant_adapt(h, model, val_data):
    for epoch in range(h.prequant_ttt_epochs):
        for x, y in batches(val_data.val_tokens):
            loss = model(x, y)
            loss.backward()
            optimizer.step()
def train_and_eval(h):
    model = train_model(h)
    {call}
    serialize(h, model)
    eval_val_ttt(h, 0, val_data, model)
"""
GATED = "if h.prequant_ttt_enabled:\n        pre_quant_adapt(h, model, val_data)"
PATTERNS = {
    "hashed-target": "def ngram(ctx, target, mask):\n    return ((ctx * 31) ^ (target * 17)) & mask\n",
    "target-gate": "def ppm_mix(nn_logp, ppm):\n    lam = 0.9\n    if nn_logp > -0.277:\n        lam = 1.0\n    return lam\n",
    "uniform-spread": "def ppm_mix(nll, n_bytes):\n    per = nll / n_bytes\n    return per\n",
    "installs": "import subprocess\nsubprocess.run('apt-get install -y lrzip', shell=True)\n",
    "network": "import urllib.request\nurllib.request.urlopen('http://x')\n",
}


def codes(script: str, folder: Path, settings: dict[str, str] | None = None) -> dict[str, str]:
    case = Case(script=script, settings={s: settings or {} for s in (42, 314, 999)})
    return {f.code: f.severity for f in audit_record(case.write(folder)).findings}


@pytest.mark.parametrize(
    ("call", "settings", "expected"),
    [
        ("pre_quant_adapt(h, model, val_data)", {}, {"val-training": "invalid"}),
        (GATED, {"prequant_ttt_enabled": "True"}, {"val-training": "invalid"}),
        (GATED, {"prequant_ttt_enabled": "False"}, {}),
        (GATED, {}, {"val-training": "warning"}),
        ("pass", {}, {}),
    ],
)
def test_training_on_validation_text_is_judged_by_whether_it_ran(
    call: str, settings: dict[str, str], expected: dict[str, str], tmp_path: Path
) -> None:
    assert codes(SCRIPT + PRE_EVAL.format(call=call), tmp_path, settings) == expected


@pytest.mark.parametrize("code", PATTERNS)
@pytest.mark.parametrize("wrap", [str, wrapped])
def test_patterns_are_found_plain_and_packed(
    code: str, wrap: Callable[[str], str], tmp_path: Path
) -> None:
    assert codes(wrap(SCRIPT + PATTERNS[code]), tmp_path) == {code: "warning"}


# Each takes the square of its length where nested walks have no budget.
LABOUR = {
    "nested functions": "".join(f"{' ' * n}def mix{n}():\n" for n in range(90))
    + (" " * 90 + "y = y[y[y]]\n") * 1_000,
    "long quotients": ("def mix():\n x = " + "/".join("y" * 900) + "\n") * 50,
    "long chains": "".join(f"x{'.a()' * 900}\n" for _ in range(30)),
    "many conditions": "def pre(val_x):\n backward.backward()\n x.step()\n"
    "def f():\n" + " if a:\n  pre()\n" * 4_000 + " serialize()\n",
    "many statements": "def mix_ppm(y):\n" + " y=y[y[y]]\n" * 20_000,
    "deep hash": "def f(target):\n x = (" + "^".join(["target"] * 900) + ") % 7\n",
}


@pytest.mark.long
@pytest.mark.parametrize("kind", LABOUR)
def test_a_script_takes_so_many_steps_and_is_told(kind: str, tmp_path: Path) -> None:
    start_s = time.process_time()
    found = codes(LABOUR[kind], tmp_path)
    assert time.process_time() - start_s < 8
    if kind == "deep hash":
        assert found["hashed-target"] == "warning"
    elif kind not in ("long chains", "many conditions"):
        assert found["syntax"] == "note"


def test_many_scripts_are_parsed_in_one_budget_and_the_one_that_ran_comes_first(
    tmp_path: Path,
) -> None:
    folder = Case(script=SCRIPT + PATTERNS["installs"]).write(tmp_path / "record")
    for number in range(40):
        (folder / f"a{number}.py").write_text("x = 1\n" * 50_000)
    start_s = time.process_time()
    found = audit_record(folder).findings
    assert time.process_time() - start_s < 8
    assert any(f.code == "installs" and f.place.startswith("train_gpt.py") for f in found)
    assert sum(f.code == "syntax" for f in found) == 39


def test_layers_are_parsed_in_one_budget() -> None:
    script = "x = 1\n"
    for _ in range(4):
        script = wrapped(script + "y = 1\n" * 25_000)
    layers = unwrap(script).layers
    assert [layer.tree is None for layer in layers] == [False] * (len(layers) - 1) + [True]
    assert sum(len(layer.source) for layer in layers[:-1]) <= MOST_PARSED


def test_what_only_looks_like_a_pattern_passes(tmp_path: Path) -> None:
    harmless = """
def bpb(nll_sum, byte_count):
    return nll_sum / math.log(2) / byte_count
def ngram(ctx, mask):
    return (ctx ^ 31) & mask
def ppm_mix(conf):
    lam = 0.05 if conf >= 0.9 else 0.9
    return lam
def train_val_ttt_global_sgd(h, val_tokens, model):
    loss = model(val_tokens)
    loss.backward()
    optimizer.step()
def eval_phased(h):
    train_val_ttt_global_sgd(h, 0, 0)
"""
    assert codes(SCRIPT + harmless, tmp_path) == {}
