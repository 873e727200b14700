"""Tables for the terminal: scores of a run, bytes of an artifact, a dry run."""

import dataclasses
import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

import rich.table
from rich.console import Console
from rich.measure import Measurement
from rich.text import Text

from fairway.audit.findings import SEVERITY_WORDS
from fairway.base import units
from fairway.base.terminal import clean, line, put
from fairway.config.settings import Config, settings
from fairway.score.baselines import TOOL_NAMES, part_bytes

if TYPE_CHECKING:
    from fairway.audit.records.telling import Group
    from fairway.pack.account import Part


# The width of a table in a pipe or a file, and the largest width of a table of numbers.
_PIPE, _WIDEST = 100, 10_000
# A cell of a column of numbers: a number with any text after it, or nothing.
_NUMBER = re.compile(r"[-+]?[\d.]|$")


class Table(rich.table.Table):
    """A table whose title and cells are printed literally: no markup, one line, cleaned."""

    def __init__(self, title: str, *, footer: bool = False) -> None:
        super().__init__(title=Text(clean(title)), title_justify="left", show_footer=footer)

    def add_column(self, header: Any = "", footer: Any = "", **how: Any) -> None:
        """Add a column; right-aligned columns have numbers, which are not wrapped."""
        how.setdefault("no_wrap", how.get("justify") == "right")
        super().add_column(_cell(header), _cell(footer), **how)

    def add_row(self, *cells: Any, **how: Any) -> None:
        """Add a row of texts."""
        super().add_row(*(_cell(cell) for cell in cells), **how)


def _cell(cell: str | Text) -> str | Text:
    if isinstance(cell, Text):
        return Text(line(cell.plain), cell.style)
    shown = line(cell)
    # Rich would parse markup and names of emoji in a plain string.
    return Text(shown) if "[" in shown or ":" in shown else shown


def plain_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Return a table, its first column to the left and numbers to the right."""
    made, rows = Table(title), list(rows)
    for number, column in enumerate(columns):
        # A row may have fewer cells, if only one side has a figure.
        cells = [row[number] for row in rows if number < len(row)]
        whole, justify = all(map(_NUMBER.match, cells)), "right" if number else "left"
        width = max(map(len, [column, *cells])) if whole else None
        # Words continue on the next line; nothing is left out.
        made.add_column(column, justify=justify, no_wrap=whole, min_width=width, overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def score_table(results: dict[str, Any]) -> Table:
    """Return the scores of a run by stage, with those of compressors on the same bytes."""
    text = results["text"]
    documents = units.counted(text["documents"], "document")
    title = f"{text['bytes']:,} bytes of validation text, {documents}"
    headline = results["headline"]
    claimed = results["stages"][headline]["bpb"]
    stages = results["stages"].items()
    if (part := part_bytes(results["baselines"], text["bytes"])) is not None:
        title += f"; the compressors read the first {part:,} bytes"
    rows = [(f"model, {name}", f"{stage['bpb']:.4f}", "", "") for name, stage in stages]
    for name, tool in (results["baselines"] or {}).items():
        primed = "" if tool["primed_bpb"] is None else f"{tool['primed_bpb']:.4f}"
        # The stronger of the two ways; a comparison with untrained compressors alone would be too
        # favourable.
        least = min(tool["bpb"], tool["primed_bpb"] or tool["bpb"])
        against = f"{claimed / least - 1:+.1%}"
        rows.append((TOOL_NAMES.get(name, name), f"{tool['bpb']:.4f}", primed, against))
    return plain_table(title, ("what", "bits per byte", "primed", f"{headline} compared"), rows)


def account_table(artifact: dict[str, Any]) -> Table:
    """Return the artifact's bytes by section, with their sum against the limit."""
    table = Table("artifact, byte by byte", footer=True)
    total, limit = artifact["bytes"] + artifact["code_bytes"], artifact["limit_bytes"]
    table.add_column("section", footer=f"of {limit:,} allowed ({total / limit:.1%})")
    table.add_column("bytes", justify="right", footer=f"{total:,}")
    for section in artifact["sections"]:
        table.add_row(section["name"], f"{section['bytes']:,}")
    table.add_row(f"code beside it, {artifact['code']}", f"{artifact['code_bytes']:,}")
    return table


