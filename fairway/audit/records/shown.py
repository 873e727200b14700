"""Finds what the logs show of a script: which parts ran, and which scores a line prints."""

import ast
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from fairway.audit.records.trees import last_name
from fairway.base.nodes import walk

# A text identifies a part only with this many letters. The same holds for the texts of a print
# together, before a line counts as its output. At most this many texts are searched.
_LEAST_LETTERS = 6
_MOST_TEXTS = 40
# A line cut at this length may lack the end of the print.
_CUT = 200
_HOLES = re.compile(r"%[-+.\d]{0,6}[sdfgir]|\{[^{}]{0,40}\}")
# The most searches in all logs of a record; each takes a millisecond.
_MOST_SEARCHES = 400
# The most statements that are searched for prints.
_MOST_NODES = 5_000
# Names of functions that print.
PRINTS = re.compile(r"^_?(print|log|info|debug|warning|write|master_print|print_rank|say)", re.I)


@dataclass(frozen=True, slots=True)
class LogText:
    """A log as text, and its name."""

    name: str
    text: str


@dataclass(eq=False)
class Shown:
    """Searches the logs for the texts that a script prints."""

    logs: Sequence[LogText]
    source: str
    functions: dict[str, ast.AST] = field(default_factory=dict)
    found: dict[int, str | None] = field(default_factory=dict)
    lines: dict[str, str | None] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)

    def where(self, body: list[ast.stmt]) -> str | None:
        """Return 'file:line' of a log that shows that statements ran, '' if no log does.

        None if they print no text of their own, or if there are no logs.
        """
        if not self.logs or not body:
            return None
        key = id(body[0])
        if key not in self.found:
            self.found[key] = self._where(body)
        return self.found[key]

    def _where(self, body: list[ast.stmt]) -> str | None:
        looked = False
        for text in itertools.islice(self._texts(body), _MOST_TEXTS):
            where = self._searched(text)
            if where:
                return where
            looked = looked or where == ""
        return "" if looked else None

    def _searched(self, text: str) -> str | None:
        """Return where a log has a text, '' if none has it, None if other parts also print it."""
        if text not in self.lines:
            if len(self.lines) >= _MOST_SEARCHES:
                return None
            self.lines[text] = None
            if self.source.count(text) == 1:
                found = ((log.name, _line_of(text, log.text)) for log in self.logs)
                self.lines[text] = next((f"{name}:{n}" for name, n in found if n), "")
        return self.lines[text]

    def _texts(self, body: list[ast.stmt]) -> Iterator[str]:
        """Yield the texts that statements print, also in functions that they call."""
        waiting: list[ast.AST] = list(body)
        seen: set[str] = set()
        nodes = 0
        while waiting and nodes < _MOST_NODES:
            for node in walk(waiting.pop(0)):
                nodes += 1
                if nodes >= _MOST_NODES:
                    return
                if not isinstance(node, ast.Call):
                    continue
                name = last_name(node)
                if PRINTS.match(name) and node.args:
                    text = _longest(node.args[0])
                    if text:
                        yield text
                elif self._only_here(name) and name not in seen and len(seen) < 20:
                    seen.add(name)
                    waiting.append(self.functions[name])

    def _only_here(self, name: str) -> bool:
        """Return whether a function is called only once, so that its prints are of this call."""
        if name not in self.functions:
            return False
        if name not in self.calls:
            calls = len(re.findall(rf"\b{re.escape(name)}\(", self.source))
            self.calls[name] = calls - self.source.count(f"def {name}(")
        return self.calls[name] == 1


def _longest(node: ast.expr) -> str:
    """Return the longest text of a string that a log would contain, or ''."""
    parts: list[str] = []
    for inner in [node] if isinstance(node, ast.Constant) else getattr(node, "values", []):
        if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
            parts += inner.value.split("\n")
    best = max(parts, key=len, default="")
    return best if sum(c.isalpha() for c in best) >= _LEAST_LETTERS else ""


def _line_of(text: str, log: str) -> int:
    """Return the line of a log with a text outside the script's source, or 0."""
    at = log.find(text)
    for _ in range(20):
        if at < 0:
            return 0
        before, behind = log[at - 1 : at], log[at + len(text) : at + len(text) + 1]
        if before not in ("'", '"') and behind not in ("{", "'", '"', "\\"):
            return log.count("\n", 0, at) + 1
        at = log.find(text, at + 1)
    return 0


# ---------------------------------------------------------------------------------------------
# Scores in lines


@dataclass(frozen=True, slots=True)
class Printed:
    """The output of one call: the texts between its values, in order, and the scores in them."""

    line: int
    texts: tuple[str, ...]
    scores: frozenset[int]

    def letters(self) -> int:
        """Return the number of letters in its texts."""
        return sum(c.isalpha() for text in self.texts for c in text)

    def fits(self, line: str) -> bool:
        """Return whether a line of a log contains its texts in order."""
        at = 0
        for text in self.texts:
            at = line.find(text, at)
            if at < 0:
                return False
            at += len(text)
        return True


def texts_of(pieces: Iterable[str]) -> tuple[str, ...]:
    """Return the texts that a printed line always contains; format fields are left out."""
    parts = (part.strip() for piece in pieces for part in _HOLES.split(piece))
    return tuple(part for part in parts if part)


def scores_in(prints: Sequence[Printed], lines: Iterable[str]) -> frozenset[int]:
    """Return the scores that the best-fitting prints put into lines.

    Empty if no print fits a line, or if a print's value is not known to be a score.
    """
    found: set[int] = set()
    for line in lines:
        whole = [p for p in prints if p.letters() >= _LEAST_LETTERS and p.fits(line[:_CUT])]
        best = max((p.letters() for p in whole), default=0)
        of_line = [p for p in whole if p.letters() == best]
        if not of_line or not all(p.scores for p in of_line):
            return frozenset()
        found |= {score for p in of_line for score in p.scores}
    return frozenset(found)
