"""Parts of the package that a recipe's settings leave out of its bundle.

A bundle contains the package's code unchanged, so a part for one setting would cost bytes even when
the setting is off. PARTS lists, for each part, the modules through which other code uses it. If the
part is off, functions and classes of the same names replace theirs and raise an error of one
sentence; literal constants stay. Modules that only these modules need are then unreachable.
"""

import ast
from collections.abc import Callable
from dataclasses import dataclass

from fairway.base.nodes import walk
from fairway.bundle.modules import source_text
from fairway.config.settings import Config


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the package: the settings that need it, a test of a config, and its modules."""

    asked_by: str
    asked: Callable[[Config], bool]
    modules: tuple[str, ...]


def _learns_by_lora(config: Config) -> bool:
    helped = bool(config.mixture.experts) and config.mixture.base == "lora"
    return config.ttt.method == "lora" or helped


def _learns_by_sgd(config: Config) -> bool:
    helped = bool(config.mixture.experts) and config.mixture.base == "sgd"
    phases = _learns_by_lora(config) and config.ttt.lora_phases > 0
    return config.ttt.method == "sgd" or helped or phases


PARTS = (
    Part(
        # Scores do not depend on these modules.
        "`fairway run`",
        lambda config: False,
        (
            "fairway.audit.stage",
            "fairway.pipeline.codesize",
            "fairway.pipeline.evidence",
            "fairway.pipeline.initial",
            "fairway.score.adapter_file",
        ),
    ),
    Part(
        "mixture.experts",
        lambda config: bool(config.mixture.experts),
        ("fairway.score.experts.evaluate", "fairway.score.experts.ppm"),
    ),
    Part(
        "ttt.method=lora or mixture.base=lora",
        _learns_by_lora,
        ("fairway.score.adapting", "fairway.score.lora"),
    ),
    Part(
        "ttt.lora_frozen_share",
        lambda config: config.ttt.lora_frozen_share > 0,
        ("fairway.model.cache",),
    ),
    Part(
        "ttt.method=sgd, mixture.base=sgd or ttt.lora_phases",
        _learns_by_sgd,
        ("fairway.score.sgd",),
    ),
    Part(
        "data.shuffle_documents",
        lambda config: config.data.shuffle_documents,
        ("fairway.data.shuffled",),
    ),
    Part(
        "quant.method=trellis",
        lambda config: config.quant.method == "trellis",
        ("fairway.quantise.dependent", "fairway.quantise.fill", "fairway.quantise.sensitivity"),
    ),
    Part(
        "pack.codec=cabac", lambda config: config.pack.codec == "cabac", ("fairway.pack.streams",)
    ),
    Part(
        "quant.lqer_rank",
        lambda config: config.quant.lqer_rank > 0,
        ("fairway.pack.factors", "fairway.quantise.correction", "fairway.quantise.low_rank"),
    ),
    Part(
        "runtime.kernels=auto or fused",
        lambda config: config.runtime.kernels != "plain",
        ("fairway.model.gpu.adapters", "fairway.model.gpu.operations"),
    ),
)


def parts_left_out(config: Config) -> list[Part]:
    """Return the parts that a config does not ask for."""
    return [part for part in PARTS if not part.asked(config)]


def texts_instead(config: Config) -> dict[str, str]:
    """Return the replacement source of each module that a config does not need."""
    parts = parts_left_out(config)
    return {name: _refusing(name, part.asked_by) for part in parts for name in part.modules}


def _refusing(module: str, asked_by: str) -> str:
    """Return a source with a module's functions and classes, all raising an error, and literals."""
    sentence = (
        f"this file was made without {module}, which {asked_by} needs; use Fairway itself, or a "
        "bundle with such settings"
    )
    lines = ["from fairway.base.errors import UserError", "def _absent(*given, **named):"]
    lines.append(f"    raise UserError({sentence!r})")
    for node in ast.parse(source_text(module)).body:
        if isinstance(node, ast.FunctionDef):
            lines.append(f"{node.name} = _absent")
        elif isinstance(node, ast.ClassDef):
            lines.append(f"class {node.name}:\n    __init__ = _absent")
        elif isinstance(node, ast.Assign) and not any(
            isinstance(part, ast.Name | ast.Call) for part in walk(node.value)
        ):
            lines.append(ast.unparse(node))
    return "\n".join(lines)
