"""The step line: what it says of a step, and of the pace since the last line that stayed."""

from collections.abc import Callable

import pytest

from fairway.config.settings import Config
from fairway.train.steps import StepLine, StepRecord


def record(step: int, seconds: float, progress: float, batch: int) -> StepRecord:
    # A GPU's step that the host saw end right behind the one before.
    return StepRecord(
        step=step, progress=progress - 0.01, progress_after=progress, seconds=seconds, loss=2.0,
        lr=1.0, tokens=(step + 1) * batch, tokens_per_s=1e9, grad_norm=1.0, looping=False,
    )  # fmt: skip


def test_time_and_pace_are_means_since_the_last_line_that_stayed(
    tiny: Callable[..., Config],
) -> None:
    config = tiny("train.clock=wall", "train.budget_s=100", "train.reserve_s=20")
    batch, lines = config.train.batch_tokens, list[str]()
    line = StepLine(config, 4.0, lambda: 1_230_000, lines.append)
    for step, seconds in enumerate((1.0, 1.5, 2.0, 9.0, 9.5)):
        line.show(record(step, seconds, 0.05 + 0.03 * step, batch), lambda *moved: None)
    # At 5, 11 and 17 % of the run: one step in a second, two in one; the last two have no line.
    assert [text.split(" loss")[0] for text in lines] == ["step 00001   5%", "step 00003  11%"]
    assert "  1000 ms " in lines[0] and "   500 ms " in lines[1]
    assert f"{2 * batch / 1e3:5.1f} ktok/s" in lines[1]
    assert lines[1].endswith(" 0:16 left  1.23 MB")
    line.show(record(5, 10.0, 0.2, batch), lambda *moved: None)
    assert "  2667 ms " in lines[2] and "bpb~0.7213" in lines[2]
    # A step may have other tokens than the last ones: milliseconds are those of a step.
    line.show(record(7, 12.0, 0.3, 2 * batch), lambda *moved: None)
    assert "  1000 ms " in lines[3] and f"{10 * batch / 2e3:5.1f} ktok/s" in lines[3]


@pytest.mark.parametrize("seconds", [2.0, 588.0, 50_000.0, 3e6])
@pytest.mark.parametrize("tokens", [512, 49_152, 786_432])
def test_the_line_fits_into_80_columns(
    tiny: Callable[..., Config], tokens: int, seconds: float
) -> None:
    lines = list[str]()
    line = StepLine(tiny(), 4.0, lambda: 15_999_999, lines.append)
    line.show(record(98, seconds, 0.99, tokens), lambda *moved: None)
    line.show(record(99, seconds + 1e-3, 1.0, tokens), lambda *moved: None)
    assert len(lines) == 2 and all(" left 16.00 MB" in text for text in lines)
    assert max(map(len, lines)) <= 80
