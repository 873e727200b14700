"""Numbers and texts behind verbs and settings: a right answer, or one sentence."""

from collections.abc import Callable

import pytest
import typer
from damage import FIXED, Call, Place, refused, untouched

from fairway.base.errors import UserError
from fairway.cli.options import whole
from fairway.config.checks import LARGEST
from fairway.config.overrides import override, whole_number
from fairway.config.settings import Config

LONG = "9" * 5000
NUMBERS = [
    ("16_000_000", 16_000_000), ("1e6", 1_000_000), ("1.5E3", 1500), ("12.50e2", 1250),
    ("1e23", 10**23), ("+7", 7), ("-5", -5), ("7.0", 7), ("0007", 7), ("0" * 5000 + "5", 5),
    ("1e300", 10**300), (str(2**63 - 1), 2**63 - 1), ("9007199254740993", 9007199254740993),
]  # fmt: skip
NO_NUMBERS = [
    "", " ", "1.5", "1e-3", "0x10", "\u0663", "\uff11", "nan", "inf", "-inf", "1e9999", "True",
    "1__0", "_1", "1_", "1,000", "--5", "1e", "e3", "1 000", "\x1b[31m1",
]  # fmt: skip


@pytest.mark.parametrize(("text", "number"), NUMBERS)
def test_whole_numbers_are_read_to_the_last_digit(text: str, number: int) -> None:
    assert whole_number(text) == number


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_what_is_no_whole_number(text: str) -> None:
    assert whole_number(text) is None
    with pytest.raises(UserError, match=r"train\.steps must be a whole number"):
        override(Config(), [f"train.steps={text}"])
    with pytest.raises(typer.BadParameter, match="is not a whole number"):
        whole(0)(text)


@pytest.mark.parametrize("text", [LONG, f"-{LONG}", "1e99", "18446744073709551616"])
def test_numbers_beyond_every_bound(text: str) -> None:
    """Among them those that Python refuses to read, and floats would round."""
    with pytest.raises(UserError, match=r"seed"):
        override(Config(), [f"seed={text}"])
    with pytest.raises(typer.BadParameter, match="out of bounds") as caught:
        whole(0)(text)
    assert len(caught.value.message) < 150


@pytest.mark.parametrize(("lo", "hi", "bad"), [(1, 5, 0), (1, 5, 6), (0, LARGEST, -1)])
def test_bounds_are_named_and_belong_to_the_range(lo: int, hi: int, bad: int) -> None:
    assert whole(lo, hi)(str(lo)) == lo and whole(lo, hi)(str(hi)) == hi
    bound = f"at least {lo}" if hi == LARGEST else f"between {lo} and {hi}"
    with pytest.raises(typer.BadParameter, match=f"{bad} is out of bounds; it must be {bound}"):
        whole(lo, hi)(str(bad))


ART = "run/artifact.fwy"
# Every option of a verb that is a whole number, with what is beyond it.
OPTIONS: list[tuple[str, str, str]] = [
    ("pack run --budget {}", "0", "at least 1"),
    (f"prove {ART} text.txt --out new --bytes {{}}", "-1", "at least 0"),
    (f"prove {ART} text.txt --out new --streams {{}}", "1025", "between 1 and 1,024"),
    (f"compress text.txt --artifact {ART} --streams {{}}", "0", "between 1 and 1,024"),
    ("audit --program cat --tokens text.txt --bos {}", "-1", "between 0 and 2,147,483,647"),
    ("audit --program cat --tokens text.txt --seed {}", "-1", "between 0 and 4,294,967,295"),
    ("seeds smoke {}", "4294967296", "between 0 and 4,294,967,295"),
    ("seeds smoke --seeds {}", "4294967296", "between 0 and 4,294,967,295"),
    ("seeds smoke 1 --at-once {}", "0", "between 1 and 4,096"),
    ("seeds smoke 1 --nproc-per-node {}", "5000", "between 1 and 4,096"),
    ("submit run --track non_record --out new --min-seeds {}", "0", "between 1 and"),
    ("submit run --track non_record --out new --nproc-per-node {}", "0", "between 1 and"),
    ("verify data --seed {}", "-1", "between 0 and 4,294,967,295"),
]


@pytest.mark.parametrize(("line", "bad", "told"), OPTIONS, ids=lambda text: text[:40])
def test_options_that_are_numbers(place: Place, call: Call, line: str, bad: str, told: str) -> None:
    untouched(place, call, line.format(bad), told)
    untouched(place, call, line.format(LONG), "out of bounds; it must be")
    for text in ("0x10", "\u0663", "nan", "1.5", "True", "1e9999"):
        untouched(place, call, line.format(text), "is not a whole number")


@pytest.mark.long
def test_a_budget_may_be_written_as_people_write_it(place: Place, call: Call) -> None:
    # `test_cli` has one with an underscore.
    refused(call, "pack run --budget 3e3", "budget of 3,000")


REAL = [
    ("audit --program cat --tokens text.txt --budget {}", ("nan", "inf", "-1", "1e999", "x")),
    ("data build text.txt --out new --val-share {}", ("nan", "inf", "-1", "1e999", "0.9", "x")),
    (f"run smoke --out new --set optim.matrix_lr={{}} {FIXED}", ("nan", "inf", "-inf", "1e999")),
]


@pytest.mark.parametrize("word", ["1e9", "0", "0.05", "1000001"])
def test_a_budget_out_of_bounds_is_told_with_both(place: Place, call: Call, word: str) -> None:
    line = f"audit --program cat --tokens text.txt --budget {word}"
    told = f"{word} is out of bounds; it must be between 0.1 and 1,000,000"
    untouched(place, call, line, told)


@pytest.mark.parametrize(("line", "words"), REAL, ids=lambda value: str(value)[:30])
def test_numbers_that_are_not_finite(
    place: Place, call: Call, line: str, words: tuple[str, ...]
) -> None:
    for word in words:
        untouched(place, call, line.format(word), "")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("recipe=\x1b[31mred", "has characters that cannot be shown"),
        ("recipe=caf\udce9", "has characters that cannot be shown"),
        ("recipe=two\nlines", "has characters that cannot be shown"),
        ("data.source=a\0b", "zero byte"),
        ("data.source=~/data", "the shell left ~ as it is"),
        ("train.replay=-", "- is no path"),
    ],
)
def test_texts_that_cannot_be_kept(words: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        override(Config(), [words])


def test_usage_is_one_sentence(place: Place, call: Callable[[str], tuple[int, str]]) -> None:
    for line, told in (
        ("scoer", "No such command 'scoer'. Did you mean 'score', 'serve'? Usage: "),
        ("report", "Missing argument 'RUN'. Usage: "),
        ("report run \x1b[31m", "unexpected extra argument"),
        ("report run --\x1b[31m", "No such option"),
        ("seeds", "Missing argument 'RECIPE'"),
    ):
        untouched(place, call, line, told)
