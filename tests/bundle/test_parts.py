"""Parts that settings leave out: all of them where they are off, none where they are on."""

import ast
from typing import Any

import pytest

from fairway.base.errors import UserError
from fairway.bundle.flatten import flatten
from fairway.bundle.modules import source_file, source_text
from fairway.bundle.parts import PARTS, parts_left_out, texts_instead
from fairway.config.overrides import override
from fairway.config.settings import Config
from fairway.recipes import recipe

# Of every part: settings that ask for it, and definitions that a bundle has only then.
RUN = "`fairway run`"
ASKED = {
    "mixture.experts": ({"mixture.experts=ppm"}, {"Helpers"}),
    "ttt.method=lora or mixture.base=lora": ({"ttt.method=lora"}, {"evaluate_lora", "Halving"}),
    "ttt.lora_frozen_share": ({"ttt.lora_frozen_share=0.5"}, {"Cache", "attend_after"}),
    "ttt.method=sgd, mixture.base=sgd or ttt.lora_phases": ({"ttt.method=sgd"}, {"evaluate_sgd"}),
    "data.shuffle_documents": ({"data.shuffle_documents=true"}, {"document_starts"}),
    "quant.method=trellis": ({"quant.method=trellis"}, {"curvatures", "Encoder"}),
    "pack.codec=cabac": ({"pack.codec=cabac"}, {"encode_codes", "code_rows"}),
    "quant.lqer_rank": ({"quant.lqer_rank=4"}, {"factors"}),
    "runtime.kernels=auto or fused": ({"runtime.kernels=auto"}, {"_enter_kernel"}),
}
OFF = ["runtime.kernels=plain", "mixture.experts=", "ttt.method=off", "pack.codec=brotli"]


def config(*settings: str) -> Config:
    return override(recipe("smoke"), [*OFF, *settings])


def defined(config: Config) -> set[str]:
    tree = ast.parse(flatten(config).text)
    return {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)}


@pytest.mark.long
def test_what_is_off_is_left_out_and_what_is_on_is_there() -> None:
    assert {part.asked_by for part in PARTS} == {RUN, *ASKED}
    everything = [setting for settings, _ in ASKED.values() for setting in settings]
    # Of the methods one is chosen; phases learn as the other does.
    everything += ["ttt.method=lora", "ttt.lora_phases=1"]
    without, whole = defined(config()), defined(config(*everything))
    for _, names in ASKED.values():
        assert names <= whole and not names & without
    assert {"Training", "load_artifact"} <= without


@pytest.mark.parametrize(("asked_by", "settings"), [(n, s) for n, (s, _) in ASKED.items()])
def test_one_setting_brings_one_part(asked_by: str, settings: set[str]) -> None:
    left = {part.asked_by for part in parts_left_out(config(*settings))}
    assert left == {RUN, *ASKED} - {asked_by}


def test_all_weights_learn_by_sgd_in_phases_of_adapters_too() -> None:
    for settings, there in (
        (["ttt.method=lora", "ttt.lora_phases=2"], True),
        (["ttt.method=lora"], False),
        # Phases of adapters that nobody asks for.
        (["ttt.lora_phases=2"], False),
        (["mixture.experts=ppm", "mixture.base=sgd"], True),
        (["mixture.base=sgd"], False),
    ):
        assert ("fairway.score.sgd" in texts_instead(config(*settings))) != there


def test_experts_may_help_a_model_that_learns_by_lora() -> None:
    for experts, base, lora in (("ppm", "lora", True), ("ppm", "sgd", False), ("", "lora", False)):
        settings = [f"mixture.experts={experts}", f"mixture.base={base}"]
        assert ("fairway.score.lora" in texts_instead(config(*settings))) != lora


@pytest.mark.parametrize("name", [name for part in PARTS for name in part.modules])
def test_all_functions_and_classes_of_a_part_refuse_and_its_literals_stay(name: str) -> None:
    assert source_file(name)
    scope: dict[str, Any] = {}
    exec(texts_instead(config())[name], scope)
    for node in ast.parse(source_text(name)).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            with pytest.raises(UserError, match=f"made without {name}, which .* needs"):
                scope[node.name](1, two=2)
    if name == "fairway.pack.streams":
        factors = ("left factors", "right factors")
        assert scope["KINDS"] == ("codes", "scales", "steps", *factors)
