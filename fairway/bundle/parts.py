"""Parts of the package that a recipe's settings leave out of its bundle.

A bundle is the package's code as it is, so a part that one setting switches on would cost bytes
where it is off. The modules by which all others reach such a part stand in PARTS. Where it is off,
functions and classes of the same names take their place, which refuse in one sentence; literal
constants stay. What only those modules need is then reached by nothing.
"""

import ast
from collections.abc import Callable
from dataclasses import dataclass

from fairway.bundle.modules import source_text, walk
from fairway.config.checks import knows_rate
from fairway.config.settings import Config


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the package: the settings that ask for it, whether a config does, its modules."""

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
        # What stands beside a score decides nothing of it.
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
        "train.rate_errors or train.rate_weight",
        lambda config: knows_rate(config.train),
        ("fairway.train.rates",),
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
    """Return the source that takes the place of each module that a config does not ask for."""
    parts = parts_left_out(config)
    return {name: _refusing(name, part.asked_by) for part in parts for name in part.modules}


def _refusing(module: str, asked_by: str) -> str:
    """Return a source with a module's functions and classes, which refuse, and its literals."""
    sentence = (
        f"this file was made without {module}, which {asked_by} asks for; take Fairway itself, or "
        "a bundle of such settings"
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
