"""The command line: one verb per stage. Nothing heavy is imported before a verb needs it."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fairway.base import terminal
from fairway.base.endings import (
    end_with_parent,
    interrupt_by_signals,
    open_missing_streams,
    outlive_readers,
    unwritten,
    why_unwritten,
)
from fairway.base.errors import InterruptedRun, LedgerError, UserError
from fairway.base.outputs import require_folder
from fairway.base.room import memory_told, require_start
from fairway.cli.after import next_lines, sample_lines, then
from fairway.cli.audit import audit, audit_record
from fairway.cli.base import (
    AdapterFile,
    Json,
    Recipe,
    RunOrArtifact,
    Set,
    TokenizerFile,
    emit,
    say_to,
)
from fairway.cli.data import data_app
from fairway.cli.examples import Verb, start_lines
from fairway.cli.hub import load, push
from fairway.cli.options import (
    Verbs,
    flag,
    path_argument,
    path_option,
    run_argument,
    run_path,
    word_option,
)
from fairway.cli.pack import Budget, ByRole, filling, show_account, unpack
from fairway.cli.plan import plan
from fairway.cli.prove import compress, decompress, prove, sample
from fairway.cli.score import score_texts
from fairway.cli.serve import serve
from fairway.cli.studies import ablate, transfer
from fairway.cli.submission import bundle, export, runs, seeds, submit, verify
from fairway.cli.tune import tune
from fairway.cli.watching import PROMPT, Live, SampleEvery, SamplePrompt, watching_of
from fairway.config.overrides import override
from fairway.config.written import config_hash, to_dict
from fairway.version import VERSION

app = typer.Typer(
    cls=Verbs,
    help=start_lines(),
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    epilog="Options and examples: fairway VERB --help. Settings: fairway run demo --dry-run.",
)
app.add_typer(data_app, name="data", no_args_is_help=True)

Run = Annotated[Path, run_argument("RUN", "Folder of a run, or the artifact in it.")]
Out = Annotated[Path | None, path_option("--out", help="Folder of the run [runs/RECIPE].")]
Resume = Annotated[bool, flag("--resume", "Continue a run that was stopped.")]
Restart = Annotated[bool, flag("--restart", "Discard a run that was stopped and start again.")]
Until = Annotated[
    str | None,
    word_option(
        "--until",
        words=("train", "pack", "score"),
        metavar="VERB",
        help="Stop after train, pack or score. Skip samples, proof, audit and report.",
    ),
]
# The verb that follows each verb of the pipeline.
_FOLLOWING = {"train": "pack", "pack": "score", "score": "score"}
DryRun = Annotated[
    bool, flag("--dry-run", "Print settings, parameters, bytes and memory; then stop.")
]


def _pipeline(
    recipe: str, out: Path | None, overrides: list[str] | None, as_json: bool, resume: bool,
    restart: bool, watching: Any,
) -> Any:  # fmt: skip
    from fairway.cli.compiling import tell_of_compiling
    from fairway.pipeline.sizes import open_recipe

    tell_of_compiling()
    _choose(resume, restart)
    say = say_to(as_json)
    return open_recipe(recipe, out, overrides or [], resume, restart, say, watching)


def _choose(resume: bool, restart: bool) -> None:
    if resume and restart:
        raise UserError(
            "--resume continues an unfinished training and --restart discards it; choose one"
        )


def _existing(run: Path, overrides: list[str] | None, as_json: bool) -> Any:
    from fairway.cli.compiling import tell_of_compiling
    from fairway.pipeline.run import open_run

    tell_of_compiling()
    return open_run(run, overrides or [], say_to(as_json))


@app.command(cls=Verb)
def run(
    recipe: Recipe,
    out: Out = None,
    overrides: Set = None,
    resume: Resume = False,
    restart: Restart = False,
    until: Until = None,
    live: Live = None,
    sample_every: SampleEvery = 0.0,
    sample_prompt: SamplePrompt = PROMPT,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train, pack, score, prove, audit and report a recipe."""
    if dry_run:
        _dry_run(recipe, out, overrides or [], as_json)
        return
    from fairway.cli.show import run_summary

    watching = watching_of(live, sample_every, sample_prompt)
    pipeline = _pipeline(recipe, out, overrides, as_json, resume, restart, watching)
    if until is not None:
        with pipeline.writing():
            facts = pipeline.screen(until, resume, restart)
        done = f"done until {until}: {pipeline.folder.path}"
        emit(as_json, facts, done, then(_FOLLOWING[until], pipeline.folder.path))
        return
    with pipeline.writing():
        results = pipeline.walk(resume, restart)
    folder = pipeline.folder.path
    ending = [*sample_lines(results), *next_lines(folder)]
    emit(as_json, results, *run_summary(results, str(folder)), *ending)


