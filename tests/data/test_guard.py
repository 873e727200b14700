import random
import textwrap
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from all_shingles import shingles

from fairway.base.errors import UserError
from fairway.data.documents import Document, document_key
from fairway.data.guard import check_overlap, split_documents

Edit = Callable[[str], str]
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


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_the_split_is_stable_and_about_the_share(share: float) -> None:
    given = [Document(f"d{i}", text(i, 20)) for i in range(500)]
    split, again = (split_documents(some, share) for some in (given[:400], reversed(given[:400])))
    assert split == again and len(split.train) + len(split.val) == 400
    assert abs(len(split.val) - 400 * share) < 4 * (400 * share * (1 - share)) ** 0.5
    more = split_documents(given, share)
    assert {d.name for d in split.val} <= {d.name for d in more.val}


@pytest.mark.parametrize(("share", "of_5"), [(0.001, 1), (0.5, 3), (0.999, 4)])
def test_both_sides_have_a_document(share: float, of_5: int) -> None:
    split = split_documents(documents(2), share)
    assert len(split.train) == len(split.val) == 1
    assert len(split_documents(documents(5), share).val) == of_5


@pytest.mark.parametrize("count", [0, 1])
def test_one_document_cannot_be_split(count: int) -> None:
    with pytest.raises(UserError, match=f"{count} distinct documents? cannot be split"):
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


def named(value: str, in_val: bool, share: float) -> Document:
    """Return a document with a text, and a name by which it falls to one side of a split."""
    candidates = (Document(f"all{n}", value) for n in range(10_000))
    bound = share * 2**128
    return next(d for d in candidates if (int.from_bytes(document_key(d)) < bound) == in_val)


def joined(parts: list[Document]) -> str:
    return "\n".join(document.text for document in parts)


@pytest.mark.parametrize("in_val", [False, True])
@pytest.mark.parametrize("share", [0.05, 0.15, 0.6])
def test_a_collection_leaves_its_parts(share: float, in_val: bool) -> None:
    parts = documents(60)
    whole = named(joined(parts), in_val, share)
    split, plain = split_documents([*parts, whole], share), split_documents(parts, share)
    if in_val or share < 0.2:
        assert split.collections == [whole.name] and split.dropped["collection"] == 1
    else:
        # A fifth of it is validation text, so it is a near duplicate like others.
        assert split.dropped["train_near_validation"] == 1 and not split.collections
    assert (split.train, split.val) == (plain.train, plain.val)


def test_several_collections_leave_their_parts() -> None:
    parts = documents(60)
    whole = named(joined(parts), False, 0.05)
    edited = Document("edited", whole.text + text(777))
    most = Document("most", joined(parts[:50]))
    # It is the longest, and holds nothing of the others.
    other = Document("long", text(888, 40_000))
    given = [*parts, whole, edited, most, other]
    split = split_documents(given, 0.05)
    assert set(split.collections) == {whole.name, "edited", "most"}
    assert sorted([*split.train, *split.val], key=document_key) == sorted(
        [*parts, other], key=document_key
    )
    assert split == split_documents(given[::-1], 0.05)


@pytest.mark.parametrize("kept", [1, 4])
def test_a_book_with_a_few_of_the_documents_stays(kept: int) -> None:
    parts = documents(60)
    val = split_documents(parts, 0.1).val
    assert len(val) > 4
    quoted = named(joined(val[:-kept]) + text(100, 9000), False, 0.1)
    split = split_documents([*parts, quoted], 0.1)
    assert quoted in split.train and split.val == val[-kept:] and not split.collections
    assert "collection" not in split.dropped


def test_who_holds_others_is_named_if_nothing_remains() -> None:
    parts = sorted(documents(2), key=document_key)
    book = named(f"{text(100, 900)} {parts[0].text} {text(101, 900)}", False, 0.999)
    with pytest.raises(
        UserError,
        match=f"the 3 documents are too alike .*: '{book.name}' holds the text of 1 of them; "
        "leave it out, or give separate validation files",
    ):
        split_documents([*parts, book], 0.1)
    assert len(split_documents(parts, 0.1).val) == 1, "the remedy works"


@pytest.mark.parametrize("words", [250, 700])
def test_the_longest_of_texts_that_are_alike_is_no_collection(words: int) -> None:
    given = [Document(f"d{n}", f"{text(1)} {n}") for n in range(9)]
    longest = Document("long", f"{text(1)} {text(2, words)}")
    with pytest.raises(UserError, match="the 10 documents are too .* validation; give separate"):
        split_documents([*given, longest], 0.5)