def parts_table(parts: "list[Part]") -> Table:
    """Return an artifact's parts: bytes, bits per number stored, entropy of the codes alone."""
    table = Table("artifact, byte by byte", footer=True)
    total = sum(part.bytes for part in parts)
    table.add_column("part", footer="the whole file")
    table.add_column("coder")
    table.add_column("numbers", justify="right", footer=f"{sum(p.numbers for p in parts):,}")
    table.add_column("bytes", justify="right", footer=f"{total:,}")
    for name in ("bits per number", "order-0 entropy", "difference"):
        table.add_column(name, justify="right")
    for part in parts:
        numbers = f"{part.numbers:,}" if part.numbers else ""
        row = [part.name, part.codec, numbers, f"{part.bytes:,}"]
        bits, entropy = part.bits_per_number, part.entropy_bits
        row += ["" if bits is None else f"{bits:.4f}", "" if entropy is None else f"{entropy:.4f}"]
        if bits is not None and entropy:
            row.append(f"{bits / entropy - 1:+.2%}")
        table.add_row(*row)
    return table


def data_lines(manifest: dict[str, Any]) -> list[str]:
    """Return what a data folder was built from: documents, bytes, tokens, and what is left out."""
    from fairway.data.documents import told

    sides = (("training", manifest["train"]), ("validation", manifest["val"]))
    return [
        *(
            f"{name} text: {units.counted(side['documents'], 'document')}, "
            f"{side['bytes']:,} bytes, {side['tokens']:,} tokens"
            for name, side in sides
        ),
        told(manifest["dropped"]) or "left out: nothing",
        *_lopsided(manifest),
    ]


def _lopsided(manifest: dict[str, Any]) -> list[str]:
    """Return a warning if a split by documents leaves most of the text to validation."""
    if (
        manifest["val"]["bytes"] <= manifest["train"]["bytes"]
        or manifest["split"]["rule"] == "given"
    ):
        return []
    return [
        "the validation text is longer than the training text, since documents stay whole: divide "
        "long files into documents (lines of a .jsonl file), or name files with --validation"
    ]


def config_table(config: Config) -> Table:
    """Return every setting with its value and help; changed settings are marked."""
    table = Table(f"recipe {line(config.recipe)}")
    table.add_column("setting")
    table.add_column("value", justify="right", no_wrap=False)
    table.add_column("meaning")
    for name, item, value in settings(config):
        changed = item.default is not dataclasses.MISSING and value != item.default
        shown = Text(str(value), style="bold" if changed else "")
        table.add_row(name, shown, item.metadata["help"])
    return table


def compare_table(comparison: dict[str, Any]) -> Table:
    """Return the figures of two sides with their differences; missing figures are blank."""
    a, b, differences = comparison["a"], comparison["b"], comparison["differences"]
    sides = {"A": a, "B": b}
    titles = [
        f"{name}  {line(side['name'])}: {line(side['title'])}" for name, side in sides.items()
    ]
    rows = []
    for name in a["figures"] | b["figures"]:
        left, right = a["figures"].get(name), b["figures"].get(name)
        row = [name, _figure(name, left), _figure(name, right)]
        if name in differences:
            share = f"{left['mean'] / right['mean'] - 1:+.2%}" if right["mean"] else ""
            row += [_number(name, differences[name], "+"), share]
        rows.append(row)
    return plain_table("\n".join(titles), ("figure", "A", "B", "A - B", "A / B - 1"), rows)


def statistics_lines(found: dict[str, Any] | None) -> list[str]:
    """Return the tests of a comparison in sentences."""
    if found is None:
        return ["no test: it takes two seeds on either side, of a stage that both have"]
    lines = [
        f"{name}: n = {one['n']}, mean {one['mean']:.5f}, sd {one['sd']:.5f} bpb ({found['stage']})"
        for name, one in found["samples"].items()
    ]
    lines.append(
        f"{found['better']} is better by {found['gain_bpb']:.5f} bpb = "
        f"{found['gain_nats_per_token']:.5f} nats per token"
    )
    for rule, test in found["tests"].items():
        margin = (
            f"by more than {test['margin_nats']} nats per token ({test['margin_bpb']:.6f} bpb)"
            if test["margin_nats"]
            else "at all"
        )
        paired = f", paired p = {test['paired']['p']:.4g}" if test["paired"] else ""
        needed = test["seeds_needed"]
        power = (
            "no number of seeds would show it"
            if needed is None
            else f"{needed} seeds on each side would show it in 4 of 5 experiments"
        )
        verdict = "holds" if test["holds"] else "does not hold"
        lines.append(
            f"{rule}: better {margin} {verdict}: one-sided Welch p = {test['welch']['p']:.4g}"
            f"{paired}; it needs p < {test['needed_p']} ({power})"
        )
    return lines


def probe_table(facts: dict[str, Any]) -> Table:
    """Return the probes of an audit with their verdicts."""
    table = Table(f"audit: {line(facts['verdict'])}")
    for name in ("score", "probe", "rules", "samples", "worst", "at", "verdict"):
        table.add_column(name, justify="right" if name in ("samples", "worst", "at") else "left")
    table.add_column("because", overflow="fold")
    for probe in facts["probes"]:
        worst = "" if probe["worst"] is None else f"{probe['worst']:.2g}"
        place = "" if probe["position"] is None else f"{probe['position']:,}"
        table.add_row(
            *(str(probe[name]) for name in ("stage", "name")),
            " ".join(probe["rules"]),
            f"{probe['samples']:,}",
            worst,
            place,
            Text(probe["verdict"], style="bold" if probe["verdict"] == "invalid" else ""),
            "; ".join(str(part) for part in (probe["why"], probe.get("power")) if part),
        )
    return table


