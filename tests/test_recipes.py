"""The recipes of the published system against what its logs print."""

import ast
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fairway import recipes
from fairway.base.errors import UserError
from fairway.config import settings as configs
from fairway.config.settings import Config, OptimConfig, settings
from fairway.data.tokens import Tokenizer
from fairway.model.gpt import GPT
from fairway.pipeline.folder import RunFolder
from fairway.pipeline.run import Pipeline
from fairway.quantise.gptq import grid_of
from fairway.recipes import recipe
from fairway.train.schedule import average_decay

# The hyper-parameters that all six logs of #1493 and #1858 print with one value, by our names.
LOGGED = {
    "data.source": "",
    "model.vocab_size": 8192,
    "model.num_layers": 11,
    "model.dim": 512,
    "model.num_heads": 8,
    "model.num_kv_heads": 4,
    "model.mlp_dim": 4.0 * 512,
    "model.rope_dims": 16,
    "model.rope_train_len": 2048,
    "model.qk_gain": 5.25,
    "model.parallel_from": 7,
    "model.loop_first": 3,
    "model.loop_last": 5,
    "model.loop_extra": 2,
    "optim.matrix_lr": 0.022,
    "optim.matrix_wd": 0.095,
    "optim.momentum": 0.99,
    "optim.momentum_start": 0.92,
    "optim.momentum_warmup_steps": 1500,
    "optim.embed_lr": 0.03,
    "optim.scalar_lr": 0.02,
    "optim.beta2": 0.95,
    "optim.grad_clip": 0.3,
    "optim.warmdown_share": 0.72,
    "optim.min_lr": 0.0,
    "optim.ema_decay": 0.9965,
    "optim.ema_share": None,
    "train.clock": "wall",
    "train.budget_s": 600.0,
    "train.reserve_s": 12.0,
    "train.seq_len": 2048,
    "train.batch_tokens": 786_432,
    "train.micro_tokens": 786_432 // 8,
    "train.loop_from": 0.35,
    "train.warmup_steps": 20,
    "quant.matrix_bits": 6,
    "quant.matrix_sigmas": 12.85,
    "quant.embed_bits": 8,
    "quant.embed_sigmas": 20.0,
    "quant.calibration_tokens": 64 * 786_432 // 8,
    "pack.codec": "brotli",
    "score.seq_len": 2048,
    "score.stride": 64,
}
# What the logs do not print: read in the sources.
READ = {
    "model.embed_bf16": True,
    "model.smear": False,
    "optim.newton_schulz": "fixed",
    "quant.method": "gptq",
    "quant.min_numel": 65_536,
    "score.batch_windows": 32,
    "score.truncate": True,
}


def values(config: Config) -> dict[str, object]:
    return {name: value for name, _, value in settings(config)}


def differing(a: Config, b: Config) -> dict[str, object]:
    """Return the settings of b that are not those of a."""
    return {name: value for name, value in values(b).items() if values(a)[name] != value}


@pytest.mark.parametrize(("name", "code_bytes"), [("pr1858", 20_177), ("pr1493", 16_594)])
def test_every_setting_is_that_of_the_published_runs(name: str, code_bytes: int) -> None:
    found = values(recipe(name))
    for setting, value in {**LOGGED, **READ, "pack.code_bytes": code_bytes}.items():
        assert found[setting] == value, setting


def test_defaults_are_the_seed_but_for_its_text_and_size() -> None:
    told = {"recipe": "pr1858", "data.source": "", "quant.fit": True, "pack.code_bytes": 20_177}
    told |= {"ttt.method": "sgd", "train.shards": 80}
    assert differing(Config(), recipe("pr1858")) == told


def test_the_two_seeds_differ_in_epochs_and_the_code_beside_them_only() -> None:
    told = {"recipe": "pr1493", "pack.code_bytes": 16_594, "ttt.epochs": 3, "train.shards": 128}
    assert differing(recipe("pr1858"), recipe("pr1493")) == told


def test_the_proxy_differs_in_batch_budget_and_horizon_only() -> None:
    told = {
        "recipe": "pr1858_proxy",
        "optim.ema_decay": None,
        "optim.ema_share": 0.025,
        "train.budget_s": 162.0,
        "train.shards": 0,
        "train.batch_tokens": 98_304,
    }
    proxy = recipe("pr1858_proxy")
    assert differing(recipe("pr1858"), proxy) == told
    assert proxy.train.budget_s - proxy.train.reserve_s == 150.0
    assert proxy.train.batch_tokens == proxy.train.micro_tokens


