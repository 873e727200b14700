"""The cost of each token as HTML: a text coloured by bits, of one model or two.

The report shows it without a script. Every cell of a text is a radio button, so that a text takes
one stop of the Tab key, and the arrow keys move from token to token. The style sheet shows the tip
of the token under the pointer or the focus.
"""

from collections.abc import Sequence
from typing import Any

from fairway.data.spans import Cell, cells
from fairway.report.html import Html, esc, note, num, pairs, section, table

# The costs of a text by one model, from `fairway.score.costs.document_costs`. Costs that a stage of
# a run recorded have no `ranks` and no `likeliest`.
TextCosts = dict[str, Any]

# A cell has the colour of the highest of these bounds that it reaches; so have differences.
LEVELS_BITS = (1, 2, 3, 4, 6, 8, 11, 15)
DIFFERENCES_BITS = (0.25, 0.5, 1, 2, 4)
# The most rows in the list of cells.
MOST_ROWS = 20
# The most tokens of a cell, and the most characters of its text, in a tip.
_TIP_TOKENS, _TIP_LETTERS = 6, 40
# The most letters that a row of the list shows before and after the cell.
_BEFORE, _AFTER = 15, 30


def level(bits: float) -> str:
    """Return the class of a cell with this cost in bits."""
    return f"c{sum(bits >= least for least in LEVELS_BITS)}"


def difference(bits: float) -> str:
    """Return the class of a cell that costs the first model this many bits more than the second."""
    size = sum(abs(bits) >= least for least in DIFFERENCES_BITS)
    return f"{'m' if bits < 0 else 'p'}{size}" if size else "c0"


class View:
    """A text in cells, with their costs by one or two models."""

    def __init__(self, sides: Sequence[TextCosts]) -> None:
        self.sides = sides
        self.cells = cells(sides[0]["text"], [side["ends"] for side in sides])
        self.bits = [[self._bits(cell, at) for at in range(len(sides))] for cell in self.cells]
        self.classes = self._classes()

    def _bits(self, cell: Cell, at: int) -> float:
        tokens = cell.tokens[at]
        return float(sum(self.sides[at]["bits"][tokens.start : tokens.stop]))

    def _classes(self) -> list[str]:
        """Return the colour of every cell: its bits, or their difference between two models."""
        if len(self.sides) == 1:
            return [level(bits) for (bits,) in self.bits]
        return [difference(a - b) for a, b in self.bits]

    def text(self, group: str, label: str, at: int = 0, tips: bool = True) -> Html:
        """Return the text with coloured cells; `group` is a name that no other text has.

        Without tips, each cell only has its number, with which a page requests the tip.
        """
        parts = []
        for number, (cell, kind) in enumerate(zip(self.cells, self.classes, strict=True)):
            tip = f'<span class="tip">{self.tip(number, at)}</span>' if tips else ""
            shown = esc(cell.text)
            # The style sheet draws the mark of a line's end, so that copied text does not have it.
            ends = " nl" if "\n" in cell.text else ""
            parts.append(
                f'<label class="{kind}{ends}"><input type="radio" name="{group}" value="{number}">'
                f"{shown}{tip}</label>"
            )
        return Html(
            f'<div class="costs" role="radiogroup" aria-label="{esc(label)}" dir="auto">'
            f"{''.join(parts)}</div>"
        )

    def tip(self, number: int, at: int = 0) -> Html:
        """Return the tip of a cell: each token's bits, rank and likeliest tokens."""
        side, tokens = self.sides[at], self.cells[number].tokens[at]
        parts = [_token(side, token) for token in tokens[:_TIP_TOKENS]]
        if len(tokens) > 1:
            bits = self.bits[number][at]
            text = self.cells[number].text[:_TIP_LETTERS]
            parts.insert(
                0, f"<b><bdi>{esc(text)}</bdi>: {bits:.2f} bits</b> in {len(tokens)} tokens"
            )
        if len(tokens) > _TIP_TOKENS:
            parts.append(f"and {len(tokens) - _TIP_TOKENS} more tokens")
        return Html("".join(f"<span>{part}</span>" for part in parts))

    def totals(self, at: int = 0) -> Html:
        """Return tokens, bytes, bits and bits per byte of the text."""
        side = self.sides[at]
        return pairs(
            [
                ("Bits per byte", num(side["bpb"], ".4f")),
                ("Bits", num(side["total_bits"], ",.1f")),
                ("Bytes", num(side["bytes"])),
                ("Tokens", num(side["tokens"])),
            ],
            "cards",
        )

    def ranked(self) -> list[int]:
        """Return the most important cells: the most expensive, or those that differ most."""
        sizes = [row[0] if len(row) == 1 else abs(row[0] - row[1]) for row in self.bits]
        order = sorted(range(len(sizes)), key=lambda number: -sizes[number])
        return [number for number in order[:MOST_ROWS] if sizes[number] > 0]

    def list(self, heads: Sequence[str]) -> Html:
        """Return a table of these cells, each with the text around it and a button to go there."""
        rows = []
        for number in self.ranked():
            bits = [Html(f"{value:.2f}") for value in self.bits[number]]
            if len(bits) == 2:
                a, b = self.bits[number]
                bits.append(Html(f"{a - b:+.2f}".replace("-", "\N{MINUS SIGN}")))
            rows.append([self._around(number), *bits])
        return table(["token", *heads], rows)

    def _around(self, number: int) -> Html:
        before = _line(self.cells[max(0, number - 8) : number])
        after = _line(self.cells[number + 1 : number + 9])
        before = before if len(before) <= _BEFORE else f"\u2026{before[-_BEFORE:]}"
        after = after if len(after) <= _AFTER else f"{after[:_AFTER]}\u2026"
        text = _line([self.cells[number]])
        text = text if len(text) <= _TIP_LETTERS else f"{text[:_TIP_LETTERS]}\u2026"
        kind = self.classes[number]
        return Html(
            f'<button type="button" class="go" value="{number}"><bdi>{esc(before)}'
            f'<mark class="{kind}">{esc(text)}</mark>{esc(after)}</bdi></button>'
        )