def _dry_run(recipe: str, out: Path | None, overrides: list[str], as_json: bool) -> None:
    from fairway.bundle.build import bundle_bytes
    from fairway.cli.show import config_table
    from fairway.model.gpt import num_parameters
    from fairway.pipeline.memory import memory_here
    from fairway.pipeline.text import check_text
    from fairway.quantise.estimate import counted, expected_bytes, how_counted
    from fairway.recipes import SIZES
    from fairway.recipes import recipe as recipe_of

    config = override(recipe_of(recipe), overrides)
    lines: list[str] = []
    if out is not None:
        require_folder(out)
    check_text(config, lines.append)
    if not config.data.source:
        # Recipes of the challenge name no text. Their settings can be looked at without one.
        lines.append("a run also needs the text of a data folder: --set data.source=DATA")
    size_bytes = bundle_bytes(config)
    code_bytes = counted(config.pack, size_bytes)
    facts = {
        "parameters": num_parameters(config.model),
        "expected_artifact_bytes": expected_bytes(config, code_bytes),
        "bundle_bytes": size_bytes,
        "code_bytes": code_bytes,
        "code": how_counted(config.pack),
        "limit_bytes": config.pack.limit_bytes,
        "recipe_hash": config_hash(config),
    }
    lines += [f"{name.replace('_', ' ')}: {value}" for name, value in facts.items()]
    if sizes := SIZES.get(recipe):
        lines.append(
            f"{recipe} is {' or '.join(sizes)} by the machine's speed when a run begins; "
            f"these are the settings of {sizes[0]}"
        )
    memory = memory_here(config)
    whole = {**facts, "memory": memory, "config": to_dict(config)}
    emit(as_json, whole, config_table(config), *lines, *memory)


@app.command(cls=Verb)
def train(
    recipe: Recipe,
    out: Out = None,
    overrides: Set = None,
    resume: Resume = False,
    restart: Restart = False,
    live: Live = None,
    sample_every: SampleEvery = 0.0,
    sample_prompt: SamplePrompt = PROMPT,
    as_json: Json = False,
) -> None:
    """Train a recipe and write its weights into a run folder."""
    watching = watching_of(live, sample_every, sample_prompt)
    pipeline = _pipeline(recipe, out, overrides, as_json, resume, restart, watching)
    with pipeline.writing():
        facts = pipeline.train(resume, restart)
    seconds = f"{facts['seconds']:.1f} s"
    line = f"{facts['steps']:,} steps in {seconds}; weights in {pipeline.folder.path}"
    emit(as_json, facts, line, then("pack", pipeline.folder.path))