def test_best_is_the_proxy_with_what_paid() -> None:
    changed = differing(recipe("pr1858_proxy"), recipe("best"))
    assert {name for name in changed if name.startswith(("model.", "train.", "data."))} == {
        "model.num_heads", "model.num_kv_heads", "model.rope_dims", "model.loop_extra",
        "model.num_layers", "model.parallel_from", "model.mlp_dim", "train.operand_bits",
    }  # fmt: skip
    packed = differing(recipe("best_8"), recipe("best"))
    assert not [name for name in packed if name.startswith(("quant.", "pack.", "score."))]
    assert {name for name in packed if name.startswith("ttt.")} == {
        "ttt.lora_chunks", "ttt.lora_lr", "ttt.lora_factors", "ttt.lora_phases", "ttt.lr",
        "ttt.lora_logit_factor", "ttt.lora_frozen_share",
    }  # fmt: skip


def test_best_on_eight_gpus_trains_as_the_seed_does() -> None:
    changed = differing(recipe("pr1858"), recipe("best_8"))
    told = [name for name in changed if name.startswith(("model.", "train.", "data."))]
    assert told == ["train.shards"] and changed["train.shards"] == 0
    assert changed["quant.method"] == "trellis" and changed["ttt.method"] == "lora"
    # The same horizon over the seed's 4,550 steps.
    decay = average_decay(1 / 4550, recipe("best_8").optim)
    assert decay == pytest.approx(recipe("pr1858").optim.ema_decay, abs=2e-5)


# What the three logs of #1874 print with one value, by our names; what they share with #1858's is
# in LOGGED. The rank and alpha of adapters, phases and warm matrices A: logs and source.
LOGGED_1874 = {
    "model.lanes": 2, "model.parallel_from": 8, "model.smear": True,
    "model.gate_features": 24,
    "optim.matrix_lr": 0.026, "optim.momentum": 0.97, "optim.newton_schulz": "polar_express",
    "optim.warmdown_share": 0.75, "optim.min_lr": 0.1,
    "train.reserve_s": 4.0, "train.documents": True,
    "quant.matrix_sigmas": 13.0, "quant.mlp_sigmas": 12.0, "quant.embed_bits": 7,
    "quant.embed_sigmas": 15.0, "quant.calibration_tokens": 16 * 786_432 // 8, "quant.lqer_rank": 4,
    "pack.code_bytes": 32_360,
    "ttt.method": "lora", "ttt.lora_rank": 128, "ttt.lora_sort": True, "ttt.lora_phases": 3,
    "ttt.lr": 0.001,
}  # fmt: skip


def test_every_setting_is_that_of_the_logs_of_1874() -> None:
    assert differing(recipe("pr1858"), recipe("pr1874")) == {"recipe": "pr1874"} | LOGGED_1874
    same = {
        "ttt.lora_alpha": 144.0, "ttt.lora_lr": 1e-4, "ttt.lora_wd": 1.0, "ttt.lora_chunks": "48",
        "ttt.lora_documents": 64, "train.shards": 80, "optim.beta2": 0.95,
    }  # fmt: skip
    found = values(recipe("pr1874"))
    assert {name: found[name] for name in same} == same
    with torch.device("meta"):
        parameters = sum(weight.numel() for weight in GPT(recipe("pr1874").model).parameters())
    # The published model also has lanes' numbers in the eight blocks that have no lanes.
    assert parameters == 35_946_727 - 8 * 6


def test_recipes_by_budget_differ_in_what_follows_from_the_budget() -> None:
    best = recipe("best")
    assert differing(best, recipe("best_600")) == {
        "model.num_layers": 11, "model.parallel_from": 8, "model.mlp_dim": 2048,
        "recipe": "best_600", "train.budget_s": 600.0, "optim.momentum_warmup_steps": 600,
        "optim.momentum": 0.965, "optim.cautious": True, "optim.row_beta": 0.95,
        "optim.beta2": 0.99, "optim.embed_lr": 0.06, "optim.min_lr": 0.05,
        "train.batch_tokens": 147_456, "train.micro_tokens": 147_456,
        "train.operand_bits": 7,
        "data.shuffle_documents": True, "optim.warmdown_share": 0.72,
        # Those of best_8, with which it was measured.
        "ttt.lora_chunks": "48", "ttt.lora_lr": 1e-4, "ttt.lora_factors": "", "ttt.lora_phases": 0,
        "ttt.lr": 0.005, "ttt.lora_logit_factor": 1.0, "ttt.lora_frozen_share": 0.0,
    }  # fmt: skip
    assert differing(best, recipe("small")) == {
        "recipe": "small", "train.budget_s": 600.0, "train.micro_tokens": 49_152,
        "train.operand_bits": 7,
        "optim.momentum_warmup_steps": 200, "quant.calibration_tokens": 524_288,
        "quant.gradient_tokens": 262_144, "ttt.lora_documents": 16, "ttt.over_budget": "shrink",
    }  # fmt: skip


