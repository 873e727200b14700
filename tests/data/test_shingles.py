import random
import unicodedata

import numpy as np
import pytest
from all_shingles import shingles

from fairway.data.shingles import (
    SHINGLE_CHARS,
    SHINGLE_WORDS,
    index_of,
    look_up,
    views,
)

# Scripts that put no blanks between words, by the first letters of a character's name.
UNSPACED = (
    *("CJK ", "IDEOGRAPHIC ITERATION", "IDEOGRAPHIC CLOSING", "IDEOGRAPHIC NUMBER", "HANGZHOU"),
    *("HIRAGANA", "KATAKANA", "HENTAIGANA", "VERTICAL KANA", "MASU", "VERTICAL IDEO", "BOPOMOFO"),
    *("THAI ", "LAO ", "KHMER", "MYANMAR", "TIBETAN", "TAI ", "NEW TAI", "BALINESE", "JAVANESE"),
    *("YI ", "CUNEIFORM", "EGYPTIAN", "CYPRO-MINOAN", "TANGUT", "KHITAN", "NUSHU", "OLD CHINESE"),
    "VIETNAMESE ALTERNATE",
)
ALPHABETS = {
    "latin": "abcdef ghij, klm. noP QRS-T\u00e9\u00fc",
    "han": "\u4e00\u4e8c\u4e09\u56db\u3002\uff0c\u6c34\u706b",
    "kana": "\u3042\u3044\u30a2\u30a4\u30fc\u3099",
    "thai": "\u0e01\u0e02\u0e03\u0e31\u0e34\u0e48 ",
    "cyrillic": "\u0430\u0431\u0432\u0439 \u0451",
    "arabic": "\u0627\u0628\u062a \u064e\u064f",
    "genome": "acgt",
    "long words": "acgt\u0301" * 16 + " ",
    "mixed": "ab c\u4e00\u4e8c \u0e01\U0001f600\u0301- \ud55c\uae00 ",
}


def plain_units(text: str) -> list[tuple[str, int]]:
    """Return (unit, weight), character by character; signs without width are nothing."""
    units: list[tuple[str, int]] = []
    word = ""
    for letter in unicodedata.normalize("NFKD", text).casefold() + " ":
        kind, name = unicodedata.category(letter), unicodedata.name(letter, "")
        if kind in ("Mn", "Me", "Cf") or "FILLER" in name or name == "ARABIC TATWEEL":
            continue
        alone = name.startswith(UNSPACED) and kind[0] in "LNM"
        alone |= kind == "So" and letter >= "\u2600" and name != "BRAILLE PATTERN BLANK"
        if kind[0] in "LNMC" and kind != "Cc" and not alone:
            word += letter
            continue
        if word:
            units.append((word[:40], 3))
            units += [(late, 2) for late in word[40:]]
            word = ""
        if alone:
            units.append((letter, 2))
    return units


def test_every_character_is_read_as_its_name_and_category_say() -> None:
    draw = random.Random(1)
    # Of the many Han and Hangul characters a few; where their blocks begin and end, all.
    many = {*range(0x4E10, 0x9FF0), *range(0x3410, 0x4DB0), *range(0xAC10, 0xD790)}
    many |= {*range(0x12010, 0x12FE0), *range(0x1B180, 0x1B2F0), *range(0x20010, 0x40000)}
    codes = {*range(0x20010), 0x3134A} - many | {*draw.sample(sorted(many), 2000)}
    # A word behind each tells which of two neighbours is a unit.
    text = "\nq\n".join(chr(code) for code in sorted(codes) if unicodedata.name(chr(code), ""))
    found, units = views(text)[0], plain_units(text)
    assert found.weights.tolist() == [weight for _, weight in units]
    pairs = set(zip((unit for unit, _ in units), found.bare.tolist(), strict=True))
    assert len(pairs) == len({unit for unit, _ in pairs}) == len({code for _, code in pairs})


def plain_runs(text: str) -> set[tuple[str, ...]]:
    """Return the runs of 13 words, 20 characters or as much of both."""
    units, runs = plain_units(text), set()
    for first in range(len(units)):
        weight = 0
        for last in range(first, len(units)):
            weight += units[last][1]
            if weight >= 39:
                runs.add(tuple(unit for unit, _ in units[first : last + 1]))
                break
    return runs or ({tuple(unit for unit, _ in units)} if units else set())


@pytest.mark.parametrize("name", ALPHABETS)
@pytest.mark.parametrize("length", [0, 1, 19, 20, 21, 60, 700])
def test_runs_are_those_of_a_plain_search(name: str, length: int) -> None:
    draw = random.Random(f"{name}{length}")
    left = "".join(draw.choices(ALPHABETS[name], k=length))
    right = "".join(draw.choices(ALPHABETS[name], k=40)) + left + "x"
    assert len(shingles(left)) == len(plain_runs(left))
    common = set(shingles(left).tolist()) & set(shingles(right).tolist())
    assert len(common) == len(plain_runs(left) & plain_runs(right))


PLAIN = (
    "The caf\u00e9 \u2018opens\u2019 at ten \u2013 \u00abnot\u00bb before; "
    "\ufb01ve guests waited\u2026 for hours on end."
)
SAME = {
    "NFD": unicodedata.normalize("NFD", PLAIN),
    "NFKC": unicodedata.normalize("NFKC", PLAIN),
    "case": PLAIN.upper(),
    "quotes": PLAIN.replace("\u2018", "'").replace("\u2019", '"').replace("\u00ab", "<<"),
    "dash": PLAIN.replace("\u2013", "--"),
    "accents": PLAIN.replace("\u00e9", "e"),
    "ligature": PLAIN.replace("\ufb01", "fi"),
    "full width": "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in PLAIN),
    "no-break": PLAIN.replace(" ", "\u00a0"),
    "ideographic": PLAIN.replace(" ", "\u3000"),
    "thin": PLAIN.replace(" ", "\u2009"),
    "line ends": PLAIN.replace(" ", "\r\n"),
    "separators": PLAIN.replace(" ", "\u2028"),
    "soft hyphens": PLAIN.replace("t", "\u00adt"),
    "mathematical": "".join(chr(0x1D41A + ord(c) - 97) if "a" <= c <= "z" else c for c in PLAIN),
    "bold marks": PLAIN.replace(" ", " **"),
}


