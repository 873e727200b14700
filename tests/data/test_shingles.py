import random
import unicodedata

import pytest

from fairway.data.shingles import shingles, views

# Scripts that put no blanks between words, by the first letters of a character's name.
UNSPACED = ("CJK UNIFIED", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
ALPHABETS = {
    "latin": "abcdef ghij, klm. noP QRS-T\u00e9\u00fc",
    "han": "\u4e00\u4e8c\u4e09\u56db\u3002\uff0c\u6c34\u706b",
    "kana": "\u3042\u3044\u30a2\u30a4\u30fc\u3099",
    "thai": "\u0e01\u0e02\u0e03\u0e31\u0e34\u0e48 ",
    "cyrillic": "\u0430\u0431\u0432\u0439 \u0451",
    "arabic": "\u0627\u0628\u062a \u064e\u064f",
    "genome": "acgt",
    "mixed": "ab c\u4e00\u4e8c \u0e01\U0001f600\u0301- \ud55c\uae00 ",
}


def plain_units(text: str) -> list[tuple[str, int]]:
    """Return (unit, weight), character by character."""
    units: list[tuple[str, int]] = []
    word = ""
    for letter in unicodedata.normalize("NFKD", text).casefold() + " ":
        kind, name = unicodedata.category(letter), unicodedata.name(letter, "")
        if kind in ("Mn", "Me"):
            continue
        alone = name.startswith(UNSPACED) and kind[0] in "LNM"
        alone |= kind == "So"
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
    assert composed.key() == apart.key()


@pytest.mark.parametrize("text", ["++ -- ** ++", "((<>)) [] {}", "\u2190\u2192 \u2190"])
def test_signs_alone_are_characters(text: str) -> None:
    assert len(views(text)[0].bare) == len("".join(text.split()))


def test_any_text_has_units_or_none() -> None:
    for code in (0, 0x20, 0xAD, 0x301, 0x200B, 0x3164, 0x2800, 0xE000, 0x10FFFF):
        assert len(views(chr(code) * 3)[0].bare) <= 3