def test_separate_sides_pass() -> None:
    check_overlap(documents(20), [Document("v", text(99))])
    check_overlap([], documents(2))
    check_overlap(documents(2), [])
    check_overlap(documents(2), [Document("blank", " ")])


def test_an_exact_copy_is_named() -> None:
    val = [Document("v0", text(98)), Document("v1", text(3))]
    with pytest.raises(UserError, match=r"1 training document overlaps .* the first is 'd3'"):
        check_overlap(documents(20), val)


def test_a_validation_document_inside_training_is_named() -> None:
    book = Document("book", " ".join([text(100, 3000), text(7), text(101, 3000)]))
    with pytest.raises(UserError, match=r"1 validation document .* the first is 'v' \(by 100%\)"):
        check_overlap([book], [Document("v", text(7))])


def shared(count: int) -> tuple[Document, Document]:
    """Return two documents of 500 runs of words each, of which `count` are the same."""
    words = text(5, 512).split()
    other = [*text(6, 512 - count - 12).split(), *words[: count + 12]]
    return Document("a", text(5, 512)), Document("b", " ".join(other))


def test_a_near_duplicate_shares_over_a_fifth_of_its_runs() -> None:
    a, b = shared(100)
    check_overlap([a], [b])
    split = split_documents([a, b], 0.5)
    assert len(split.train) == len(split.val) == 1 and not any(split.dropped.values())
    # What stays in training counts against validation.
    inside = Document("v", " ".join(a.text.split()[:112]))
    with pytest.raises(UserError, match="1 validation document overlaps with the training text"):
        check_overlap([a], [inside])
    a, b = shared(101)
    with pytest.raises(UserError, match=r"the first is 'a' \(by 20%\)"):
        check_overlap([a], [b])


# Words, the readings of a text that has a sign without width.
def readings(value: str) -> list[list[str]]:
    return [value.replace("\u200b", by).split() for by in ("", " ")][: 1 + ("\u200b" in value)]


def runs(words: list[str]) -> set[tuple[str, ...]]:
    return {tuple(words[i : i + 13]) for i in range(max(len(words) - 12, min(len(words), 1)))}


def plain_share(value: str, others: list[str]) -> float:
    """Return what part of a text others hold, by a search word after word."""
    held = [words for other in others for words in readings(other)]
    known = set().union(*map(runs, held))
    shares = [len(runs(words) & known) / max(len(runs(words)), 1) for words in readings(value)]
    for words in (words for words in readings(value) if 8 <= len(words) <= 12):
        places = ((other, i) for other in held for i in range(len(other)))
        shares.append(float(any(other[i : i + len(words)] == words for other, i in places)))
    return max(shares)


def plain_overlap(train: list[Document], val: list[Document]) -> tuple[list[float], list[float]]:
    of_train = [plain_share(d.text, [v.text for v in val]) for d in train]
    stays = [d.text for d, share in zip(train, of_train, strict=True) if share <= 0.2]
    return of_train, [plain_share(d.text, stays) for d in val]


def patchwork(seed: int) -> list[Document]:
    """Return documents that share phrases with one another, some short, some without width."""
    draw = random.Random(seed)
    phrases = [text(draw.randrange(1 << 30), draw.randrange(1, 16)) for _ in range(40)]
    texts = ["", " ", " "]
    for _ in range(draw.randrange(3, 14)):
        parts = [*draw.choices(phrases, k=draw.choice([1, 1, 2, 6])), text(draw.randrange(99), 6)]
        joined = " ".join(parts[: draw.randrange(1, len(parts) + 1)])
        texts.append(joined.replace(" ", draw.choice([" ", " ", "\u200b"]), draw.choice([1, 99])))
    return [Document(f"d{n}", some) for n, some in enumerate(texts)]


