"""Capital letters as marks: every text comes back, and tokens count the text's own bytes."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairway.base.errors import UserError
from fairway.config.overrides import override
from fairway.data.build import build_data
from fairway.data.case import ALL, ESCAPE, MARKS, NEXT, SMALL, TITLE, Capitals
from fairway.data.documents import Document
from fairway.data.folder import DataFolder
from fairway.data.pieces import Packer
from fairway.data.tokens import Tokenizer, prove_bytes, token_bytes, train_tokenizer
from fairway.pipeline.text import embedded_reads, open_text
from fairway.recipes import recipe

TEXTS = [
    "The quick brown fox met NASA and McDonald in Paris. I SAID: It is HTTPServer2, eBay, iOS.\n"
    * 20,
    "the other brother rather gathered those feathers there; their mother bothered another. " * 20,
    "A B CD eF Gh\tUPPER lower Title  MiXeD \u00c4pfel \u00c9TAT \U0001f600 Ω straße\r\n" * 20,
]
# What a stranger may bring: marks in the text, letters next to them, nothing at all.
HARD = [
    "", " ", "A", "a", "AB", "Ab", "aB", "ABc", "aBC", "I am", "x I", "\u00c4B", "É", "İi", "ſK",
    "".join(MARKS), f"{ESCAPE}a", f"{ESCAPE}A", f"AB{TITLE}CD", f"{ALL}abc", NEXT, f"a{TITLE}b",
    f"Ab{ESCAPE}{ESCAPE}dC", f"{TITLE}{TITLE}Xy", "\ue000\ue005", "A\x00B", "Z" * 999, "aA" * 500,
    ". A", ". a", "A. B. c", f". {TITLE}a", f".{SMALL} a", f"{SMALL}. A", ". AB", ".\" \"Ab",
    "! (aB", "?\u201d \u201cA", ". \u201cB C", ".. A", ".\r\nA", ". \u00c9a", ". 1 A",
]  # fmt: skip


KEPT = frozenset({b" A", b"Aa", b" AB", b" I", b" NASA", b" It", b" McDonald"})
FORMS = [Capitals(sentences=False), Capitals(sentences=True), Capitals(True, KEPT)]
NAMES = ["words", "sentences", "kept"]


def ends_before(text: str, at: int) -> int | None:
    """Return where a sentence ends if the word at a place is the first one after it."""
    while at and text[at - 1] in "\"'([\u2018\u201c":
        at -= 1
    start = at
    while start and text[start - 1] in " \t\n\r\v\f":
        start -= 1
    sign = start
    while sign and text[sign - 1] in "\"')]\u2019\u201d":
        sign -= 1
    return start if start < at and sign and text[sign - 1] in ".!?" else None


def plain(text: str, form: Capitals) -> str:
    """Write a text by the rules, word by word."""
    out = [ESCAPE + "abcde"[MARKS.index(sign)] if sign in form.marks else sign for sign in text]
    for found in re.finditer("[A-Za-z]+", text):
        start, word = found.start(), found[0]
        front = start - 1 if text[:start].endswith(" ") else start
        ends = ends_before(text, start) if SMALL in form.marks else None
        every = len(word) > 1 and word.isupper()
        if text[front : found.end()].encode() in form.kept:
            continue
        for place, letter in enumerate(word, start):
            mark = NEXT if letter.isupper() and place > start and not every else ""
            out[place] = mark + letter.lower()
        if every:
            out[front] = ALL + out[front]
        elif word[0].isupper() and ends is None:
            out[front] = TITLE + out[front]
        elif word[0].islower() and ends is not None:
            out[ends] = SMALL + out[ends]
    return "".join(out)


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
@pytest.mark.parametrize("text", [*HARD, *TEXTS])
def test_texts_are_marked_by_the_rules_and_come_back(text: str, form: Capitals) -> None:
    assert form.marked(text.encode()).decode() == plain(text, form)
    assert form.restored(form.marked(text.encode())).decode() == text


def test_first_words_of_sentences_have_no_mark() -> None:
    form = Capitals(sentences=True)

    def read(text: str) -> str:
        told = form.marked(text.encode()).decode()
        return "".join("^A~\\_"[MARKS.index(sign)] if sign in MARKS else sign for sign in told)

    assert read("The End. The end! The?") == "^the^ end. the end! the?"
    assert read('A. b. C? 4 D.E. iOS. NASA. "It." \'S') == (
        '^a._ b. c? 4^ d.^e._ i~o~s.A nasa. "it." \'s'
    )
    assert read("(No.) \u201cYes.\u201d  He.\n\nShe.\tMcFox") == (
        "(^no.) \u201cyes.\u201d  he.\n\nshe.\tmc~fox"
    )


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
@pytest.mark.parametrize(
    "signs",
    [["A", "a", "D", "d", "-", *MARKS], ["A", "a", ".", " ", '"', *MARKS], [*"AB. \n\u201c"]],
)
def test_every_text_of_a_few_signs_comes_back_and_has_its_own_form(
    signs: list[str], form: Capitals
) -> None:
    texts = [""]
    for _ in range(5):
        texts += [text + sign for text in texts if len(text) == len(texts[-1]) for sign in signs]
    forms = {form.marked(text.encode()) for text in texts}
    assert len(forms) == len(texts) == sum(len(signs) ** length for length in range(6))
    assert all(form.restored(form.marked(text.encode())).decode() == text for text in texts)
    assert all(form.marked(text.encode()).decode() == plain(text, form) for text in texts[::7])
    # Marks where no writer puts them, as a model may, are left out.
    for text in (text for text in texts[:5000] if ESCAPE not in text):
        told = form.restored(text.encode())
        assert not any(mark.encode() in told for mark in form.marks)


@settings(deadline=None, max_examples=300)
@given(st.binary())
def test_any_bytes_come_back(data: bytes) -> None:
    for form in FORMS:
        assert form.restored(form.marked(data)) == data
        several = data.replace(b"\x00", TITLE.encode())
        assert len(form.restored(several)) <= len(several)


@pytest.mark.slow
def test_a_million_random_strings_come_back() -> None:
    draw = np.random.default_rng(0)
    signs = np.array([*'AaBbZz .?,\n-1"\u201d\u201cé\u4e2d', *MARKS])
    for round_ in range(1000):
        lengths = draw.integers(0, 12, 1000)
        drawn = signs[draw.integers(0, len(signs), int(lengths.sum()))]
        texts = ["".join(part) for part in np.split(drawn, np.cumsum(lengths)[:-1])]
        form = FORMS[round_ % len(FORMS)]
        for text in texts:
            assert form.restored(form.marked(text.encode())).decode() == text


# ---------------------------------------------------------------------------------------------
# In a tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(train_tokenizer(TEXTS, 330, case_ops=True))


def test_marks_are_tokens_of_their_own(tokenizer: Tokenizer) -> None:
    assert tokenizer.case_ops and not Tokenizer(train_tokenizer(TEXTS, 330)).case_ops
    assert list(tokenizer.mark_ids.values()) == [4, 5, 6, 7, 8]
    assert tokenizer.table.base_bytes[4:9].tolist() == [0, 0, 0, 2, 0]
    ids = tokenizer.encode("The the THE").tolist()
    small, after = tokenizer.encode("the").tolist(), tokenizer.encode(" the").tolist()
    assert ids == [4, *small, *after, 5, *after]


def test_frequent_words_keep_their_capitals() -> None:
    draw = np.random.default_rng(3)
    others = ["".join(draw.choice([*"aeiourstln"], draw.integers(2, 7))) for _ in range(300)]
    places = (draw.pareto(1.0, 20_000) * 3).astype(int).clip(max=299)
    words = [others[place] for place in places]
    words[5::40], words[7::40], words[9::40] = ["Bob"] * 500, ["Dick"] * 500, ["end. He"] * 500
    # A unigram model takes only parts of at least two different words between blanks.
    words[6::80], words[8::80] = ["Bob,"] * 250, ["Dick."] * 250
    texts = [" ".join(words)]
    kept = Capitals(sentences=True).frequent(texts, 400)
    # The first word of a sentence does not count: it has no mark.
    assert {b" Bob", b" Dick"} <= kept and b" He" not in kept
    tokenizer = Tokenizer(train_tokenizer(texts, 400, case_ops=True))
    assert {"\u2581Bob", "\u2581Dick"} <= set(tokenizer.pieces)
    marks = set(tokenizer.mark_ids.values())
    assert not marks & set(tokenizer.encode("then Bob ran. Dick saw. He ran. Bob").tolist())
    assert tokenizer.mark_ids[TITLE.encode()] in tokenizer.encode("then ran He").tolist()
    assert tokenizer.mark_ids[SMALL.encode()] in tokenizer.encode("Dick ran. he").tolist()


@pytest.mark.parametrize("text", [TEXTS[0], "".join(TEXTS), " ".join(HARD) * 9, "NASA Foo " * 99])
@pytest.mark.parametrize("case_ops", [False, True])
def test_the_largest_vocabulary_that_an_error_names_is_possible(text: str, case_ops: bool) -> None:
    for asked in (600, 5000, 60_000):
        with pytest.raises(UserError, match="the largest possible is") as error:
            train_tokenizer([text], asked, case_ops)
        named = int(re.findall("largest possible is ([0-9]+)", str(error.value))[0])
        assert Tokenizer(train_tokenizer([text], named, case_ops)).vocab_size == named


def test_a_tokenizer_of_before_is_read_without_the_rule_for_sentences(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fairway.data.tokens.MARKS", MARKS[:4])
    tokenizer = Tokenizer(train_tokenizer(TEXTS, 330, case_ops=True))
    assert [mark.decode() for mark in tokenizer.mark_ids] == list(MARKS[:4])
    text = f"It is. It is. it {SMALL}{TITLE} is."
    assert tokenizer.mark(text.encode()).decode() == plain(text, FORMS[0])
    packer = Packer(tokenizer)
    assert packer.documents(packer.stream([text])) == [text.encode()]


@pytest.mark.parametrize("text", [*HARD, *TEXTS])
def test_tokens_count_the_bytes_of_the_text(tokenizer: Tokenizer, text: str) -> None:
    packer = Packer(tokenizer)
    assert packer.unpack(packer.pack(text.encode())) == text.encode()
    if text.strip():
        assert tokenizer.encode_exactly(tokenizer.canonical(text)) is not None
        ids = packer.stream([text, text])
        assert packer.documents(ids) == [text.encode()] * 2
        assert prove_bytes(tokenizer, ids) == 2 * len(text.encode())


@settings(deadline=None, max_examples=200)
@given(st.lists(st.sampled_from([*"AaBb \n\té", *MARKS, "\u2581", "THE", "The"]), max_size=12))
def test_documents_and_bytes_come_back_whatever_they_hold(
    tokenizer: Tokenizer, signs: list[str]
) -> None:
    text, packer = "".join(signs), Packer(tokenizer)
    assert (
        packer.unpack(packer.pack(text.encode() + b"\xff\xee\x80A"))
        == text.encode() + b"\xff\xee\x80A"
    )
    if text:
        ids = packer.stream([text])
        assert packer.documents(ids) == [text.encode()]
        counted = np.zeros(len(ids), np.int64)
        counted[1:] = token_bytes(ids[1:], ids[:-1], tokenizer.table)
        assert counted.sum() == len(text.encode())


def written(count: int) -> list[str]:
    """Return texts of words with capitals of every kind."""
    draw = np.random.default_rng(1)
    words = [word for text in TEXTS for word in set(text.split(" "))]
    kinds = [str.lower, str.upper, str.title, str.swapcase]
    return [
        " ".join(kinds[draw.integers(4)](word) for word in draw.choice(words, 60))
        for _ in range(count)
    ]


def test_a_folder_holds_and_scores_the_texts_themselves(tmp_path: Path) -> None:
    documents = [Document(str(n), text) for n, text in enumerate(written(40))]
    options = {"vocab_size": 330, "val_share": 0.2, "shard_tokens": 50_000}
    manifest = build_data(documents, tmp_path / "a", **options, case_ops=True)  # type: ignore[arg-type]
    folder = DataFolder.open(tmp_path / "a")
    assert manifest["tokenizer"]["case_ops"] and folder.tokenizer.case_ops
    lines = (tmp_path / "a" / "val.jsonl").read_text().splitlines()
    texts = {json.loads(line)["text"] for line in lines}
    assert texts <= {document.text for document in documents}
    found = folder.sample_validation()
    assert set(found.documents) == {text.strip() for text in texts}
    assert found.bytes == manifest["val"]["bytes"] == sum(len(t.encode()) for t in found.documents)
    trained = set(folder.last_train_documents())
    assert trained == {document.text.strip() for document in documents} - set(found.documents)
    without = Tokenizer(train_tokenizer(TEXTS, 330))
    with pytest.raises(UserError, match="the tokenizer has no marks for capital letters"):
        build_data(documents, tmp_path / "b", **options, tokenizer=without, case_ops=True)  # type: ignore[arg-type]


def test_a_folder_decides_whether_there_are_marks(tmp_path: Path) -> None:
    """`data.case_ops` is for the embedded text; the demo has it, and takes any folder."""
    documents = [Document(str(n), text) for n, text in enumerate(written(40))]
    for name, marks in (("with", True), ("without", False)):
        build_data(
            documents, tmp_path / name, vocab_size=330, val_share=0.2, shard_tokens=50_000,
            case_ops=marks,
        )  # fmt: skip
        for case_ops in ("true", "false"):
            words = (
                f"data.source={tmp_path / name}",
                f"data.case_ops={case_ops}",
                "model.vocab_size=330",
            )
            source = open_text(override(recipe("demo"), words), tmp_path, lambda reads, work: None)
            assert source.tokenizer.case_ops == marks


def test_embedded_text_for_given_weights_has_their_tokenizer() -> None:
    config = override(recipe("demo"), ["train.init=some.fwy"])
    without = Tokenizer(train_tokenizer(TEXTS, 330))
    assert embedded_reads(config, None)["case_ops"]
    reads = embedded_reads(config, without)
    assert reads["tokenizer"] == without.digest and "case_ops" not in reads
