"""Every path that a verb takes, with what strangers give it; every file that one writes."""

import json
import os
import shlex
import shutil
import stat
import subprocess
import sys
import threading
import typing
from collections.abc import Callable
from pathlib import Path

import pytest
from audit.record import Case
from damage import FIXED, Place, contents, run_command
from test_outputs import node

from fairway.cli import (
    audit as cli_audit,
)
from fairway.cli import (
    data as cli_data,
)
from fairway.cli import (
    main as cli,
)
from fairway.cli import (
    pack as cli_pack,
)
from fairway.cli import (
    prove as cli_prove,
)
from fairway.cli import (
    submission as cli_record,
)
from fairway.config.overrides import override
from fairway.machine import plan
from fairway.recipes import recipe

Run = Callable[[list[str]], tuple[int, str, str]]
ART = "run/artifact.fwy"
SMOKE = f"--set data.source=data --set model.vocab_size=300 --set pack.code_bytes=0 {FIXED}"
# By verb: lines in which {} stands for a path, one for every path that it takes.
LINES: dict[str, list[str]] = {
    "run": [f"run smoke --out {{}} {SMOKE}"],
    "train": [f"train smoke --out {{}} {SMOKE}"],
    "pack": ["pack {}"],
    "score": [
        "score {}",
        f"score {ART} {{}} {FIXED}",
        f"score {ART} text.txt --tokenizer {{}} {FIXED}",
        f"score {ART} text.txt --adapter {{}} {FIXED}",
    ],
    "report": ["report {}"],
    "unpack": ["unpack {} --out new", f"unpack {ART} --out {{}}"],
    "prove": [
        f"prove --out {{}} {ART} text.txt {FIXED}",
        f"prove --out new {{}} text.txt {FIXED}",
        f"prove --out new {ART} {{}} {FIXED}",
        f"prove --out new --decode {{}} --artifact {ART}",
        "prove --out new --decode run/proof.fwp --artifact {}",
        f"prove --out new {ART} text.txt --tokenizer {{}} {FIXED}",
    ],
    "compress": [
        f"compress {{}} --artifact {ART} --out new {FIXED}",
        f"compress text.txt --artifact {{}} {FIXED}",
        f"compress text.txt --artifact {ART} --out {{}} {FIXED}",
        f"compress text.txt --artifact {ART} --tokenizer {{}} {FIXED}",
    ],
    "decompress": [
        f"decompress {{}} --artifact {ART} --out new",
        "decompress run/proof.fwp --artifact {} --out new",
        f"decompress run/proof.fwp --artifact {ART} --out {{}}",
        f"decompress run/proof.fwp --artifact {ART} --out new --tokenizer {{}}",
    ],
    "sample": [
        "sample {}",
        f"sample {ART} --tokenizer {{}} {FIXED}",
        f"sample {ART} --adapter {{}} {FIXED}",
    ],
    "tune": [
        "tune {} text.txt --out new",
        f"tune {ART} {{}} --out new",
        f"tune {ART} text.txt --out {{}}",
        f"tune {ART} text.txt --out new --tokenizer {{}}",
    ],
    "serve": [
        "serve {}",
        f"serve {ART} {{}}",
        f"serve {ART} --tokenizer {{}}",
        f"serve {ART} --adapter {{}}",
    ],
    "audit": [
        *("audit {}", "audit --program cat --tokens {}", "audit --log {}"),
        "audit --program cat --tokens ids.json --tokenizer {}",
        "audit --program cat --tokens ids.json --fresh {}",
    ],
    "audit_record": ["audit-record {}", "audit-record record --html {}"],
    "bundle": ["bundle smoke --out {}"],
    "ablate": [
        f"ablate smoke --arm a:seed=2 --out {{}} {SMOKE}",
        "ablate --merge ids.json --merge {}",
    ],
    "plan": ["plan --seconds 60 --data {}", "plan --seconds 60 --out {}"],
    "push": ["push {} someone/run"],
    "load": ["load someone/run --out {}"],
    "transfer": [
        "transfer {} ids.json",
        "transfer ids.json {}",
        "transfer ids.json ids.json --out {}",
    ],
    "seeds": ["seeds smoke 1 --out {}", "seeds smoke 1 --out new --record {}"],
    "submit": ["submit {} --track non_record --out new", "submit run --track non_record --out {}"],
    "verify": ["verify {}", "verify record --rescore {}", "verify record --retrain {}"],
    "runs": ["runs {}", "runs . --export csv --out {}", "runs . --html {}"],
    "export": [
        "export {} --out new",
        "export run --out {}",
        "export run --out new --tokenizer {}",
        "export run --out new --adapter {}",
    ],
    "data_build": [
        "data build {} --out new",
        "data build text.txt --out {}",
        "data build text.txt --out new --tokenizer {}",
        "data build text.txt --out new --validation {}",
    ],
    "data_fetch": ["data fetch --out {}"],
    "data_show": ["data show {}"],
}
ALL = [line for lines in LINES.values() for line in lines]
READ = [
    line
    for line in ALL
    if not any(f"{written} {{}}" in line for written in ("--out", "--html", "--record"))
]
WORDS = {
    "": "the path is empty",
    "-": "- is no path",
    "~/x": "the shell left ~ as it is",
    "~someone": "the shell left ~ as it is",
    "a\0b": "zero byte",
}


