"""Tables of the bits of a score, by kind of token, frequency, place and context."""

from typing import Any

from fairway.report.html import Html, esc, join, meter, note, num, section, table
from fairway.score.spending import COUNTED_TOKENS

Values = dict[str, Any]

# For these divisions the bars show bits per token, for the others shares of all bits.
_BY_DISTANCE = ("place", "context")
_TITLES = {
    "kinds": "kind of token",
    "frequency": "occurrences in the training text",
    "place": "token of its document",
    "context": "tokens that the model could read",
}


def spending(results: Values, derived: Values) -> Html:
    """Return the tables, or nothing if the run did not record the costs of its tokens."""
    shares = derived["spending"]
    if shares is None:
        return Html("")
    found = results["stages"][shares["stage"]]["spending"]
    tables = [_table(name, found[name], shares[name], shares["beside"]) for name in _TITLES]
    meaning = (
        "Each of the first four tables has every scored token in exactly one group. Bits per byte "
        "of a group are its bits divided by the bytes of the whole text, so a column adds up to "
        "the score. A token belongs to the first kind that fits it. The end of a document is the "
        "token that begins the next one. Occurrences are those in the training text, in at most "
        f"{COUNTED_TOKENS:,} tokens."
    )
    return section(
        "Where the bits go", *tables, _dearest(found["dearest"], shares), note(esc(meaning))
    )


def _table(name: str, groups: list[Values], shares: list[Values], beside: str | None) -> Html:
    heads = [_TITLES[name], "tokens (n)", "bits per token", "bits per byte"]
    heads += [*(["sliding window"] if beside else []), "share (%)"]
    heads.append("bits per token" if name in _BY_DISTANCE else "share")
    most_bits = max(share["token_bits"] for share in shares) or 1.0
    rows = []
    for group, share in zip(groups, shares, strict=True):
        plain = [num(share["plain_bpb"], ".4f")] if beside else []
        numbers = [num(group["tokens"]), num(share["token_bits"], ".2f"), num(share["bpb"], ".4f")]
        long = name in _BY_DISTANCE
        drawn = 100.0 * share["token_bits"] / most_bits if long else share["percent"]
        bar = [num(share["percent"], ".1f"), meter(drawn)]
        rows.append([_named(group), *numbers, *plain, *bar])
    return table(heads, rows)


def _named(group: Values) -> Html:
    """Return a group's name; a kind also has examples of its tokens, the most expensive first."""
    examples = [
        Html(f'<code class="token">{esc(text)}</code>') for text in group.get("examples", [])
    ]
    beside = f"<small>{join(examples, ' ')}</small>" if examples else ""
    return Html(f"{esc(group['name'])}{beside}")


def _dearest(tokens: list[Values], shares: Values) -> Html:
    rows = [
        [
            Html(f'<code class="token">{esc(token["token"])}</code>'),
            num(token["tokens"]),
            num(share["token_bits"], ".2f"),
            num(share["percent"], ".1f"),
            meter(share["percent"]),
        ]
        for token, share in zip(tokens, shares["dearest"], strict=True)
    ]
    heads = ["tokens that cost most in all", "times", "bits per token", "share (%)", "share"]
    return table(heads, rows)
