"""The verbs that check scores: audit, audit-record."""

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fairway.base.errors import UserError
from fairway.base.files import opened
from fairway.base.outputs import require_file
from fairway.base.terminal import line, put
from fairway.cli.base import UNFINISHED, Json, Set, emit
from fairway.cli.options import (
    file_option,
    number_option,
    path_argument,
    path_option,
    run_argument,
    whole_option,
)

if TYPE_CHECKING:
    from fairway.audit.records.audit import RecordAudit

# Probes use a few thousand tokens of a text; a file of this size can list ten million.
_MOST_TOKENS_BYTES = 1 << 26
# If there are more records than these, each is reported in one line.
_MOST_IN_FULL = 5

_Program = Annotated[
    str | None,
    typer.Option(
        "--program", help="Command of a scoring program to audit; docs/RULES.md has its protocol."
    ),
]
_Scorer = Annotated[
    str | None,
    typer.Option(
        "--scorer",
        metavar="FILE.py|NAME",
        help="Python scorer to audit: FILE.py, FILE.py:NAME, or a name that an installed package "
        "registers. It runs in a separate process.",
    ),
]
_Tokens = Annotated[
    Path | None,
    path_option(
        "--tokens",
        help="With --program or --scorer: file with a JSON list of token ids, BOS first.",
    ),
]
_Bytes = Annotated[
    int | None,
    whole_option(
        "--bytes", lo=1, help="With --program or --scorer: number of bytes of the raw text."
    ),
]
_Tokenizer = Annotated[
    Path | None,
    path_option(
        "--tokenizer", help="With --program or --scorer: the SentencePiece model of the token ids."
    ),
]
_Fresh = Annotated[
    Path | None,
    path_option(
        "--fresh", help="With --program or --scorer: token ids of a newer text of the same kind."
    ),
]
_Run = Annotated[Path | None, run_argument("RUN", "Folder of a scored run, or the artifact in it.")]
# In addition to a program's text: new text, the bytes of its text, a tokenizer for them.
_Beside = tuple[Path | None, int | None, Path | None]
# The command of a scorer, and its name.
_Asked = tuple[list[str], str]