def findings_table(title: str, findings: Iterable[dict[str, Any]]) -> Table:
    """Return the findings of an audit, the gravest first; names and values are literal."""
    table = Table(title)
    for name in ("severity", "what", "where", "value", "why it matters"):
        table.add_column(name, overflow="fold")
    for found in findings:
        place = found["file"] + (f":{found['line']}" if found["line"] else "")
        bold = "bold" if found["severity"] == "invalid" else ""
        cells = (found["severity"], found["code"], place, found["value"], found["why"])
        table.add_row(*(Text(str(cell), style=bold) for cell in cells))
    return table


def record_lines(groups: "Sequence[Group]", most: int | None = None) -> list[str]:
    """Return the findings of a record in lines: the gravest first, with a question about each.

    With `most` there are at most this many findings, with the first place of each and without
    notes; the others are counted.
    """
    whole = most is None
    shown = list(groups) if whole else [one for one in groups if one.severity != "note"][:most]
    lines = []
    for number, one in enumerate(shown, start=1):
        word = SEVERITY_WORDS[one.severity]
        often = f", {one.often}" if one.often else ""
        lines.append(f" {number:>2}. {word}: {one.question.title}{often} [{one.code}]")
        for finding in one.findings if whole else one.findings[:1]:
            place = ": ".join(filter(None, (line(finding.place), line(finding.value))))
            lines += _indented(place) + _indented(f"It says: {line(finding.why)}.")
        for head, text in (("Why it matters", one.question.matters), ("Ask", one.question.ask)):
            lines += _indented(f"{head}: {text}") if text else []
    rest = len(groups) - len(shown)
    if rest:
        kinds = "kind" if rest == 1 else "kinds"
        lines.append(f"     {rest} more {kinds} of finding or note: see --all, or --json")
    return lines


def _indented(text: str) -> list[str]:
    return textwrap.wrap(text, 100, initial_indent=" " * 5, subsequent_indent=" " * 7)


def record_figures(summary: dict[str, Any]) -> str:
    """Return the figures of a record in one line, without those that were not found."""
    figures = (
        ("claimed_bpb", "{:.5g} bpb claimed"), ("recomputed_bpb", "{:.5f} recomputed"),
        ("seeds", "seeds: {}"), ("steps", "{:,.0f} steps"), ("bytes", "{:,.0f} bytes"),
        ("train_s", "{:,.1f} s of training"), ("eval_s", "{:,.1f} s of evaluation"),
        ("coverage", "{:.0%} of the log read"),
    )  # fmt: skip
    known = [words.format(summary[name]) for name, words in figures if summary[name]]
    return "     " + ", ".join(known) if known else ""


def _figure(name: str, figure: dict[str, Any] | None) -> str:
    if figure is None:
        return ""
    spread = f" (sd {figure['sd']:.4f})" if figure["sd"] and name.startswith("bpb") else ""
    return _number(name, figure["mean"]) + spread


def _number(name: str, value: float, sign: str = "") -> str:
    if name.startswith("bpb"):
        return f"{value:{sign}z.4f}"
    return f"{value:{sign}z,.1f}" if name.endswith("seconds") else f"{value:{sign}z,.0f}"


def show(*things: Any, stream: TextIO | None = None) -> None:
    """Print cleaned tables and lines to a stream, by default standard output.

    A table is as wide as the screen, or wider if its numbers need it; numbers are never cut.
    """
    console = Console(file=stream)
    widest = Console(file=stream, width=_WIDEST)
    width = console.width if console.is_terminal else _PIPE
    for thing in things:
        if isinstance(thing, str):
            put(thing, stream)
        else:
            needed = Measurement.get(widest, widest.options, thing).minimum
            console.width = max(width, needed)
            console.print(thing, highlight=False)


def run_summary(results: dict[str, Any], folder: str) -> list[Any]:
    """Return what to print at the end of a run."""
    seconds = results["seconds"]["total"]
    return [
        score_table(results),
        account_table(results["artifact"]),
        *results["warnings"],
        f"{results['model']['parameters']:,} parameters, {results['train']['steps']:,} steps, "
        f"{results['train']['tokens']:,} tokens; {units.duration(seconds)} in all",
        f"artifact {folder}/artifact.fwy, report {folder}/report.html, "
        f"numbers {folder}/results.json",
    ]