def scale(differs: bool = False) -> Html:
    """Return the colours of cells with their meaning: bits, or differences of two models."""
    if differs:
        lower, upper = (_boxes(letter, DIFFERENCES_BITS) for letter in "mp")
        parts = ["<i>A costs less, by bits</i>", *reversed(lower), *upper, "<i>B costs less</i>"]
    else:
        boxes = _boxes("c", LEVELS_BITS)
        parts = ["<i>bits per token, at least</i>", '<span class="c0">0</span>', *boxes]
    return Html(f'<p class="scale">{" ".join(parts)}</p>')


def _boxes(letter: str, bounds: Sequence[float]) -> list[str]:
    kinds = enumerate(bounds, start=1)
    return [f'<span class="{letter}{number}">{least:g}</span>' for number, least in kinds]


def documents(costs: Sequence[TextCosts]) -> Html:
    """Return the section of the report that shows a few documents; nothing if there are none."""
    parts = [piece for number, told in enumerate(costs) for piece in _document(number, told)]
    meaning = Html(
        "The beginning of a few held-out documents, each scored alone, as <code>fairway score RUN "
        "TEXT</code> does. Point at a token, or go there with the Tab and arrow keys, to see its "
        "bits, its rank among all tokens, and the likeliest tokens in its place with their "
        "probabilities and bits. <code>fairway serve RUN</code> shows the same for any text."
    )
    pieces = [note(meaning), scale(), *parts] if parts else []
    return section("What each token costs", *pieces)


def _document(number: int, told: TextCosts) -> tuple[Html, Html]:
    size, cost = num(told["bytes"], ",", " bytes"), num(told["total_bits"], ",.1f", " bits")
    tokens, bpb = num(told["tokens"], ",", " tokens"), num(told["bpb"], ".4f", " bits per byte")
    words = Html(f"<p>Document {number + 1}: {size} in {tokens} cost {cost}, {bpb}.</p>")
    return words, View([told]).text(f"document{number}", f"Document {number + 1}, token by token")


def _line(some: Sequence[Cell]) -> str:
    """Return the text of some cells in one line."""
    return "".join(cell.text for cell in some).replace("\n", "\u23ce").replace("\t", " ")


def _token(side: TextCosts, token: int) -> str:
    """Return a token's cost as HTML; unless it was recorded, also its rank and likelier tokens."""
    bits, name = side["bits"][token], esc(side["names"][token])
    cost_told = f"<b><bdi>{name}</bdi> {bits:.2f} bits</b> {_share(bits)}"
    if "ranks" not in side:
        return cost_told
    lines = "".join(
        f"<i{' class=own' if other == side['names'][token] else ''}>"
        f"<bdi>{esc(other)}</bdi> {_share(cost)} <em>{cost:.2f}</em></i>"
        for other, cost in side["likeliest"][token]
    )
    return f"{cost_told}, rank {side['ranks'][token]:,}{lines}"


def _share(bits: float) -> str:
    """Return a probability in percent, given its cost."""
    percent = 100 * 2.0**-bits
    return f"{percent:.1f}&nbsp;%" if percent >= 0.1 else f"{percent:.1g}&nbsp;%"
