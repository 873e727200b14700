"""Reads settings from logs: lists, pairs, tables, dictionaries, JSON, a Namespace.

It reads one line at a time and keeps the state: a list continues until a line does not fit.
"""

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

_NAME = r"[A-Za-z][\w.]{0,60}"
# The head of a list of settings, alone in its line.
_HEAD = re.compile(
    r"^[\s=#*\-\[]{0,40}(?:[a-z]{1,20} ){0,2}(?:hyper-?parameters?|config(?:uration)?|settings|"
    r"arguments|args|environment|env vars?)\b[\s:=#*\-\]{(]{0,40}$",
    re.IGNORECASE,
)
_ITEM = re.compile(
    rf"^\s{{0,12}}[-*]?\s?[\"']?(?:export\s|env:)?({_NAME})[\"']?\s{{0,40}}[:=](?:\s|(?=\S))(.{{0,300}})$"
)
_EMPTY = re.compile(rf"^\s{{0,12}}[-*]?\s?[\"']?({_NAME})[\"']?\s{{0,40}}[:=]()$")
_ROW = re.compile(
    rf"^\s{{0,8}}[|│]\s{{0,40}}[\"'`]?({_NAME})[\"'`]?\s{{0,60}}[|│]([^|│]{{1,200}})[|│]"
)
_COLUMNS = re.compile(r"^\s{1,12}([a-z][\w.]{1,60})\s{1,60}(\S{1,200})$")
_OPENS = re.compile(
    r"(?:\bNamespace|\b[A-Z]\w{0,40}(?:Config|Args|Arguments|Parameters|Hyperparameters)|\bConfig|\bdict)\(|"
    r"\b(?:args|config|hyperparameters|settings|hparams)\b[\"']?\s{0,3}[:=]?\s{0,3}\{|^\s{0,4}\{\s?[\"']",
    re.IGNORECASE,
)
_IN_OBJECT = re.compile(
    r"[\"']?\b([A-Za-z]\w{0,60})[\"']?\s{0,3}[:=]\s{0,3}"
    r"(\[[^\[\]]{0,200}\]|\([^()]{0,200}\)|\"[^\"]{0,200}\"|'[^']{0,200}'|[^\s,(){}\[\]\"']{1,100})"
)
_PAIR = re.compile(
    rf"(?<!\S)({_NAME})[:=](\[[^\[\]]{{0,120}}\]|\([^()]{{0,120}}\)|[^\s,;]{{1,120}})[,;]?(?=\s|$)"
)
_GROUP = re.compile(r"^\s{0,8}(?:#\s)?([A-Za-z][\w. ]{0,30}):\s{0,2}(?=[A-Za-z][\w.]{0,60}[=:])")
_TITLED = re.compile(
    r"(?:^|, )([A-Z][A-Za-z][\w /()-]{0,40}?): ([^\s,]{1,60}(?: \([^()]{0,40}\))?)(?=,\s|$)"
)
# One name and one word, alone in their line.
_SINGLE = re.compile(
    rf"^\s{{0,12}}[\"']?({_NAME}|[A-Z][\w ]{{0,30}})[\"']?\s{{0,40}}[:=]\s{{0,40}}(\S{{1,200}})$"
)
# Pairs between words, brackets and bars.
_BETWEEN = re.compile(r"[()|;×\[\]]|,(?=\s)|,$")
_LOOSE = re.compile(r"(?<!\S)([^\W\d][\w.]{0,60})\s?[=:]\s?(\d{1,3}(?:,\d{3}){1,6}|[^\s,]{1,120})")
# The first word of a line is the topic of the others, unless it is itself a setting.
_TOPIC = re.compile(r"\s{0,12}([A-Za-z]\w{0,40})(?::\s|:(?=[a-z])|\s(?!\s{0,9}[=:]))")
_PROGRESS = re.compile(r"\b[A-Za-z]{0,8}\d{1,9}/\d{1,9}\b|\d\s?%")
# Measured values, and values about the machine, are not settings.
MEASURED = re.compile(
    r"^(val_loss|val_bpb|train_loss|train_time|step_avg|step|loss|eval_time|elapsed|time|tok_s|"
    r"tokens_per_s|mem|peak_memory|lr_scale|grad_norm|bpb|t)$|(?:_|^)bpb$|_ms$|(?:train|eval)_time_s$|"
    r"^(http|https|file|line)$",
    re.IGNORECASE,
)
# Brackets, and members of a list over several lines, inside an object.
_INNER = re.compile(
    r"^\s{0,40}(?:[\]}\[{,]|(?:[-+.\deE]{1,40}|\"[^\"]{0,200}\"|true|false|null),?$)"
)
_MOST_PAIRS = 200
_MOST_STRAYS = 3
# A line without any of these has no value. The head of a list may consist of one such word.
_MARKS = (
    ":", "=", "|", "\u2502", "{", "ypar", "etting", "onfig", "rgument", "nviron", "ARG", "CONF",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: its name in lower case, its value as written, its line; whether in a list.

    A `loose` setting is between other words: it may belong to a part of the run, or be no setting.
    """

    name: str
    value: str
    line: int
    listed: bool
    loose: bool = False


@dataclass(slots=True)
class SettingsReader:
    """Reads settings line by line; `lines` counts the lines that were read as settings."""

    inside: str = ""
    indented: bool | None = None
    blanks: int = 0
    strays: int = 0
    lines: int = 0
    # Whether the last line was read word by word, so that it may also contain other values.
    loose: bool = False

    def begins(self, text: str) -> bool:
        """Return whether a line is the head of a list of settings."""
        return bool(_HEAD.match(text))

    def read(self, text: str, line: int, preamble: bool) -> list[Setting]:
        """Return the settings of a line; pairs outside a list count only in the preamble."""
        self.loose = False
        if not self.inside and not any(mark in text for mark in _MARKS):
            return []
        if self.begins(text):
            self._open("{" if text.rstrip().endswith("{") else "list")
            return []
        found = self._in_list(text, line) if self.inside else []
        if not found and (self.strays or not self.inside):
            found = self._alone(text, line, preamble)
        self.lines += bool(found)
        return found

    def _open(self, kind: str) -> None:
        self.inside, self.indented, self.blanks, self.strays = kind, None, 0, 0

    def _in_list(self, text: str, line: int) -> list[Setting]:
        if not text.strip(" =-+#*|:│─━┃┼"):
            # A list may contain a rule or a blank line, but not many of them.
            self.blanks += 1
            self.inside = self.inside if self.blanks <= 2 else ""
            return []
        indented = text[:1].isspace()
        # An unindented line does not belong to an indented list.
        outside = self.inside == "list" and self.indented and not indented
        found = [] if outside else _list_item(text, line)
        if found:
            self.blanks, self.strays, self.indented = 0, 0, indented
        elif not (self.inside == "{" and _INNER.match(text)):
            # Another process may have printed this line.
            self.strays += 1
            self.inside = self.inside if self.strays <= _MOST_STRAYS else ""
        return found

    def _alone(self, text: str, line: int, preamble: bool) -> list[Setting]:
        if _OPENS.search(text[:300]) and len(text) > 20:
            pairs = _IN_OBJECT.findall(text)
            return _settings(pairs, line, True) if len(pairs) >= 3 else []
        if text.strip() in ("{", "config = {", "args = {"):
            self._open("{")
            return []
        found = _pairs(text, line) if preamble else []
        if preamble and not found:
            # A list continues after another line has interrupted it.
            goes_on = self.lines > _MOST_STRAYS and self.indented and text[:1].isspace()
            found = _list_item(text, line) if goes_on and is_setting(text) else []
            found = found or [replace(one, loose=True) for one in _loose(text, line)]
            self.loose = any(one.loose for one in found)
        return found


def is_setting(text: str) -> bool:
    """Return whether a line is a setting, and not a measurement, progress or code."""
    single = _SINGLE.match(text)
    if single:
        return not MEASURED.search(single[1].strip()) and not re.match(r"[\w.]*\(", single[2])
    return not _PROGRESS.search(text)


def _setting(name: str, value: str, line: int, listed: bool) -> list[Setting]:
    name = name.strip().lower().replace(" ", "_")
    if MEASURED.search(name):
        return []
    clean = value.strip().rstrip(",").strip()
    if len(clean) > 1 and clean[0] == clean[-1] and clean[0] in "\"'`":
        clean = clean[1:-1]
    return [Setting(name, clean[:300], line, listed)]


def _settings(
    pairs: Iterable[tuple[str, str]], line: int, listed: bool, prefix: str = ""
) -> list[Setting]:
    """Return the settings of pairs in a line, up to a limit."""
    several = itertools.islice(pairs, _MOST_PAIRS)
    return [one for name, value in several for one in _setting(prefix + name, value, line, listed)]


def _loose(text: str, line: int) -> list[Setting]:
    """Return the settings between other words of a line; the first word is their topic."""
    if not is_setting(text):
        return []
    single = _SINGLE.match(text)
    if single:
        return _setting(single[1], single[2], line, False)
    plain = _BETWEEN.sub(" ", text)
    about = _TOPIC.match(plain)
    found = _LOOSE.findall(plain, about.end(1) + 1 if about else 0)
    return _settings(found, line, False, f"{about[1].lower()}." if about else "")


def _list_item(text: str, line: int) -> list[Setting]:
    pairs = _PAIR.findall(text)
    if len(pairs) > 1 and not re.match(
        r"^\s{0,12}[-*]?\s?[\"']?[\w.]{1,60}[\"']?\s{0,40}[:=]\s", text
    ):
        return _settings(pairs, line, True)
    for pattern in (_ITEM, _ROW, _EMPTY, _COLUMNS):
        found = pattern.match(text)
        if found:
            return _setting(found[1], found[2], line, True)
    return []


def _pairs(text: str, line: int) -> list[Setting]:
    """Return the pairs of a line that contains nothing else except the name of their group."""
    row = _ROW.match(text)
    if row and "_" in row[1]:
        return _setting(row[1], row[2], line, True)
    group = _GROUP.match(text)
    prefix = ""
    if group and not group[1].strip().endswith("="):
        prefix = group[1].strip().lower().replace(" ", "_") + "."
    rest = text[group.end() :] if group and prefix else text
    found = _PAIR.findall(rest)
    left = _PAIR.sub("", rest)
    if found and len(left.split()) <= len(found) // 3:
        return _settings(found, line, False, prefix)
    titled = _TITLED.findall(text.strip())
    if titled and not re.sub(r"[, ]", "", _TITLED.sub("", text.strip())):
        return _settings(titled, line, False)
    return []