def initial_share(config: OptimConfig, steps: int) -> float:
    """Return the weight that the initial parameters keep in the average of an even run."""
    return average_decay(1 / steps, config) ** steps


def test_the_horizon_of_the_proxy_forgets_the_initial_weights() -> None:
    assert initial_share(recipe("pr1858").optim, 4550) < 1e-6
    assert initial_share(recipe("pr1858").optim, 1018) == pytest.approx(0.028, abs=0.001)
    assert initial_share(recipe("pr1858_proxy").optim, 1018) < 1e-15


@pytest.mark.parametrize("name", ["pr1858", "pr1493", "pr1858_proxy"])
def test_tensors_are_those_of_the_published_artifacts(name: str) -> None:
    config = recipe(name)
    with torch.device("meta"):
        named = dict(GPT(config.model).named_parameters())
    matrices = [n for n, w in named.items() if n.startswith("blocks.") and n.endswith("weight")]
    scalars = [n for n in named if n.startswith("blocks.") and n not in matrices]
    assert (len(matrices), len(scalars)) == (66, 44)
    assert set(named) - {*matrices, *scalars} == {"tok_emb.weight", "skip_weights", "skip_gates"}
    coded = {n: w for n, w in named.items() if grid_of(n, w, config.quant) is not None}
    kept = {n: w for n, w in named.items() if n not in coded}
    assert (len(coded), sum(w.numel() for w in coded.values())) == (67, 35_913_728)
    assert (len(kept), sum(w.numel() for w in kept.values())) == (46, 30_808)


# ---------------------------------------------------------------------------------------------
# The text, which these recipes do not bring along


def test_a_recipe_without_text_says_where_to_get_it(tmp_path: Path) -> None:
    pipeline = Pipeline(recipe("pr1858"), RunFolder(tmp_path / "run"), lambda text: None)
    with pytest.raises(UserError) as caught, pipeline.writing():
        pipeline.walk()
    for part in ("fairway data fetch", "fairway data build --vocab-size 8192", "data.source=DATA"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "run.json").exists()


def test_smear_needs_the_documents_to_begin_where_it_stops(
    tmp_path: Path, tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny()
    monkeypatch.setattr(Tokenizer, "bos_id", 2)
    Pipeline(config, RunFolder(tmp_path), lambda text: None).data(build=True)
    smeared = replace(config, model=replace(config.model, smear=True))
    with pytest.raises(UserError, match="begins documents with token 2, but model.smear stops at"):
        Pipeline(smeared, RunFolder(tmp_path), lambda text: None).data(build=True)


def restated(source: str) -> list[str]:
    """Return the arguments of recipes that repeat a default, or what the base has already."""
    found = []
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef):
            continue
        bases = {
            str(node.targets[0].id): recipe(node.value.func.id)  # type: ignore[attr-defined]
            for node in function.body
            if isinstance(node, ast.Assign)
        }
        names = vars(configs) | bases
        for call in ast.walk(function):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
                continue
            if call.func.id == "replace":
                before = eval(ast.unparse(call.args[0]), {}, names)
            else:
                before = names[call.func.id]() if call.keywords else None
            for item in call.keywords:
                if not isinstance(item.value, ast.Call):
                    value = eval(ast.unparse(item.value), {}, names)
                    if getattr(before, str(item.arg)) == value:
                        found.append(f"{function.name}: {item.arg}={value}")
    return found


def test_a_recipe_states_differences_alone() -> None:
    files = set(Path(recipes.__file__).parent.glob("*.py")) - {Path(recipes.__file__)}
    # Which holds no recipes, but finds those of others.
    files -= {Path(recipes.__file__).with_name("own.py")}
    assert len(files) >= 2
    for path in sorted(files):
        assert restated(path.read_text()) == []


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ("return Config(recipe='x', seed=42)", "x: seed=42"),
        ("return Config(recipe='x', model=ModelConfig(dim=1, num_layers=11))", "x: num_layers=11"),
        ("base = demo()\n    return replace(base, seed=42)", "x: seed=42"),
        ("base = demo()\n    return replace(base, model=replace(base.model, dim=128))",
         "x: dim=128"),
        ("base = demo()\n    return replace(base, pack=PackConfig(codec='brotli'))",
         "x: codec=brotli"),
    ],
)  # fmt: skip
def test_a_restated_default_is_found(body: str, fault: str) -> None:
    assert restated(f"def x() -> Config:\n    {body}\n") == [fault]
