"""Options that would have no effect are refused, and a useless split is told."""

from pathlib import Path

import pytest
from damage import Cli

from fairway.cli.show import data_lines


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("ablate --merge t --pairs 8 --budget 9", "--pairs and --budget have no effect with --mer"),
        ("ablate --merge t --until pack", "--until has no effect with --merge"),
        ("ablate --merge t --dry-run", "--dry-run has no effect with --merge"),
        ("prove --decode p --artifact a --out o --bytes 5", "--bytes has no effect with --decode"),
        ("prove --decode p --artifact a --out o --method lora", "--method has no effect with --de"),
        ("prove --decode p --artifact a --out o --set seed=1", "--set has no effect with --decode"),
        ("data build t --tokenizer m --vocab-size 9", "--vocab-size has no effect with --tokeniz"),
        ("data build t --validation v --val-share 0.2", "--val-share has no effect with --valida"),
        ("runs . --out f", "--out has no effect without --export"),
        ("runs . --html page --out f", "--out has no effect with --html"),
        ("seeds smoke 1 --with-artifacts", "--with-artifacts has no effect without --record"),
        ("verify record --seed 1", "--seed has no effect without --rescore or --retrain"),
    ],
)
def test_an_option_without_effect_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli, words: str, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = cli(*words.split())
    assert done.code == 2 and told in done.err and done.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_options_with_an_effect_and_defaults_pass(cli: Cli, tmp_path: Path) -> None:
    done = cli("ablate", "--merge", tmp_path / "t", "--error", "0.1", "--metric", "raw", "--json")
    assert "does not exist; name the study.jsonl" in done.err


@pytest.mark.parametrize(
    ("train", "val", "rule", "warned"),
    [(27, 9000, "by hash", True), (9000, 27, "by hash", False), (27, 9000, "given", False)],
)
def test_a_split_that_leaves_the_text_to_validation_is_told(
    train: int, val: int, rule: str, warned: bool
) -> None:
    sides = {
        name: {"documents": 1, "bytes": size, "tokens": size}
        for name, size in (("train", train), ("val", val))
    }
    lines = data_lines({**sides, "split": {"rule": rule}, "dropped": {}})
    assert any("longer than the training text, since documents" in line for line in lines) == warned
