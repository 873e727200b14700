import itertools
import re
from html import unescape
from pathlib import Path

import pytest

from fairway.api import load
from fairway.base.files import read_json
from fairway.config.settings import RuntimeConfig
from fairway.report.style import CSS, TOKENS_CSS
from fairway.report.tokens import DIFFERENCES_BITS, LEVELS_BITS, View, difference, documents, level

HOSTILE = '<script>alert("1")</script> & \x00 \u202e "x"\n<img src=x onerror=alert(1)>'


def told(text: str, bits: list[float], ends: list[int]) -> dict:
    return {
        "text": text, "bits": bits, "ends": ends, "total_bits": sum(bits), "tokens": len(bits),
        "bytes": len(text.encode()), "bpb": sum(bits) / len(text.encode()),
        "names": [f"<{n}>" for n in range(len(bits))], "ranks": [1] * len(bits),
        "likeliest": [[["<b>", 1.0], ["<0>", 2.5]] for _ in bits],
    }  # fmt: skip


def text_of(html: str) -> str:
    """Return what is seen of the text of a view, without tips."""
    html = re.sub(r'<span class="tip">.*?</span></label>', "</label>", html, flags=re.S)
    return unescape(re.sub(r"<[^>]+>", "", html))


def test_colours_follow_bits_and_differences() -> None:
    assert [level(bits) for bits in (0, 0.99, 1, 15, 99)] == ["c0", "c0", "c1", "c8", "c8"]
    assert [difference(bits) for bits in (0.2, -0.25, 4, -9)] == ["c0", "m1", "p5", "m5"]
    for letter, bounds in (("c", LEVELS_BITS), ("m", DIFFERENCES_BITS), ("p", DIFFERENCES_BITS)):
        kinds = {f"{letter}{number}" for number in range(1, len(bounds) + 1)}
        assert kinds == set(re.findall(rf"\.({letter}\d) {{", TOKENS_CSS))


def test_what_a_text_says_is_shown_and_never_obeyed() -> None:
    size = len(HOSTILE.encode())
    view = View([told(HOSTILE, [1.5] * size, list(range(1, size + 1)))])
    html = view.text("a", "hostile")
    assert "<script" not in html and "<img" not in html and "\x00" not in html
    assert text_of(html) == HOSTILE.replace("\x00", "\ufffd")
    assert "<b>&lt;" not in view.list(["bits"]) and "<img" not in view.list(["bits"])
    tip = view.tip(0)
    assert "&lt;b&gt;" in tip and "1.50 bits" in tip and "50.0&nbsp;%" in tip and "rank 1" in tip


def test_two_models_are_compared_where_both_have_a_cut() -> None:
    a, b = told("abcd", [1.0, 2.0, 3.0], [1, 2, 4]), told("abcd", [5.0, 1.0], [2, 4])
    view = View([a, b])
    assert [cell.text for cell in view.cells] == ["ab", "cd"]
    assert view.bits == [[3.0, 5.0], [3.0, 1.0]]
    assert view.classes == ["m4", "p4"]
    assert view.ranked() == [0, 1]
    rows = view.list(["A", "B", "difference"]).split("<tr>")
    listed = [re.findall(r"<td>(.*?)</td>", row) for row in rows[2:]]
    assert listed == [["3.00", "5.00", "\N{MINUS SIGN}2.00"], ["3.00", "1.00", "+2.00"]]
    same = View([a, a])
    assert same.classes == ["c0"] * 3 and same.ranked() == []
    assert "3.00 bits</b> in 2 tokens" in view.tip(0, 0)


def test_the_report_shows_documents_of_the_run(smoke_run: Path) -> None:
    costs = read_json(smoke_run / "costs.json")
    page = (smoke_run / "report.html").read_text()
    model = load(smoke_run, runtime=RuntimeConfig(threads=1, dtype="float32", matmul="highest"))
    assert page.count('<div class="costs"') == len(costs) == 2
    shown = re.findall(r'<div class="costs".*?</div>', page, re.S)
    for one, html in zip(costs, shown, strict=True):
        assert one["bpb"] == model.bits_per_byte(one["text"])
        assert sum(one["bits"]) / one["bytes"] == pytest.approx(one["bpb"])
        assert text_of(html) == one["text"]
    assert len(documents(costs)) < 200_000
    assert documents([]) == ""


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_letters_keep_their_contrast_on_every_colour() -> None:
    names = re.compile(r"--(\w+): (#\w{6})")
    light, dark = (
        dict(itertools.chain(names.findall(base), names.findall(own)))
        for base, own in zip(CSS.split("@media")[:2], TOKENS_CSS.split("@media")[:2], strict=True)
    )
    for colours in (light, dark):
        backs = [name for name in colours if re.fullmatch(r"[cmp]\d|paper|panel", name)]
        assert len(backs) == 20
        assert {n: contrast(colours["ink"], colours[n]) >= 4.5 for n in backs} == dict.fromkeys(
            backs, True
        )
        assert all(contrast(colours["muted"], colours[n]) >= 4.5 for n in ("paper", "panel"))
        assert contrast(colours["model"], colours["paper"]) >= 4.5
