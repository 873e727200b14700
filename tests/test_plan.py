"""A budget becomes a recipe: the cost of a step, the law, the grid, the file that is written."""

import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import Cli

from fairway.base.errors import UserError
from fairway.config.checks import check
from fairway.config.overrides import override
from fairway.config.settings import Config
from fairway.data.build import build_data
from fairway.data.documents import Document
from fairway.data.folder import DataFolder
from fairway.machine.plan import Plan
from fairway.model.gpt import GPT, num_parameters
from fairway.planning import here, speed
from fairway.planning.cost import size_of, step_flops
from fairway.planning.grid import Budget, candidates, fitting
from fairway.planning.law import Reading, expected, features, fitted_law, penalties
from fairway.planning.proposal import propose, texts_of
from fairway.planning.speed import Speed, fitted, measured_speed, sized
from fairway.planning.writing import MARK, recipe_text
from fairway.recipes import recipe

PLAN = Plan("cpu", "float32", "highest", 1, "plain")
LAW = fitted_law()
DEMO = recipe("demo")
TEXTS = texts_of(None, DEMO.data.case_ops)


def machine(flops: float) -> Speed:
    return Speed(np.array([1e-4, 1 / flops, 1 / flops]), 0.0, 4)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


# ---------------------------------------------------------------------------------------------
# What a step costs


@pytest.mark.parametrize(
    "changes",
    [
        [],
        ["model.loop_extra=2", "model.num_layers=5", "model.loop_last=3"],
        [
            "model.gate_features=16",
            "model.num_heads=4",
            "model.num_kv_heads=2",
            "model.rope_dims=16",
        ],
    ],
)
def test_a_size_is_that_of_the_model_and_its_products(changes: list[str]) -> None:
    model = override(DEMO, changes).model
    size = size_of(model, 32)
    with torch.device("meta"):
        named = dict(GPT(model).named_parameters())
    matrices = sum(w.numel() for w in named.values() if w.ndim == 2) - size.embedding
    few = sum(w.numel() for name, w in named.items() if "skip" in name or w.ndim < 2)
    assert 0 <= matrices - size.matrices <= few + 16 * model.dim * model.num_layers
    assert size.parameters <= num_parameters(model) <= size.parameters + few + 16 * model.dim * 8
    assert size.embedding == model.vocab_size * model.dim


def test_a_loop_costs_its_visits_and_no_parameter() -> None:
    four = ["model.num_layers=4", "model.loop_last=2"]
    base = override(DEMO, four).model
    plain = size_of(base, 256)
    looped = size_of(override(DEMO, [*four, "model.loop_extra=1"]).model, 256)
    assert looped.parameters == plain.parameters and looped.update_flops == plain.update_flops
    # Blocks 1 and 2 of 4 are visited once more; the head is not.
    blocks = plain.token_flops - 6 * base.vocab_size * base.dim
    assert looped.token_flops - plain.token_flops == pytest.approx(blocks / 2)


# ---------------------------------------------------------------------------------------------
# Speed


def test_speed_is_found_again_from_steps() -> None:
    true = Speed(np.array([2e-3, 1 / 8e10, 1 / 5e10]), 0.0, 4)
    configs = [sized(DEMO, *shape) for shape in speed._SHAPES]
    found = fitted(configs, [true.step_s(config) for config in configs])
    assert found.costs_3 == pytest.approx(true.costs_3) and found.off < 1e-6
    other = sized(DEMO, 1024, 256, 5, 8192)
    assert found.step_s(other) == pytest.approx(true.step_s(other))


def test_nonsense_times_are_still_a_speed() -> None:
    configs = [sized(DEMO, *shape) for shape in speed._SHAPES]
    found = fitted(configs, [1.0, 0.01, 0.01, 0.01])
    assert found.step_s(DEMO) > 0 and np.isfinite(found.flops)


