import random

import pytest

from fairway.data.documents import Document, document_key
from fairway.data.guard import NEAR_SHARE, check_overlap, shingles, split_documents
from fairway.errors import UserError

WORDS = [f"w{i}" for i in range(5000)]


def text(seed: int, words: int = 200) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def documents(count: int) -> list[Document]:
    return [Document(f"d{i}", text(i)) for i in range(count)]


def plain_shingles(value: str) -> set[tuple[str, ...]]:
    words = value.split()
    return {tuple(words[i : i + 13]) for i in range(max(1, len(words) - 12))} if words else set()


@pytest.mark.parametrize("words", [0, 1, 12, 13, 14, 400])
def test_shingles_are_runs_of_thirteen_words(words: int) -> None:
    value = " ".join(random.Random(words).choices(["a", "b", "c"], k=words))
    assert len(shingles(value)) == len(plain_shingles(value))


def test_common_shingles_are_those_of_a_plain_search() -> None:
    left, right = text(1), " ".join([text(2), *text(1).split()[20:90], text(3)])
    common = set(shingles(left).tolist()) & set(shingles(right).tolist())
    assert len(common) == len(plain_shingles(left) & plain_shingles(right)) == 70 - 12


def test_case_punctuation_and_blanks_do_not_matter() -> None:
    a = "The Cat, sat on the mat; it was (as we know) a very good \n day for a cat."
    b = "the cat sat ON the mat it was as we know a very good day for a cat"
    assert shingles(a).tolist() == shingles(b).tolist()


def test_the_split_is_stable_and_about_the_share() -> None:
    split = split_documents(documents(400), 0.1)
    again = split_documents(reversed(documents(400)), 0.1)
    assert split == again
    assert 20 <= len(split.val) <= 60 and len(split.train) + len(split.val) == 400
    more = split_documents(documents(500), 0.1)
    assert {d.name for d in split.val} <= {d.name for d in more.val}


@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_both_sides_have_a_document(share: float) -> None:
    split = split_documents(documents(2), share)
    assert len(split.train) == len(split.val) == 1


@pytest.mark.parametrize("count", [0, 1])
def test_one_document_cannot_be_split(count: int) -> None:
    with pytest.raises(UserError, match=f"{count} distinct documents cannot be split"):
        split_documents(documents(count), 0.5)


def test_repeats_are_kept_once() -> None:
    given = [*documents(50), *(Document(f"copy{i}", text(i).upper()) for i in range(7))]
    split = split_documents(given, 0.2)
    assert split.dropped["repeats"] == 7
    assert not any(d.name.startswith("copy") for d in split.train + split.val)


def test_near_duplicates_leave_training() -> None:
    given = documents(60)
    val = split_documents(given, 0.2).val
    rest = sorted(set(given) - set(val), key=document_key)
    edited = val[0].text.split()
    edited[50] = "changed"
    # The name is chosen so that the copy falls to training.
    copies = (Document(f"copy{i}", " ".join(edited)) for i in range(1000))
    copy = next(c for c in copies if document_key(c) > document_key(rest[0]))
    split = split_documents([*given, copy], 0.2)
    assert copy not in split.train and split.val == val
    assert split.dropped["train_near_validation"] == 1


def test_validation_inside_a_long_training_document_leaves() -> None:
    given = documents(60)
    val = split_documents(given, 0.2).val
    long = " ".join([text(100, 3000), val[0].text, text(101, 3000)])
    rest = sorted(set(given) - set(val), key=document_key)
    candidates = (Document(f"long{i}", long) for i in range(1000))
    book = next(c for c in candidates if document_key(c) > document_key(rest[0]))
    split = split_documents([*given, book], 0.2)
    assert book in split.train and split.val == val[1:]
    assert split.dropped["validation_near_train"] == 1


def test_documents_that_are_all_alike_are_refused() -> None:
    words = text(1).split()
    given = [Document(f"d{i}", " ".join([*words, str(i)])) for i in range(6)]
    with pytest.raises(UserError, match="too alike"):
        split_documents(given, 0.5)


def test_separate_sides_pass() -> None:
    check_overlap(documents(20), [Document("v", text(99))])
    check_overlap([], documents(2))
    check_overlap(documents(2), [])
    check_overlap(documents(2), [Document("blank", " ")])


def test_an_exact_copy_is_named() -> None:
    val = [Document("v0", text(98)), Document("v1", text(3))]
    with pytest.raises(UserError, match=r"1 training documents overlap .* the first is 'd3'"):
        check_overlap(documents(20), val)


def test_a_validation_document_inside_training_is_named() -> None:
    book = Document("book", " ".join([text(100, 3000), text(7), text(101, 3000)]))
    with pytest.raises(UserError, match=r"1 validation documents .* the first is 'v' \(by 100%\)"):
        check_overlap([book], [Document("v", text(7))])


def test_the_threshold_is_a_share_of_shingles() -> None:
    words = text(5, 512).split()
    below = int(500 * NEAR_SHARE) - 5
    for count, refused in ((below, False), (below + 10, True)):
        other = [*text(6, 512 - count - 12).split(), *words[: count + 12]]
        try:
            check_overlap([Document("a", text(5, 512))], [Document("b", " ".join(other))])
        except UserError:
            assert refused
        else:
            assert not refused