@pytest.mark.parametrize("other", SAME.values(), ids=SAME)
def test_what_does_not_change_a_text_does_not_matter(other: str) -> None:
    assert shingles(other).tolist() == shingles(PLAIN).tolist()


@pytest.mark.parametrize("sign", ["\u200b", "\u200c", "\u2060", "\ufeff", "\u200e", "\u202b"])
def test_a_sign_without_width_is_a_blank_or_nothing(sign: str) -> None:
    expected = set(shingles(PLAIN).tolist())
    for other in (PLAIN.replace(" ", sign), PLAIN.replace("e", "e" + sign), sign + PLAIN):
        assert expected <= set(shingles(other).tolist())


@pytest.mark.parametrize(
    "letters", ["acgt", "0123456789abcdef", "\u0430\u0431\u0432", "\u0915\u0916"]
)
def test_text_without_blanks_is_known_after_an_edit(letters: str) -> None:
    text = "".join(random.Random(letters).choices(letters, k=1000))
    ours = set(shingles(text).tolist())
    for other in (f"{text[:500]}z{text[501:]}", text[300:], f"z{text}"):
        found = set(shingles(other).tolist())
        assert len(found & ours) > 0.9 * len(found)


def test_stretched_arabic_words_are_the_same() -> None:
    text = " ".join(random.Random(1).choices(["\u0643\u062a\u0628", "\u0628\u0627\u0628"], k=40))
    stretched = text.replace("\u0628", "\u0628\u0640\u0640")
    assert shingles(stretched).tolist() == shingles(text).tolist()


def test_accents_tell_repeats_apart() -> None:
    (bare,), (marked,) = views("ma ma ma"), views("m\u00e1 ma m\u00e0")
    assert bare.runs(39).tolist() == marked.runs(39).tolist() and bare.key() != marked.key()
    (composed,), (apart,) = views("m\u00e1"), views("ma\u0301")
    assert composed.key() == apart.key() and len(apart.key()) == 16
    texts = [
        "ma me",
        "m\u00e1 me",
        "m\u00e0 me",
        "ma\u0300\u0316\u0301 me",
        "ma m\u00e9",
        "ma\u0305 me",
    ]
    texts += ["\u304b\u3042", "\u304b\u3099\u3042", "\u304b\u3042\u3099", "\u304b\u309a\u3042"]
    texts += ["\u304b\u3042a", "\u304b\u3042\u0301a", "\u304b\u3042a\u0301", "\u304b\u3042b"]
    texts += [chr(0x4E00 + n) + "\u3099" for n in range(99)]
    keys = [views(text)[0].key() for text in texts]
    assert len(set(keys)) == len(texts)
    for sign in ("\u00ad", "\u200d", "\ufeff", "\u0640"):
        assert [views(text[0] + sign + text[1:])[0].key() for text in texts] == keys


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("++ -- ** ++", 8),
        ("((<>)) [] {}", 10),
        ("\u2190\u2192 \u2190", 3),
        ("+-\n*\t/\x00", 4),
        ("+\u0301-\u200b*\u00ad\u0640", 3),
    ],
)
def test_signs_alone_are_characters(text: str, count: int) -> None:
    assert all(len(view.bare) == count for view in views(text))


def test_hashes_are_spread_over_64_bits() -> None:
    [view] = views(
        " ".join(f"w{n}" for n in range(4000)) + "".join(map(chr, range(0x4E00, 0x5E00)))
    )
    for hashes in (view.bare, view.full, view.runs(39)):
        bits = (hashes[:, None] >> np.arange(64, dtype=np.uint64)) & 1
        assert np.abs(bits.mean(0) - 0.5).max() < 0.03 and len(np.unique(hashes)) == len(hashes)


def test_the_lengths_that_are_told_are_those_of_runs() -> None:
    for length, letters in (
        (SHINGLE_CHARS, "".join(map(chr, range(0x4E00, 0x4F00)))),
        (SHINGLE_WORDS, [f"w{n} " for n in range(99)]),
    ):
        assert len(shingles("".join(letters[: length + 1]))) == 2
        assert len(shingles("".join(letters[:length]))) == 1


@pytest.mark.parametrize("seed", range(8))
def test_the_table_finds_what_a_dictionary_finds(seed: int) -> None:
    draw = np.random.default_rng(seed)
    # Of few hashes many fall to one place, of others' low bits all do.
    many = draw.permutation(np.arange(200, dtype=np.uint64)) << np.uint64(draw.choice([0, 3, 40]))
    keys, wanted = many[: draw.choice([0, 1, 7, 31, 63])], draw.choice(many, 300)
    slots = np.full(1 << len(keys).bit_length(), -1, np.int64)
    index_of(keys, slots)
    places = {key: place for place, key in enumerate(keys.tolist())}
    found = look_up(keys, slots, wanted).tolist()
    assert found == [places[key] for key in wanted.tolist() if key in places]


def test_any_text_has_units_or_none() -> None:
    for code in (0, 0x20, 0xAD, 0x301, 0x200B, 0x3164):
        assert len(views(chr(code) * 3)[0].bare) == 0
    for code in (0xE000, 0x10FFFF):
        assert len(views(chr(code) * 3)[0].bare) == 1