def test_steps_are_timed_once_for_a_machine_and_a_version(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[Config] = []

    def fake(config: Config, plan: Plan) -> float:
        timed.append(config)
        return 1e-12 * step_flops(config)

    monkeypatch.setattr(speed, "step_seconds", fake)
    first = measured_speed(DEMO, PLAN)
    assert len(timed) == 4 and measured_speed(DEMO, PLAN).costs_3 == pytest.approx(first.costs_3)
    assert len(timed) == 4
    monkeypatch.setattr(speed, "VERSION", "another")
    measured_speed(DEMO, PLAN)
    measured_speed(DEMO, dataclasses.replace(PLAN, threads=2))
    assert len(timed) == 12


@pytest.mark.parametrize("noted", [[1.0], [1.0] * 4 + [2.0], [0.0] * 4, ["1"] * 4, None, {}])
def test_a_note_of_something_else_is_measured_again(
    noted: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "step_seconds", lambda config, plan: 1e-12 * step_flops(config))
    monkeypatch.setattr(type(speed._NOTES), "find", lambda self, key: noted)
    assert measured_speed(DEMO, PLAN).flops == pytest.approx(1e12, rel=0.2)


# ---------------------------------------------------------------------------------------------
# The law and the grid


def test_more_text_and_larger_models_are_expected_to_be_better() -> None:
    text = TEXTS[1024]
    small, large = (sized(DEMO, 1024, dim, 4, 4096) for dim in (128, 256))
    few, many = (LAW.predict(small, steps, text, 0.0).bpb for steps in (200, 800))
    assert many < few and LAW.predict(large, 800, text, 0.0).bpb < many
    one = LAW.predict(small, 800, text, 0.0)
    assert one.low_bpb < one.bpb < one.high_bpb
    # Fewer bits a weight cost more, four times for each bit.
    damages = [LAW.damage(bits) for bits in (4.0, 3.0, 2.0)]
    assert damages[1] / damages[0] == pytest.approx(4) == damages[2] / damages[1]


def test_text_that_is_read_again_counts_less() -> None:
    base = sized(DEMO, 1024, 192, 4, 4096)
    often, once = (LAW.predict(base, 3000, Reading(size, 2.7), 0.0).bpb for size in (1e6, 1e9))
    assert once < often


@pytest.mark.long
def test_a_slow_machine_gets_less_to_compute() -> None:
    slow, fast = (
        candidates(DEMO, Budget(200, 16_000_000, 40_000), TEXTS, LAW, machine(flops))[0]
        for flops in (8e10, 5e11)
    )
    assert slow.steps * step_flops(slow.config) < fast.steps * step_flops(fast.config)
    assert fast.prediction.bpb < slow.prediction.bpb
    for point in (slow, fast):
        used_s = point.steps * point.step_s
        assert 190 <= used_s <= 200 and point.fit.bytes <= 16_000_000


def test_every_point_of_the_grid_fits_and_the_best_is_first() -> None:
    budget = Budget(60, 400_000, 40_000)
    grid = candidates(DEMO, budget, {512: TEXTS[512], 2048: TEXTS[2048]}, LAW, machine(1e11))
    scores = [point.prediction.bpb for point in grid]
    assert scores == sorted(scores) and len(grid) > 50
    assert all(point.fit.bytes <= 400_000 for point in grid)
    assert {point.config.model.vocab_size for point in grid} == {512, 2048}
    # What is too large at GPTQ's bits is rounded to fewer, and larger models to fewest.
    bits = {point.fit.bits for point in grid}
    assert 0.0 in bits and len(bits) > 1


def test_the_bytes_decide_the_bits() -> None:
    found = [fitting(DEMO, Budget(60, size, 0), 2048, 192, 4) for size in (10**7, 800_000, 10_000)]
    assert found[0] is not None and found[0].bits == 0.0
    assert found[1] is not None and found[1].bits > 0.0
    assert found[2] is None


@pytest.mark.parametrize(
    ("budget", "flops", "what"),
    [
        (Budget(60, 50_000, 45_000), 1e11, "no model of the grid fits"),
        (Budget(0.5, 16_000_000, 40_000), 1e9, "no model of the grid fits"),
    ],
)
def test_what_nothing_fits_is_refused(budget: Budget, flops: float, what: str) -> None:
    with pytest.raises(UserError, match=what):
        candidates(DEMO, budget, {1024: TEXTS[1024]}, LAW, machine(flops))


def test_the_best_shapes_are_timed_and_the_best_by_its_own_time_is_taken() -> None:
    texts = {1024: TEXTS[1024]}
    known, count = machine(1e11), itertools.count()

    def measure(config: Config, plan: Plan) -> float:
        # What the law likes best is ten times slower here than expected.
        return known.step_s(config) * (10 if next(count) == 0 else 1)

    found = propose(DEMO, Budget(100, 16_000_000, 40_000), texts, LAW, known, PLAN, measure)
    first, *rest = found.timed
    assert next(count) == 3 and found.chosen in rest and found.chosen.step_s < first.step_s
    check(found.config)
    assert found.config.train.budget_s == 100 and found.config.train.clock == "wall"


# ---------------------------------------------------------------------------------------------
# The recipe


@pytest.mark.parametrize("limit_bytes", [16_000_000, 300_000])
def test_what_is_written_is_a_recipe_that_returns_the_config(limit_bytes: int) -> None:
    known = machine(1e11)
    budget = Budget(30.5, limit_bytes, 40_000)
    config = propose(
        DEMO, budget, {512: TEXTS[512]}, LAW, known, PLAN, lambda c, plan: known.step_s(c)
    ).config
    text = recipe_text(config, "planned", ["why " * 60])
    names: dict[str, object] = {}
    exec(compile(text, "planned.py", "exec"), names)
    made = names["planned"]
    assert callable(made) and made() == config
    assert text.startswith(MARK) and max(map(len, text.splitlines())) <= 100


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine that is measured in no time, and a bundle of known size."""

    def seconds(config: Config, plan: Plan) -> float:
        return 1e-11 * step_flops(config)

    monkeypatch.setattr(speed, "step_seconds", seconds)
    monkeypatch.setattr(here, "step_seconds", seconds)
    monkeypatch.setattr(here, "bundle_bytes", lambda config: 40_000)
    yield


FIXED = ("--set", "runtime.threads=1", "--set", "runtime.dtype=float32", "--set",
         "runtime.matmul=highest")  # fmt: skip


def test_the_verb_writes_a_recipe_and_shows_its_grid(quick: None, cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "mine.py"
    asked = ("plan", "--seconds", "40", "--bytes", "1e6", "--out", str(out), *FIXED)
    told = cli(*asked)
    assert told.code == 0, told.err
    assert "Expected:" in told.out and "points that fit" in told.out and str(out) in told.out
    found = json.loads(cli(*asked, "--rows", "3", "--json").out)
    assert len(found["grid"]) == 3 < found["points"] and found["chosen"]["bytes"] <= 1e6
    assert found["config"]["train"]["budget_s"] == 40
    # It replaces what it wrote, and nothing else.
    out.write_text("def mine(): ...\n")
    refused = cli(*asked)
    assert refused.code == 2 and "did not write it" in refused.err


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--seconds", "0"], "between 1 and"),
        (["--seconds", "soon"], "is not a number"),
        (["--seconds", "50", "--bytes", "12"], "between 10,000 and"),
        (["--seconds", "50", "--bytes", "12000"], "raise --seconds or --bytes"),
        (["--seconds", "50", "--data", "nowhere"], "no data folder nowhere"),
        (["--seconds", "50", "--set", "model.dim=64"], "set only runtime"),
        (["--seconds", "50", "--out", "."], "folder"),
        ([], "--seconds"),
    ],
)
def test_a_wrong_budget_is_told_in_one_sentence(
    words: list[str], what: str, quick: None, cli: Cli, tmp_path: Path
) -> None:
    told = cli("plan", *words, *([] if "--set" in words else FIXED))
    assert told.code == 2 and what in told.err and len(told.err.strip().splitlines()) <= 3


def test_marks_lower_what_is_above_the_floor_by_one_share() -> None:
    coefficients = LAW.coefficients | {"vocab": 0.0}
    base, floor = recipe("demo"), coefficients["floor"]
    shares = []
    for steps in (200, 3000):
        without, marked = (
            features(base, steps, Reading(8e6, 4.0, case_ops)) for case_ops in (False, True)
        )
        extra = penalties(coefficients, marked) + floor
        high, low = (expected(coefficients, f) - extra for f in (without, marked))
        shares.append(1 - low / high)
    assert shares == pytest.approx([LAW.coefficients["marks"]] * 2)
    assert 0.05 < shares[0] < 0.12


def test_a_folder_tells_whether_it_has_marks(tmp_path: Path) -> None:
    text = "The house of NASA is old. It stands here and the old house is small. "
    documents = [Document(str(n), f"{text} {n} " * 9) for n in range(30)]
    for case_ops in (False, True):
        build_data(
            documents, tmp_path / str(case_ops), vocab_size=295, val_share=0.2,
            shard_tokens=50_000, case_ops=case_ops,
        )  # fmt: skip
        found = texts_of(DataFolder.open(tmp_path / str(case_ops)))
        assert [text.case_ops for text in found.values()] == [case_ops]


def test_expected_takes_many_runs_at_once() -> None:
    one = {"matrices": 1.0, "embedding": 0.2, "seen": 3.0, "whole": 8.0, "batch": 4096.0,
           "steps": 500.0, "vocab": 7.0, "length": 6.0, "depth": 0.0, "width": 0.0, "rate": -3.0,
           "embed_rate": -3.0, "loops": 0.0, "marks": 1.0}  # fmt: skip
    both = {name: np.array([value, value]) for name, value in one.items()}
    single = expected(LAW.coefficients, one)
    assert expected(LAW.coefficients, both) == pytest.approx([single, single])
