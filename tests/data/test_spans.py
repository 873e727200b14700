import pytest

from fairway.data.build import DataFolder
from fairway.data.pieces import Packer
from fairway.data.spans import Cell, cells, token_ends, token_name
from fairway.data.tokens import Tokenizer

FAMILY = "\U0001f469\u200d\U0001f469\u200d\U0001f467"
FLAGS = "\U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7"


@pytest.fixture(scope="module")
def tokenizer(data_folder) -> Tokenizer:
    return DataFolder.open(data_folder).tokenizer


def single_bytes(text: str) -> list[int]:
    """Return the ends of tokens that are one byte each."""
    return list(range(1, len(text.encode()) + 1))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("ab", ["a", "b"]),
        ("\u00e9x", ["\u00e9", "x"]),
        (f"{FAMILY}!", [FAMILY, "!"]),
        (FLAGS, [FLAGS[:2], FLAGS[2:]]),
        ("e\u0301a", ["e\u0301", "a"]),
        ("\U0001f44d\U0001f3fd.", ["\U0001f44d\U0001f3fd", "."]),
        ("\u0645\u0631", ["\u0645", "\u0631"]),
    ],
)
def test_cells_end_with_characters_as_they_are_seen(text: str, parts: list[str]) -> None:
    assert [cell.text for cell in cells(text, [single_bytes(text)])] == parts


def test_two_tokenizers_share_the_cuts_that_both_have() -> None:
    found = cells("abcdef", [[1, 3, 6], [3, 4, 6]])
    assert found == [Cell("abc", (range(2), range(1))), Cell("def", (range(2, 3), range(1, 3)))]
    # Nothing in common but the end.
    assert cells("abc", [[1, 3], [2, 3]]) == [Cell("abc", (range(2), range(2)))]


def test_a_token_without_bytes_is_with_the_next_or_the_last() -> None:
    assert cells("ab", [[0, 1, 1, 2]]) == [Cell("a", (range(2),)), Cell("b", (range(2, 4),))]
    assert cells("ab", [[1, 2, 2]]) == [Cell("a", (range(1),)), Cell("b", (range(1, 3),))]


@pytest.mark.parametrize(
    "text",
    [" ", "\n", "The model \u00e9 \U0001f389\x00\r\n  <b>", "a" * 300, FAMILY + FLAGS, "  two  "],
)
def test_every_token_is_in_one_cell_and_the_cells_are_the_text(
    tokenizer: Tokenizer, text: str
) -> None:
    ids = Packer(tokenizer).stream([text])
    ends = token_ends(ids, tokenizer)
    found = cells(text, [ends])
    assert ends[-1] == len(text.encode())
    assert "".join(cell.text for cell in found) == text
    assert [token for cell in found for token in cell.tokens[0]] == list(range(len(ids) - 1))


def test_names_of_tokens_show_what_cannot_be_seen(tokenizer: Tokenizer) -> None:
    names = [token_name(tokenizer, token) for token in range(tokenizer.vocab_size)]
    assert names[tokenizer.bos_id] == "end of document"
    assert names[0] == "token 0"
    assert names[tokenizer.byte_ids[0xF0]] == "byte F0"
    assert names[tokenizer.byte_ids[0x1B]] == "byte 1B"
    assert names[tokenizer.byte_ids[ord("\n")]] == "\u23ce"
    assert any(name.startswith("\u2423") and len(name) > 1 for name in names)
    assert all(name.isprintable() for name in names)