@app.command(cls=Verb)
def pack(
    run: RunOrArtifact,
    account: ByRole = False,
    budget_bytes: Budget = None,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Quantise the weights of a run and write the artifact."""
    from fairway.cli.show import account_table
    from fairway.quantise.estimate import how_counted

    if run.is_file():
        if not account or overrides or budget_bytes is not None:
            raise UserError(
                f"{run} is already packed; use --account without other options to show its bytes"
            )
        show_account(run, as_json)
        return
    pipeline = _existing(run, [*filling(budget_bytes), *(overrides or [])], as_json)
    with pipeline.writing():
        facts = pipeline.pack()
    if account:
        show_account(run, as_json)
        return
    facts = {name: facts[name] for name in ("bytes", "limit_bytes", "code_bytes", "sections")}
    facts["code"] = how_counted(pipeline.config.pack)
    emit(as_json, facts, account_table(facts), then("score", run))


@app.command(cls=Verb)
def score(
    path: RunOrArtifact,
    texts: Annotated[
        list[Path] | None,
        path_argument(
            "TEXT...", "Text files to score; without them, the validation text of the run."
        ),
    ] = None,
    tokenizer: TokenizerFile = None,
    adapter: AdapterFile = None,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Score a run on its validation text, or its artifact on text files."""
    from fairway.base.files import missing

    if not path.exists():
        raise UserError(f"{path} {missing(path)}; name a run folder or an artifact")
    path = path if texts else run_path(path)
    if path.is_dir() and not texts:
        for name, given in (("--tokenizer", tokenizer), ("--adapter", adapter)):
            if given:
                raise UserError(f"{name} needs text files to score; name them, or leave it out")
        _score_run(path, overrides, as_json)
        return
    if not texts:
        raise UserError(f"name at least one text file to score {path} on")
    score_texts(path, texts, tokenizer, adapter, overrides, as_json)


def _score_run(path: Path, overrides: list[str] | None, as_json: bool) -> None:
    from fairway.cli.show import score_table

    pipeline = _existing(path, overrides, as_json)
    with pipeline.writing():
        pipeline.score()
        results = pipeline.results()
    facts = {"stages": results["stages"], "text": results["text"]}
    emit(as_json, facts, score_table(results), then("report", path))


for verb in (
    *(unpack, prove, compress, decompress, sample, serve, audit, audit_record),
    *(bundle, seeds, submit, verify, runs, export, push, load),
    *(tune, plan, ablate, transfer),
):
    app.command(cls=Verb)(verb)


@app.command(cls=Verb)
def report(run: Run, as_json: Json = False) -> None:
    """Write report.html and results.json of a scored run again."""
    pipeline = _existing(run, None, as_json)
    with pipeline.writing():
        page = pipeline.report()
    emit(as_json, {"report": str(page)}, f"report {page}")


@app.command(cls=Verb)
def compare(
    a: Annotated[
        str,
        typer.Argument(
            metavar="A",
            help="Run folders (a,b), a record's folder, or a published record such as pr1858.",
        ),
    ],
    b: Annotated[str, typer.Argument(metavar="B", help="What to compare it with.")],
    as_json: Json = False,
) -> None:
    """Compare two runs, or a run with a published record."""
    from fairway.cli.show import compare_table, statistics_lines
    from fairway.submission.compare import compare as compared

    found = compared(a, b)
    told = [f"- {line}" for line in found["cautions"]]
    emit(as_json, found, compare_table(found), *told, *statistics_lines(found["statistics"]))


@app.command(cls=Verb)
def doctor(as_json: Json = False) -> None:
    """Print what this machine has and what a run would use."""
    from fairway.cli.doctor import examine

    facts = examine()
    emit(as_json, facts, *[f"{name}: {value}" for name, value in facts.items()])


def _version(wanted: bool) -> None:
    if wanted:
        terminal.put(f"fairway {VERSION}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Process options before the verb."""


def main() -> None:
    """Run the command line; mistakes of the user end it with one sentence and exit code 2.

    Under `torchrun`, whose own exit code is then always 1, all processes end with the first
    failure, and only the failed process prints its sentence.
    """
    interrupt_by_signals()
    open_missing_streams()
    outlive_readers()
    terminal.prepare()
    end_with_parent()
    if os.environ.get("WORLD_SIZE", "1") != "1":
        from fairway.machine.peers import end_together

        end_together(_attempt)
        return
    said, code = _attempt()
    if code == 0 and (why := unwritten()):
        said, code = _told(why), 2
    if said:
        terminal.put(said, sys.stderr)
    raise SystemExit(code)


def _attempt() -> tuple[str, int]:
    """Run one verb; return the last sentence for standard error, and the exit code."""
    try:
        if not {"--version", "--help"} & set(sys.argv):
            require_start()
        with memory_told("this command", "give it less to do at a time"):
            app()
    except UserError as error:
        return _told(str(error)), 2
    except OSError as error:
        return _told(_os_sentence(error)), 2
    except LedgerError as error:
        return _told(f"no score: {error}"), 1
    except InterruptedRun as error:
        return _told(str(error)), 130
    except RuntimeError as error:
        # Compared by name, because nothing heavy is imported before a verb needs it.
        if type(error).__name__ != "OutOfMemoryError":
            raise
        return _told(_memory_sentence(error)), 2
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
        # Typer turns KeyboardInterrupt into this exit code, without a message.
        return _told("interrupted") if code == 130 else "", code
    return "", 0


def _told(text: str) -> str:
    return terminal.sentence(f"fairway: {text}")


def _os_sentence(error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    what, remedy = why_unwritten(error)
    return f"{what}{where}{remedy}"


def _memory_sentence(error: RuntimeError) -> str:
    asked = str(error).partition(".")[0]
    return (
        f"the memory of the device does not suffice ({asked}); end what else uses it or lower "
        "train.micro_tokens, score.batch_windows or ttt.lora_documents, then run the same command "
        "again"
    )
