"""Checks programs in C, C++ or CUDA beside a script or inside its strings, by patterns of text.

There is no compiler here: a statement is the text between semicolons and braces.
"""

import re
from collections.abc import Iterator

from fairway.audit.findings import Finding
from fairway.audit.records import peeks, spreading

# The most characters that are read, of a program and of one statement.
_MOST_CHARS, _MOST_STATEMENT = 400_000, 2_000
# The number of statements after the reading of a token that are searched for a test of it.
_REACH = 60
_TARGET = r"(?:tgt|target|next_tok|next_token|gold|actual|realized|realised|label)\w*"
_MIXED = re.compile(rf"\^[^=][^;]*\b{_TARGET}|\^=[^;]*\b{_TARGET}|\b{_TARGET}[^;]*\^")
_MASKED = re.compile(r"[^&]&[^&]\s*\(?\w*(mask|MASK|m1|buckets)|%\s*\(?\s*\w")
_INTO = re.compile(r"(\w+)\s*(?:\^|\+|\*)?=(?!=)")
_COUNT = (
    r"(?:\(\s*(?:double|float)\s*\)\s*)?\(?\s*"
    r"(?:nb|n_?bytes|nbytes|blen|byte_len|num_bytes|len|n)\b"
)
_SPREAD = re.compile(
    rf"-?\s*\b\w*(?:nll|logp|log_prob|lp)\w*(?:\[[^\]]*\])?\s*/\s*{_COUNT}", re.IGNORECASE
)
_POWER = re.compile(rf"\bpow\w*\s*\([^;]*,\s*1(?:\.0?)?f?\s*/\s*{_COUNT}")
_REST = re.compile(
    r"\b\w*(?:tok|full)\w*\s*/\s*[^;]*\b\w*(?:b0|byte_?0|first_?byte)\w*", re.IGNORECASE
)
_WEIGHTS = re.compile(r"\b(lam|lambda|alpha|mix|w_nn|ppm)\w*", re.IGNORECASE)
_GATE = re.compile(
    r"(?:\b(?:lam|lambda|alpha|gate|w_nn)\w*\s*=\s*[^;=]*\b(?:nn_|nll|token_|sym_)\w*(?:nll|logp|lp)\w*"
    r"\s*[<>][^;]*\?)|(?:\bif\s*\(\s*-?\w*(?:nn_nll|nn_logp|nll_nn|tok_nll)\w*\s*[<>][^;{]*\)\s*"
    r"\b(?:lam|lambda|alpha|gate|w_nn)\w*\s*=)"
)
_FLAG = re.compile(
    r"\b(\w*(?:start|new_word|boundary|space|bnd|ws)\w*)\s*=\s*\w*(?:start|bound|space|lut|bnd|ls)\w*"
    r"\[\s*(tok|token|tgt|target|t)\w*\s*\]"
)
_READS = re.compile(
    r"\b(tok|token|tgt|target|t)\w*\s*=\s*[^;=]*\w*(?:tok|tgt|target|data|seq)\w*\[\s*(i|pos|t|j)\s*\]"
)
_HINT = re.compile(r"\b\w*(?:hint|top_|prob|gate|boost|valid|beta)\w*\[\s*(?:i|pos|t|j)\s*\]\s*=")


def check_native(text: str, file: str, line: int = 1) -> Iterator[Finding]:
    """Yield the findings in a program; `line` is the number of its first line."""
    statements = list(_statements(text[:_MOST_CHARS], line))
    mixes = bool(_WEIGHTS.search(text[:_MOST_CHARS]))
    told: set[str] = set()
    for code, where, shown in (
        *_hashed(statements),
        *_simple(statements, mixes),
        *_expert(statements),
    ):
        if code not in told:
            told.add(code)
            why = (peeks.WHY | spreading.WHY)[code]
            yield Finding("warning", code, why, file, where, shown.strip()[:120])


_Statement = tuple[int, str]
_Found = tuple[str, int, str]


def _statements(text: str, line: int) -> Iterator[_Statement]:
    """Yield the statements of a program with their lines; comments are left out."""
    text = re.sub(r"//[^\n]*", "", _without_comments(text))
    for part in re.split(r"(?<=[;{}])", text):
        lead = len(part) - len(part.lstrip())
        # Patterns take quadratic time in long blanks, and in long words.
        short = re.sub(r"\w{80,}", "_", re.sub(r"\s+", " ", part.strip()[:_MOST_STATEMENT]))
        yield line + part.count("\n", 0, lead), short
        line += part.count("\n")


def _without_comments(text: str) -> str:
    """Return a program without comments of several lines; line ends stay."""
    parts, at = [], 0
    while (start := text.find("/*", at)) >= 0 and (end := text.find("*/", start + 2)) >= 0:
        parts += [text[at:start], "\n" * text.count("\n", start, end)]
        at = end + 2
    return "".join(parts) + text[at:]


def _hashed(statements: list[_Statement]) -> Iterator[_Found]:
    mixed: set[str] = set()
    for line, text in statements:
        into = _INTO.match(text.removeprefix("const ").split(" ", 1)[-1]) or _INTO.search(text)
        if _MIXED.search(text):
            if _MASKED.search(text):
                yield "hashed-target", line, text
            elif into:
                mixed.add(into[1])
        elif _MASKED.search(text) and mixed and set(re.findall(r"\w+", text)) & mixed:
            yield "hashed-target", line, text


def _simple(statements: list[_Statement], mixes: bool) -> Iterator[_Found]:
    for line, text in statements:
        if _GATE.search(text):
            yield "target-gate", line, text
        if mixes and (match := _SPREAD.search(text) or _POWER.search(text)):
            yield "uniform-spread", line, match[0]
        if mixes and (match := _REST.search(text)):
            yield "first-byte-mix", line, match[0]


def _expert(statements: list[_Statement]) -> Iterator[_Found]:
    """Yield tests of a place's token that guard the writing of a hint for that place."""
    for number, (_, text) in enumerate(statements):
        if not _READS.search(text):
            continue
        flags: set[str] = set()
        test: _Statement | None = None
        for line, inner in statements[number + 1 : number + _REACH]:
            if match := _FLAG.search(inner):
                flags.add(match[1])
            elif inner.startswith(("if", "} else if", "else if")) and flags & set(
                re.findall(r"\w+", inner)
            ):
                test = (line, inner)
            elif test is not None and _HINT.search(inner):
                yield "target-expert", *test
                return
            elif inner == "}":
                # The test applies to its own block, and blocks inside it are short.
                test = test if test is not None and line - test[0] < 20 else None