@pytest.mark.parametrize("seed", range(60))
def test_split_and_check_are_those_of_a_plain_search(seed: int) -> None:
    given, share = patchwork(seed), random.Random(seed).choice([0.1, 0.3, 0.6])
    unique = {tuple(readings(d.text)[0]) or d.text: d for d in reversed(given)}
    rest = sorted(unique.values(), key=document_key)
    count = sum(int.from_bytes(document_key(d)) / 2**128 < share for d in rest)
    count = min(max(count, 1), len(rest) - 1)
    val, train = rest[:count], rest[count:]
    shares, val_shares = plain_overlap(train, val)
    kept = [
        [d for d, near in zip(side, of, strict=True) if near <= 0.2]
        for side, of in ((train, shares), (val, val_shares))
    ]
    if all(kept):
        split = split_documents(given, share)
        assert [split.train, split.val] == kept
        assert list(split.dropped.values()) == [
            len(given) - len(rest),
            len(train) - len(kept[0]),
            len(val) - len(kept[1]),
        ]
    else:
        with pytest.raises(UserError, match="too alike"):
            split_documents(given, share)
    told = ""
    for near, side, other, of in (
        (shares, "training", "validation", train),
        (val_shares, "validation", "training", val),
    ):
        found = [n for n, part in enumerate(near) if part > 0.2]
        if found:
            name, part = of[found[0]].name, near[found[0]]
            does = "document overlaps" if len(found) == 1 else "documents overlap"
            told = f"{len(found)} {side} {does} with the {other} text, the first is "
            told += f"'{name}' (by {part:.0%}); remove them from one side"
    assert said(train, val) == told


def said(train: list[Document], val: list[Document]) -> str:
    try:
        check_overlap(train, val)
    except UserError as error:
        return str(error)
    return ""


def test_validation_that_training_holds_whole_leaves_nothing() -> None:
    short = Document("v", text(7))
    books = (Document(f"b{i}", f"{text(100, 3000)} {text(7)}") for i in range(1000))
    book = next(b for b in books if document_key(b) > document_key(short))
    with pytest.raises(UserError, match="the 2 documents are too alike to be split"):
        split_documents([book, short], 0.5)


def test_the_bar_counts_training_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []

    @contextmanager
    def bar(description: str, total: int) -> Iterator[Callable[[int], None]]:
        counted.append(-total)
        yield counted.append

    monkeypatch.setattr("fairway.data.guard.progress", bar)
    check_overlap(documents(5), [])
    assert counted == [-5, 1, 1, 1, 1, 1]


def characters(seed: int, count: int, first: int, size: int = 2000) -> str:
    draw = random.Random(seed)
    return "".join(chr(first + draw.randrange(size)) for _ in range(count))


def test_a_fifth_counts_for_characters_too() -> None:
    whole = characters(1, 519, 0x4E00)
    for count, near in ((99, False), (101, True)):
        other = characters(2, 519 - count - 19, 0x4E00) + whole[: count + 19]
        assert refused([Document("a", whole)], [Document("b", other)]) == near


def refused(train: list[Document], val: list[Document]) -> bool:
    return "overlap" in said(train, val)


WORDLESS = {
    "chinese": (0x4E00, 2000),
    "japanese": (0x3041, 170),
    "thai": (0x0E01, 46),
    "lao": (0x0E94, 4),
    "burmese": (0x1000, 33),
    "khmer": (0x1780, 34),
    "tibetan": (0x0F40, 8),
    "emoji": (0x1F600, 60),
    "rare han": (0x20000, 2000),
}


def changed(value: str) -> str:
    middle = len(value) // 2
    return value[:middle] + "x" + value[middle + 1 :]


@pytest.mark.parametrize(("first", "size"), WORDLESS.values(), ids=WORDLESS)
def test_one_changed_character_is_found_without_blanks(first: int, size: int) -> None:
    given = [Document(f"d{n}", characters(n, 1500, first, size)) for n in range(25)]
    for edit in (changed, lambda v: v[700:] + v[:700], lambda v: "\n".join(v), lambda v: v[:400]):
        assert refused(given, [Document("v", edit(given[7].text))])
    assert not refused(given, [Document("v", characters(99, 1500, first, size))])


WORDED = {
    "latin": "a\u00e9bcdo\u00fcxyz",
    "greek": "\u03b1\u03ac\u03b2\u03b3\u03b4\u03c9",
    "cyrillic": "\u0430\u0431\u0439\u0451\u0433",
    "hebrew": "\u05d0\u05d1\u05d2\u05d3\u05e9\u05dd",
    "arabic": "\u0627\u0628\u062a\u062b\u062c\u062d",
    "hindi": "\u0915\u0916\u0917\u093e\u093f\u0941",
    "korean": "\uac00\ub098\ub2e4\ub77c\ub9c8",
}


def sentences(seed: int, alphabet: str, words: int = 250) -> str:
    draw = random.Random(f"{seed}{alphabet}")
    known = ["".join(draw.choices(alphabet, k=draw.randint(2, 8))) for _ in range(words)]
    return " ".join(known)


