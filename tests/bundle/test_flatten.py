"""One readable program: settings stated, everything under its own name, nothing for readers."""

import ast
import re
from typing import Any

import pytest

from fairway.bundle.flatten import _own_names, _stated, _Stripper, flatten
from fairway.config import settings
from fairway.config.overrides import override
from fairway.config.settings import Config
from fairway.recipes import recipe


def evaluated(config: Config) -> Any:
    """Return what a stated config is in the package, where names have no module in front."""
    return eval(re.sub("G_fairway_config_[a-z]+__", "", _stated(config)), vars(settings))


@pytest.mark.parametrize("name", ["best", "demo", "pr1493", "pr1858", "smoke"])
def test_a_config_is_stated_by_what_differs(name: str) -> None:
    config = recipe(name)
    assert evaluated(config) == config
    assert _stated(Config()) == "G_fairway_config_settings__Config()"
    odd = override(config, ["optim.ema_decay=none", "optim.ema_share=0.5", "model.qk_gain=1"])
    assert evaluated(odd) == odd


def test_what_is_for_readers_goes_and_what_the_program_reads_stays() -> None:
    source = """
class C:
    'text'
    field: int = opt(1, 'help', lo=2)
    def method(self, a: int, *b: str, c: int = 3) -> int:
        'text'
        d: int = a
        e: str
        assert a, 'said'
        return d
@jit('i8(i8)')
def compiled(a: int) -> int:
    'text'
    b: int = a
    return b
"""
    left = """
class C:
    field: int = opt(1, '', lo=2)
    def method(self, a, *b, c=3):
        d = a
        assert a, 'said'
        return d
@jit('i8(i8)')
def compiled(a: int) -> int:
    b: int = a
    return b
"""
    assert ast.dump(_Stripper().visit(ast.parse(source))) == ast.dump(ast.parse(left))


def test_as_much_of_a_module_is_in_a_name_as_tells_two_apart() -> None:
    text = (
        "G_a_one__f; G_a_two__f; G_b_two__f; G_a_one__g; G_a_one__used; X_time__; x.time; used;"
        "X_json__dumps; X_triton_dot_language__"
    )
    assert _own_names([*ast.walk(ast.parse(text))]) == {
        "G_a_one__f": "f_one", "G_a_two__f": "f_a_two", "G_b_two__f": "f_b_two",
        "G_a_one__g": "g", "G_a_one__used": "used_one", "X_time__": "time_module",
        "X_json__dumps": "dumps", "X_triton_dot_language__": "tl",
    }  # fmt: skip


@pytest.mark.long
def test_every_statement_has_its_module() -> None:
    flat = flatten(recipe("smoke"))
    found: dict[str, Any] = {}
    for module, node in flat.statements(ast.parse(flat.text)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = module
    assert (
        found["GPT"] == "fairway.model.gpt" and found["Kernels"] == "fairway.model.gpu.operations"
    )
    assert found["start"] == "" and found["Ledger"] == "fairway.score.ledger"
