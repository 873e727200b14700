"""Constants followed: branches, expressions, parameters; nothing that may change is a constant."""

import ast

import pytest

from fairway.bundle.fold import fold_module, replaced_settings, types_of
from fairway.bundle.shake import Item, again, shake
from fairway.bundle.shorten import library_names
from fairway.bundle.specialise import drop_empty, specialise
from fairway.config.settings import Config, TttConfig


def folded(body: str, changed: tuple[str, ...] = (), config: Config | None = None) -> str:
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    tree = ast.parse(f"def f(config: TttConfig, whole: Config, n: int):\n{lines}\n")
    types = types_of(config or Config(ttt=TttConfig(method="sgd")), frozenset(changed))
    types.learn(ast.parse("class Config:\n    ttt: TttConfig\n    model: ModelConfig\n"))
    fold_module(tree, types)
    return "\n".join(ast.unparse(ast.fix_missing_locations(tree)).splitlines()[1:])


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("if config.method == 'lora':\n    a()\nelse:\n    b()", "b()"),
        ("if config.method == 'sgd':\n    return 1\nb()", "return 1"),
        ("return whole.ttt.epochs + n", "return 2 + n"),
        ("return whole.model.embed_dim or whole.model.dim", "return 512"),
        ("return n and config.confidence", "return n and False"),
        ("return config.confidence and g(n)", "return False"),
        ("return not config.confidence", "return True"),
        ("return {'sgd': a, 'lora': b}[config.method]", "return a"),
        ("return config.method in ('sgd', 'off')", "return True"),
        ("m = config.method\nreturn m == 'sgd'", "m = 'sgd'\nreturn True"),
        ("ttt, n = whole.ttt, 1\nreturn ttt.epochs", "ttt, n = (whole.ttt, 1)\nreturn 2"),
        ("return n.method", "return n.method"),
        ("config.method = n\nreturn whole.seed", "config.method = n\nreturn whole.seed"),
        ("return 1 // whole.model.embed_dim", "return 1 // 0"),
    ],
)
def test_constants_are_followed(before: str, after: str) -> None:
    assert [line.strip() for line in folded(before).splitlines()] == after.splitlines()


def test_what_a_run_changes_stays() -> None:
    body = "return config.epochs"
    assert folded(body).strip() == "return 2"
    assert folded(body, changed=("epochs",)).strip() == body
    calls = ast.parse("replace(config, epochs=1)\ndataclasses.replace(c, lr=2)\nf(stride=1)\n")
    assert replaced_settings([calls]) == {"epochs", "lr"}


def items(source: str) -> list[Item]:
    return [
        Item("m", False, node, {getattr(node, "name", "main")}) for node in ast.parse(source).body
    ]


def specialised(source: str) -> str:
    found = items(source)
    specialise(found, library_names())
    drop_empty(found, library_names())
    return "\n".join(ast.unparse(item.node) for item in found)


def test_a_parameter_that_is_always_the_same_goes() -> None:
    text = specialised(
        "def G_m__f(a, on=False):\n    if on:\n        return a\n    return 2 * a\n"
        "def main(x):\n    return G_m__f(x) + G_m__f(1, on=False)\n"
    )
    assert "on" not in text.replace("return", "")
    assert "return 2 * a" in text and "G_m__f(x) + G_m__f(1)" in text


@pytest.mark.parametrize(
    "use", ["G_m__f(x, True)", "map(G_m__f, x)", "G_m__f(*x)", "G_m__f(x, **x)", "G_m__f(x, x)"]
)
def test_a_parameter_that_may_differ_stays(use: str) -> None:
    text = specialised(
        f"def G_m__f(a, on=False):\n    return on\ndef main(x):\n    return [G_m__f(x), {use}]\n"
    )
    assert "def G_m__f(a, on=False)" in text and "return on" in text


def test_a_number_is_no_flag() -> None:
    text = specialised(
        "def G_m__f(a):\n    return a\ndef main():\n    return G_m__f(1), G_m__f(True)\n"
    )
    assert "G_m__f(1)" in text and "G_m__f(True)" in text


def test_calls_of_what_does_nothing_go_but_not_what_their_arguments_do() -> None:
    text = specialised(
        "def G_m__f(a):\n    pass\n"
        "def main(x):\n    unused = x\n    kept = g(x)\n    G_m__f(x)\n    G_m__f(h(x))\n"
    )
    assert "unused" not in text and "kept = g(x)" in text
    assert "G_m__f(x)" not in text and "G_m__f(h(x))" in text


def test_only_what_is_reached_stays() -> None:
    source = (
        "def G_m__used():\n    return 1\n"
        "def G_m__unused():\n    return 2\n"
        "class G_m__C:\n"
        "    def __init__(self): self.a = G_m__used()\n"
        "    def called(self): return 1\n"
        "    def never(self): return G_m__unused()\n"
        "def main():\n    return G_m__C().called()\n"
    )
    kept, outside = shake(again(items(source)), ["main"])
    text = "\n".join(ast.unparse(item.node) for item in kept)
    assert "unused" not in text and "never" not in text and "called" in text
    assert outside == set()