def slowly(*paths: str) -> list[typing.Any]:
    """Return cases of the slow tier: each takes ten seconds for all verbs together."""
    return [pytest.param(path, marks=pytest.mark.slow) for path in paths]


# What no file is made of, and neither is what follows from it.
NOTHING = ["x" * 5000, "loop/below", *slowly("text.txt/below", "loop")]
# Where nothing is, and names that a terminal would obey.
NOWHERE = [
    "\x1b[31m\u202e",
    "caf\udce9",
    *slowly("./-rf", "no\nthing\ttwice", "[bold]$x 'y'"),
]


@pytest.fixture
def run(place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function: the command line, in a folder with a link that leads to itself."""
    (place / "loop").symlink_to("loop")
    (place / "record").mkdir()
    (place / "ids.json").write_text(json.dumps([1, *range(2, 12)]))
    return lambda words: run_command(words, capsys, monkeypatch)


def filled(line: str, path: str) -> list[str]:
    return [path if word == "{}" else word for word in line.split()]


def refused(place: Place, run: Run, words: list[str], told: str = "") -> None:
    before = contents(place.path)
    code, out, err = run(words)
    assert (code, out) == (2, ""), (words, err)
    assert err.startswith("fairway: ") and err.count("\n") == 1 and err.endswith("\n"), err
    assert told in err and "Traceback" not in err
    assert len(err) < 2200 and err[:-1].isprintable(), err
    assert contents(place.path) == before, words


def test_the_table_has_every_path() -> None:
    """A path that a verb takes and the table does not would go untested."""
    verbs = {
        command.callback.__name__: command.callback
        for app in (cli.app, cli.data_app)
        for command in app.registered_commands
        if command.callback
    }
    assert cli_pack and cli_prove and cli_record and cli_audit
    for name, verb in verbs.items():
        hints = typing.get_type_hints(verb).values()
        paths = sum("Path" in str(hint) for hint in hints)
        assert len(LINES.get(name, [])) == paths, name


@pytest.mark.parametrize("word", WORDS)
def test_words_that_are_no_paths(place: Place, run: Run, word: str) -> None:
    for line in ALL:
        refused(place, run, filled(line, word), WORDS[word])


@pytest.mark.parametrize("path", NOTHING, ids=lambda path: path[:12])
def test_paths_at_which_nothing_can_be(place: Place, run: Run, path: str) -> None:
    for line in ALL:
        if not line.startswith("runs ."):
            refused(place, run, filled(line, path))


@pytest.mark.parametrize("path", NOWHERE)
def test_names_of_nothing_are_told_in_one_harmless_line(place: Place, run: Run, path: str) -> None:
    for line in READ:
        refused(place, run, filled(line, path))


def test_no_machine_is_measured_for_a_path_that_is_not_there(
    place: Place, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two seconds of measuring come after what can be known before."""
    plan._fastest.cache_clear()
    monkeypatch.setattr(plan, "_probe_seconds", lambda *_: pytest.fail("measured"))
    for line in READ:
        refused(place, run, filled(line.removesuffix(f" {FIXED}"), "nowhere"))


FILES = [line for line in ALL if "--out {}" in line or "--html {}" in line]


@pytest.mark.parametrize("line", FILES)
def test_outputs_that_are_something_else(place: Place, run: Run, line: str) -> None:
    """A file or a folder of others, a socket, a disk, a pipe where a folder is wanted."""
    folder = line.split()[0] in ("run", "train", "bundle", "seeds", "submit", "export", "data")
    (place / "thesis").write_text("mine")
    node(place / "disk", stat.S_IFBLK, 7, 200)
    (place / "gone").symlink_to("nowhere")
    for path in ("thesis", "disk", *(["gone", "loop"] if folder else ["data", "run", "loop"])):
        refused(place, run, filled(line, path))
    assert not (place / "nowhere").exists()


# ---------------------------------------------------------------------------------------------
# Files are written into devices and pipes, and behind links


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where the first `coded` leaves its file for the others."""
    return tmp_path_factory.mktemp("coded") / "text.fwz"


@pytest.fixture
def coded(place: Place, run: Run, kept: Path) -> None:
    """Make a compressed file, a proof and a record to write from."""
    if not kept.exists():
        assert run(f"compress text.txt --artifact {ART} --out text.fwz {FIXED}".split())[0] == 0
        (place / "text.fwz").rename(kept)
    shutil.copy(kept, place / "text.fwz")
    # With logs, so that it can be judged.
    shutil.copytree(Case().write(place / "case"), place / "record", dirs_exist_ok=True)


def written(place: Place, run: Run, line: str) -> None:
    device = node(place / "null", stat.S_IFCHR, 1, 3)
    code, _, err = run(filled(line, "null"))
    assert code in (0, 1) and "Traceback" not in err, err
    assert stat.S_ISCHR(device.lstat().st_mode)
    (place / "link").symlink_to("target")
    assert run(filled(line, "link"))[0] == code
    assert (place / "link").is_symlink() and (place / "target").stat().st_size > 0
    os.mkfifo(place / "pipe")
    got: list[bytes] = []
    thread = threading.Thread(target=lambda: got.append((place / "pipe").read_bytes()))
    thread.start()
    assert run(filled(line, "pipe"))[0] == code
    thread.join(10)
    assert stat.S_ISFIFO((place / "pipe").lstat().st_mode)
    assert len(got[0]) == (place / "target").stat().st_size
    left = [path.name for path in place.path.iterdir() if path.name.startswith(".")]
    assert not left


@pytest.mark.parametrize(
    "line",
    [
        f"unpack {ART} --out {{}}",
        f"prove --out {{}} {ART} text.txt --bytes 8 {FIXED}",
        f"prove --out {{}} --decode run/proof.fwp --artifact {ART}",
        f"compress text.txt --artifact {ART} --out {{}} {FIXED}",
        f"decompress text.fwz --artifact {ART} --out {{}}",
        "runs . --export csv --out {}",
        "audit-record record --html {}",
    ],
)
def test_devices_pipes_and_links(place: Place, run: Run, coded: None, line: str) -> None:
    written(place, run, line)


def test_a_file_of_ours_is_replaced_and_an_input_is_not(
    place: Place, run: Run, coded: None
) -> None:
    for line in (f"compress text.txt --artifact {ART} --out a {FIXED}", f"unpack {ART} --out b"):
        assert run(line.split())[0] == run(line.split())[0] == 0
    before = contents(place.path)
    os.link(place / "text.txt", place / "name")
    for line, told in (
        (f"compress text.txt --artifact {ART} --out text.txt", "is the file itself"),
        (f"compress text.txt --artifact {ART} --out name", "is the file itself"),
        (f"compress text.txt --artifact {ART} --out {ART}", "is the artifact itself"),
        ("compress text.txt --artifact run --out run/run.json", "lies in run, which is read"),
        ("prove run text.txt --out run/proof.fwp", "lies in run, which is read"),
        (f"unpack {ART} --out {ART}", "is the artifact itself"),
        (f"unpack {ART} --out run/weights.safetensors", "this command did not write it"),
        (f"decompress text.fwz --artifact {ART} --out text.fwz", "is the file itself"),
        (f"prove --decode run/proof.fwp --artifact {ART} --out text.fwz", "holds something else"),
    ):
        code, _, err = run(line.split())
        assert code == 2 and told in err, (line, err)
    assert contents(place.path) == before | {"name": before["text.txt"]}


Shell = Callable[[str], "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def shell(place: Place, forked: list[str]) -> Shell:
    """Return a function: run a shell line in which `fairway` is the command line."""

    def run(words: str) -> "subprocess.CompletedProcess[bytes]":
        program = f'fairway() {{ {shlex.join(forked)} "$@"; }}; {words}'
        command = ["bash", "-c", program]
        return subprocess.run(command, cwd=place.path, capture_output=True, check=False)

    return run


def test_standard_output_carries_the_file_alone(place: Place, shell: Shell) -> None:
    """And what is said goes to standard error, JSON too."""
    ended = shell(
        f"printf before > all; fairway unpack {ART} --out /dev/stdout --json >> all && "
        f"fairway unpack {ART} --out >(cat > part)"
    )
    assert ended.returncode == 0, ended.stderr
    data = (place / "all").read_bytes().removeprefix(b"before")
    told = json.loads(ended.stderr)
    assert len(data) == told["bytes"] and told["path"] == "/dev/stdout"
    assert data[8:].startswith(b'{"__metadata__"') and (place / "part").read_bytes() == data
    assert b"/dev/fd/" in ended.stdout


# ---------------------------------------------------------------------------------------------
# Letters that Python or the terminal cannot encode


ASCII = {"PYTHONIOENCODING": "ascii"}
OLD = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


IN_TURN = """
import ast, os, sys
from fairway.bundle import build
from fairway.cli import main as cli
# A bundle takes seconds; its bytes are not what is looked at.
build.bundle_bytes = lambda config: 20_000
for words in ast.literal_eval(sys.argv[1]):
    sys.argv = ["fairway", *(os.fsdecode(word) for word in words)]
    try:
        cli.main()
    except SystemExit as ending:
        code = ending.code
        if code:
            raise
"""


def in_turn(
    lines: list[list[str]], place: Place, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """Run command lines in one process, until one fails."""
    words = repr([[os.fsencode(word) for word in line] for line in lines])
    return subprocess.run(
        [sys.executable, "-c", IN_TURN, words],
        cwd=place.path,
        env={**os.environ, **environment},
        capture_output=True,
        check=False,
    )


@pytest.mark.long
@pytest.mark.parametrize(
    "environment",
    [{**ASCII, **OLD}, *(pytest.param(one, marks=pytest.mark.slow) for one in (ASCII, OLD))],
)
def test_names_that_cannot_be_shown(place: Place, environment: dict[str, str]) -> None:
    name = b"caf\xc3\xa9 \xff\x1b[31m"
    folder = os.fsencode(place.path) + b"/" + name
    (place / "run").rename(os.fsdecode(folder))
    (place / "caf\xe9.txt").write_bytes(b"The model predicts a token.")
    run = os.fsdecode(name)
    lines = [
        ["runs", "."],
        ["runs", ".", "--json"],
        ["runs", ".", "--export", "csv"],
        ["run", "smoke", "--dry-run"],
        ["score", "--help"],
        ["pack", run, "--account"],
        ["compare", run, "pr1858"],
        ["score", f"{run}/artifact.fwy", "caf\xe9.txt", *FIXED.split()],
        ["unpack", run, "--out", "w\udcff"],
        ["pack", f"{run}/nowhere"],
    ]
    ended = in_turn(lines, place, **environment)
    assert ended.returncode == 2, ended.stderr.decode("utf-8", "replace")
    assert ended.stderr.startswith(b"fairway: ") and ended.stderr.count(b"\n") == 1
    for told in (ended.stdout, ended.stderr):
        assert b"\x1b" not in told and b"\xff" not in told and b"Traceback" not in told
    assert b"\\xff\\x1b[31m" in ended.stdout


def test_a_command_that_is_offered_can_be_given(place: Place, shell: Shell) -> None:
    """A data folder and a proof whose names a shell would take apart."""
    name = "$HOME it's\n"
    (place / "data").rename(place / name)
    words = cli_data._how_to_train("built", Path(name)).partition("fairway run demo ")[2]
    read = shell(f"printf '%s\\0' {words}").stdout.decode().split("\0")[:-1]
    assert override(recipe("smoke"), [word for word in read if word != "--set"]).data.source == name
    proof = shell(f"fairway prove {ART} text.txt --bytes 8 --out 'a $x' {FIXED}")
    offer = proof.stdout.decode().rpartition("restore with: ")[2].strip()
    assert offer == f"fairway prove --decode 'a $x' --artifact {ART} --out FILE"
    again = shell(offer)
    assert again.returncode == 0 and (place / "FILE").exists(), again.stderr
