"""What a script's logs show: which of its parts ran, and which of its scores stands in a line."""

import ast
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from fairway.audit.records.trees import last_name

# A text that stands for a part must have so many letters, as must all texts of a print together
# before a line is taken for its. At most so many texts are looked for.
_LEAST_LETTERS = 6
_MOST_TEXTS = 40
# A line that was cut at so many characters may lack what the print writes at its end.
_CUT = 200
_HOLES = re.compile(r"%[-+.\d]{0,6}[sdfgir]|\{[^{}]{0,40}\}")
# Texts that are looked for in all logs of a record: a millisecond each.
_MOST_SEARCHES = 400
# Statements that are looked at for what they print.
_MOST_NODES = 5_000
# Names of what prints.
PRINTS = re.compile(r"^_?(print|log|info|debug|warning|write|master_print|print_rank|say)", re.I)


@dataclass(frozen=True, slots=True)
class LogText:
    """A log as text, and its name."""

    name: str
    text: str


@dataclass(eq=False)
class Shown:
    """Looks for what a script prints in its logs."""

    logs: Sequence[LogText]
    source: str
    functions: dict[str, ast.AST] = field(default_factory=dict)
    found: dict[int, str | None] = field(default_factory=dict)
    lines: dict[str, str | None] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)

    def where(self, body: list[ast.stmt]) -> str | None:
        """Return 'file:line' of a log that shows that statements ran, '' if none does.

        None: they print nothing that only they print, or there are no logs.
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
        """Return where a log holds a text, '' if none does; None if other parts print it too."""
        if text not in self.lines:
            if len(self.lines) >= _MOST_SEARCHES:
                return None
            self.lines[text] = None
            if self.source.count(text) == 1:
                found = ((log.name, _line_of(text, log.text)) for log in self.logs)
                self.lines[text] = next((f"{name}:{n}" for name, n in found if n), "")
        return self.lines[text]

    def _texts(self, body: list[ast.stmt]) -> Iterator[str]:
        """Yield what statements print, and the functions that they call."""
        waiting: list[ast.AST] = list(body)
        seen: set[str] = set()
        nodes = 0
        while waiting and nodes < _MOST_NODES:
            for node in ast.walk(waiting.pop(0)):
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
        """Return whether a function is called once: prints may be those of another call."""
        if name not in self.functions:
            return False
        if name not in self.calls:
            calls = len(re.findall(rf"\b{re.escape(name)}\(", self.source))
            self.calls[name] = calls - self.source.count(f"def {name}(")
        return self.calls[name] == 1


def _longest(node: ast.expr) -> str:
    """Return the longest text of a string that a log would hold, or nothing."""
    parts: list[str] = []
    for inner in [node] if isinstance(node, ast.Constant) else getattr(node, "values", []):
        if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
            parts += inner.value.split("\n")
    best = max(parts, key=len, default="")
    return best if sum(c.isalpha() for c in best) >= _LEAST_LETTERS else ""


def _line_of(text: str, log: str) -> int:
    """Return the line of a log that holds a text which is no source of the script, or 0."""
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
    """What one call prints: the texts between its values, in order, and the scores in them."""

    line: int
    texts: tuple[str, ...]
    scores: frozenset[int]

    def letters(self) -> int:
        """Return how many letters its texts have."""
        return sum(c.isalpha() for text in self.texts for c in text)

    def fits(self, line: str) -> bool:
        """Return whether a line of a log holds its texts, one behind the other."""
        at = 0
        for text in self.texts:
            at = line.find(text, at)
            if at < 0:
                return False
            at += len(text)
        return True


def texts_of(pieces: Iterable[str]) -> tuple[str, ...]:
    """Return what is sure to stand in a line of pieces that may have holes for values."""
    parts = (part.strip() for piece in pieces for part in _HOLES.split(piece))
    return tuple(part for part in parts if part)


def scores_in(prints: Sequence[Printed], lines: Iterable[str]) -> frozenset[int]:
    """Return the scores that prints put into lines: of each line those whose texts fit it best.

    Nothing: no print fits a line, or what it prints is not known to be a score.
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