EDITS = {
    "one character": changed,
    "NFD": lambda v: unicodedata.normalize("NFD", v),
    "case": lambda v: changed(v.upper()),
    "no-break spaces": lambda v: v.replace(" ", "\u00a0"),
    "ideographic spaces": lambda v: v.replace(" ", "\u3000"),
    "spaces without width": lambda v: v.replace(" ", "\u200b"),
    "signs without width inside": lambda v: "\u200d".join(v),
    "wrapped": lambda v: "\r\n".join(textwrap.wrap(v, 40)),
    "punctuation": lambda v: v.replace(" ", " \u201c", 40).replace(" ", "\u2014 "),
    "paragraphs moved": lambda v: " ".join([*v.split()[125:], *v.split()[:125]]),
    "inside a page": lambda v: f"<p>{sentences(98, 'pq')}</p><div>{v}</div>" + sentences(97, "pq"),
    "joined with others": lambda v: v + sentences(96, "abcdefgh") + sentences(95, "abcdefgh"),
    "a part": lambda v: v[: len(v) // 3],
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
@pytest.mark.parametrize("alphabet", WORDED.values(), ids=WORDED)
def test_an_edited_copy_is_found_in_every_script(alphabet: str, edit: Edit) -> None:
    given = [Document(f"d{n}", sentences(n, alphabet)) for n in range(6)]
    copy = Document("v", edit(given[3].text))
    assert refused(given, [copy]) and refused([copy], given)
    split, pair = split_documents([*given, copy], 0.3), {"v", "d3"}
    assert not pair & {d.name for d in split.train} or not pair & {d.name for d in split.val}


def test_copies_in_mixed_scripts_are_found() -> None:
    words = text(7, 60).split()
    value = "".join(f"{characters(n, 9, 0x4E00)} {words[n]} \U0001f600" for n in range(60))
    for edit in (changed, lambda v: v.replace(" ", ""), lambda v: v.upper(), lambda v: v[200:]):
        assert refused([Document("a", value)], [Document("b", edit(value))])
    assert not refused([Document("a", value)], [Document("b", " ".join(words))])


MIT = (
    "Permission is hereby granted, free of charge, to any person obtaining a copy of this software "
    "and associated documentation files, to deal in the Software without restriction, including "
    "without limitation the rights to use, copy, modify, merge, publish, distribute, sublicense, "
    "and sell copies of the Software, subject to the following conditions. "
)


def test_honest_neighbours_are_kept() -> None:
    stock = (
        "\u672c\u6587\u7248\u6743\u5f52\u4f5c\u8005\u6240\u6709\uff0c\u8f6c\u8f7d\u8bf7\u6ce8\u660e"
    )
    english = [Document(f"e{n}", MIT + text(n, 400)) for n in range(20)]
    chinese = [Document(f"c{n}", characters(n, 300, 0x4E00) + stock) for n in range(20)]
    greetings = [Document(f"g{n}", f"{name}, thank you.") for n, name in enumerate(WORDS[:20])]
    for given in (english, chinese, greetings):
        assert not refused(given[:10], given[10:])
        split = split_documents(given, 0.3)
        assert len(split.train) + len(split.val) == 20 and not any(split.dropped.values())


@pytest.mark.parametrize("words", [8, 9, 12, 13])
def test_a_short_document_is_found_inside_a_long_one(words: int) -> None:
    long = Document("long", f"{text(1)} {text(2, words)}, {text(3)}")
    short = Document("short", text(2, words).upper())
    assert refused([long], [short]) and refused([short], [long])
    assert not refused([long], [Document("short", text(4, words))])


def test_a_very_short_document_may_occur_elsewhere() -> None:
    long = Document("long", f"{text(1)} {text(2, 7)} {text(3)}")
    assert not refused([long], [Document("short", text(2, 7))])
    assert refused([Document("a", text(2, 7))], [Document("b", text(2, 7) + "!")])


def test_a_short_line_of_characters_is_found() -> None:
    long = characters(1, 500, 0x4E00)
    for length, near in ((11, False), (12, True), (19, True), (20, True)):
        part = Document("v", long[100 : 100 + length])
        assert refused([Document("a", long)], [part]) == near
        assert refused([part], [Document("a", long)]) == near


def test_documents_of_signs_are_not_repeats() -> None:
    given = [Document(f"d{n}", "".join(random.Random(n).choices("+-*/<>", k=80))) for n in range(9)]
    split = split_documents(given, 0.3)
    assert len(split.train) + len(split.val) == 9 and split.dropped["repeats"] == 0