def audit(
    run: _Run = None,
    program: _Program = None,
    scorer: _Scorer = None,
    tokens: _Tokens = None,
    budget_s: Annotated[
        float | None,
        number_option(
            "--budget",
            lo=0.1,
            hi=1e6,
            help="Seconds for the probes; a program may take three times as long.",
        ),
    ] = None,
    text_bytes: _Bytes = None,
    tokenizer: _Tokenizer = None,
    fresh: _Fresh = None,
    bos_id: Annotated[
        int | None,
        whole_option(
            "--bos", lo=0, hi=2**31 - 1, help="With --program or --scorer: id of the BOS token [1]."
        ),
    ] = None,
    seed: Annotated[
        int | None,
        whole_option(
            "--seed", lo=0, hi=2**32 - 1, help="With --program or --scorer: seed of random choices."
        ),
    ] = None,
    logs: Annotated[
        list[Path] | None,
        path_option("--log", help="Training log to audit; repeatable.", metavar="FILE"),
    ] = None,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Check the score of a run, a program, or a log; exit code 1 if invalid, 3 if undecided."""
    beside = (fresh, text_bytes, tokenizer)
    if program is not None and scorer is not None:
        raise UserError("--program and --scorer both name the scorer to audit; give only one")
    asked = _asked(program, scorer)
    if asked is None:
        _without_program((*beside, bos_id, seed))
    if logs:
        others = (run, asked, tokens, overrides, budget_s, *beside)
        _logs(logs, as_json, alone=not any(others))
        return
    _check(run, asked, tokens, beside, overrides)
    if run is not None:
        budget = [] if budget_s is None else [f"audit.budget_s={budget_s}"]
        facts = _run(run, [*(overrides or []), *budget])
    else:
        assert asked is not None and tokens is not None
        how = {"budget_s": budget_s or 60.0, "seed": seed or 0}
        how["bos_id"] = 1 if bos_id is None else bos_id
        facts = _program(asked, tokens, beside, **how)
    _show(facts, as_json)


def _asked(program: str | None, scorer: str | None) -> _Asked | None:
    """Return the command of a scorer, and its name; None for a run or a log."""
    if scorer is not None:
        from fairway.audit.scorers.host import command_of

        return command_of(scorer), scorer
    if program is None:
        return None
    try:
        words = shlex.split(program)
    except ValueError as error:
        raise UserError(f"--program {program!r} cannot be split into words: {error}") from None
    if not words:
        raise UserError("--program is empty; name the command that starts the scorer")
    return words, words[0]


def _show(facts: dict[str, Any], as_json: bool) -> None:
    from fairway.cli.show import findings_table, probe_table

    tables = [probe_table(facts)]
    if facts["findings"]:
        tables.append(findings_table("beside the probes", facts["findings"]))
    emit(as_json, facts, *tables)
    if not facts["passed"]:
        raise typer.Exit(1)
    if facts["verdict"] != "valid":
        raise typer.Exit(UNFINISHED)


def _logs(logs: list[Path], as_json: bool, alone: bool) -> None:
    if not alone:
        raise UserError("--log takes log files only: no run, no --program, no --set")
    for path in logs:
        opened(path, "log").close()
    _records(logs, None, False, as_json)


def _without_program(values: tuple[object, ...]) -> None:
    """Raise UserError for options that concern the text of a program."""
    options = zip(("--fresh", "--bytes", "--tokenizer", "--bos", "--seed"), values, strict=True)
    given = [name for name, value in options if value is not None]
    if given:
        raise UserError(
            f"{' and '.join(given)} {'goes' if len(given) == 1 else 'go'} with --program or "
            "--scorer only, not with a run or a log; name one of these"
        )


def _check(
    run: Path | None, asked: _Asked | None, tokens: Path | None, beside: _Beside, overrides: Set
) -> None:
    """Raise UserError for arguments that exclude each other."""
    if (run is None) == (asked is None):
        raise UserError(
            "name a run folder to audit, or --program 'COMMAND' --tokens FILE, or --scorer FILE.py "
            "--tokens FILE"
        )
    if asked is not None and (tokens is None or overrides):
        raise UserError(
            "--program and --scorer take --tokens FILE, a JSON list of token ids, and no --set"
        )
    if None not in beside[1:]:
        raise UserError(
            "give either --bytes or --tokenizer; each of them tells how many bytes the text has"
        )


def _run(path: Path, overrides: list[str]) -> dict[str, Any]:
    import sys

    from fairway.pipeline.run import open_run

    pipeline = open_run(path, overrides, lambda text: put(text, sys.stderr))
    with pipeline.writing():
        return pipeline.audit()


def _program(asked: _Asked, tokens: Path, beside: _Beside, **how: Any) -> dict[str, Any]:
    from fairway.audit.scorers.bench import Bench
    from fairway.audit.scorers.probes import audit_scorer
    from fairway.audit.scorers.scorer import open_program
    from fairway.audit.scorers.verdicts import verdict_of

    fresh, text_bytes, tokenizer = beside
    ids = _token_ids(tokens)
    later = None if fresh is None else _token_ids(fresh)
    if tokenizer is not None:
        text_bytes = _bytes_of(tokenizer, ids)
    words, name = asked
    scorer = open_program(words, how["budget_s"], name)
    try:
        probes = audit_scorer(Bench(scorer, ids, text_bytes=text_bytes, later=later, **how))
    finally:
        scorer.close()
    verdict = verdict_of(probes)
    return {
        "passed": verdict != "invalid",
        "verdict": verdict,
        "findings": [],
        "probes": [{"stage": name, **asdict(probe)} for probe in probes],
    }


def _token_ids(file: Path) -> Any:
    """Return the token ids that a file lists."""
    import numpy as np

    from fairway.base.files import read_json

    ids = read_json(file, _MOST_TOKENS_BYTES)
    if not isinstance(ids, list) or not all(type(n) is int and 0 <= n < 2**31 for n in ids):
        raise UserError(f"{file} must hold a JSON list of token ids, whole numbers from 0 on")
    return np.array(ids, np.int64)


def _bytes_of(file: Path, ids: Any) -> int:
    """Return the bytes of the text of some ids, by a tokenizer."""
    from fairway.data.tokens import Tokenizer, token_bytes

    tokenizer = Tokenizer.load(file)
    if len(ids) and ids.max() >= tokenizer.vocab_size:
        raise UserError(
            f"the text has token {ids.max()} and {file} knows {tokenizer.vocab_size} tokens"
        )
    return int(token_bytes(ids[1:], ids[:-1], tokenizer.table).sum())


def audit_record(
    paths: Annotated[
        list[Path],
        path_argument("DIR...", "Record folders, folders that contain them, or single files."),
    ],
    page: Annotated[
        Path | None, file_option("--html", help="Also write the findings to this page.")
    ] = None,
    whole: Annotated[
        bool, typer.Option("--all", help="Print all findings and notes, with every place.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check records of others: bytes, times, seeds, scores, source.

    The exit code is 1 if something is invalid, else 2 if a record could not be judged, else 0.
    """
    _records(paths, page, whole, as_json)


def _records(paths: list[Path], page: Path | None, whole: bool, as_json: bool) -> None:
    """Audit records, logs and scripts, report the findings, and exit with the matching code."""
    from fairway.audit.records.fence import Reader
    from fairway.audit.records.folder import records_in
    from fairway.audit.records.telling import as_facts, judged
    from fairway.base.files import write_atomic
    from fairway.report.audited import is_page, records_page

    if page is not None:
        require_file(page, {}, is_page, "--html")
    for path in paths:
        if not path.is_dir():
            opened(path, "neither a folder nor a file:").close()
    chosen = [one for path in paths for one in records_in(path)]
    with Reader() as reader:
        audits = [reader.audit(path) for path in chosen]
    if page is not None:
        write_atomic(page, records_page(audits).encode("utf-8", "replace"))
    if as_json:
        emit(True, [as_facts(one) for one in audits], beside=page)
    else:
        emit(False, None, *_lines(paths, audits, whole), beside=page)
    if not all(one.valid for one in audits):
        raise typer.Exit(1)
    if any(judged(one) == "not judged" for one in audits):
        raise typer.Exit(2)


def _lines(paths: list[Path], audits: "list[RecordAudit]", whole: bool) -> list[str]:
    """Return the output of audits for people: each in full, or only the verdicts of many."""
    from fairway.audit.records.telling import (
        JUDGEMENTS,
        MOST_SHOWN,
        grouped,
        judged,
        sentence,
        summary,
    )
    from fairway.cli.show import record_figures, record_lines

    lines = []
    if len(audits) != len(paths):
        lines.append(f"{len(audits)} records were found below what was named; each is audited.")
    if len(audits) <= _MOST_IN_FULL or whole:
        for one in audits:
            lines += [f"{line(str(one.folder))}: {sentence(one)}"]
            lines += filter(None, [record_figures(summary(one))])
            lines += [*record_lines(grouped(one.findings), None if whole else MOST_SHOWN), ""]
    else:
        ranked = sorted(audits, key=lambda one: JUDGEMENTS.index(judged(one)))
        lines += [f"{line(str(one.folder))}: {sentence(one)}" for one in ranked]
    counts = [(word, sum(judged(one) == word for one in audits)) for word in JUDGEMENTS]
    if len(audits) > 1:
        lines.append(", ".join(f"{count} {word}" for word, count in counts if count))
    if len(audits) > _MOST_IN_FULL and not whole:
        lines.append("Their findings: name one folder, or take --html PAGE, --all or --json.")
    return lines
