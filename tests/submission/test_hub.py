"""Runs are pushed to a Hub and loaded from it: a local server with the few endpoints it takes."""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import pytest
from shared import forking

from fairway.base.files import digest_file, read_json

COMMIT = "c" * 40


class Hub(ThreadingHTTPServer):
    """Model repositories in memory: what was committed, and who may write."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.asked: list[str] = []
        self.refuses: int | None = None


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET(body=False)

    def do_GET(self, body: bool = True) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"GET {path}")
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/(.+)", path)
        if found:
            if found[1] not in self.server.repos:
                return self.refuse(404, "RepoNotFound")
            if found[2] not in ("main", COMMIT):
                return self.refuse(404, "RevisionNotFound")
            return self.json({"id": found[1], "sha": COMMIT, "siblings": []})
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/(\w{40})/(.+)", path)
        files = self.server.repos.get(found[1], {}) if found else {}
        if not found or found[3] not in files:
            return self.refuse(404, "EntryNotFound")
        data = files[found[3]]
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"POST {path}")
        text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.server.refuses:
            return self.refuse(self.server.refuses, "")
        if path == "/api/validate-yaml":
            return self.json({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            said = json.loads(text)
            repo = f"{said['organization']}/{said['name']}"
            self.server.private[repo] = said.get("private") or said.get("visibility") == "private"
            self.server.repos.setdefault(repo, {})
            return self.json({"url": f"http://127.0.0.1/{repo}"})
        if path.endswith("/preupload/main"):
            names = [file["path"] for file in json.loads(text)["files"]]
            modes = [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]
            return self.json({"files": modes})
        repo = re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path)
        assert repo, path
        for line in map(json.loads, text.splitlines()):
            if line["key"] == "file":
                content = base64.b64decode(line["value"]["content"])
                self.server.repos[repo[1]][line["value"]["path"]] = content
        url = f"http://127.0.0.1/{repo[1]}/commit/{COMMIT}"
        self.json({"success": True, "commitOid": COMMIT, "commitUrl": url})

    def json(self, value: object) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


# Several command lines in one process: to import the Hub's client takes half a second.
EACH = """
import contextlib, io, json, sys
from fairway.cli.main import main
found = []
for words in json.loads(sys.argv[1]):
    sys.argv = ["fairway", *words]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    found.append((code, out.getvalue(), err.getvalue()))
print(json.dumps(found))
"""


class Done(NamedTuple):
    """The end of a command line: its exit code, what it printed, what it said on stderr."""

    code: int
    out: str
    err: str


def fairway(hub: Hub | None, home: Path, *lines: Sequence[object]) -> list[Done]:
    """Run command lines whose Hub is the given server, or a closed port."""
    environment = {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port if hub else 9}",
        "HF_HOME": str(home / "hf"),
        "HF_TOKEN": "hf_none",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }
    told = json.dumps([[str(word) for word in words] for words in lines])
    command = [*forking(), "-c", EACH, told]
    environment = {**os.environ, **environment}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [Done(*one) for one in json.loads(done.stdout)]


def refusal(done: Done) -> str:
    assert done.code == 2 and done.err.count("\n") == 1, done.err
    return done.err


def test_a_pushed_run_is_loaded_again(hub: Hub, smoke_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    load = ("load", "some/poems", "--out", out)
    done, loaded, again, twice = fairway(
        hub,
        tmp_path,
        ("push", smoke_run, "some/poems", "--private", "--json"),
        load,
        ("sample", out, "--prompt", "The", "--tokens", "5", "--json"),
        load,
    )
    assert (done.code, loaded.code, again.code) == (0, 0, 0), (done.err, loaded.err, again.err)
    facts = json.loads(done.out)
    assert (facts["repo"], facts["commit"]) == ("some/poems", COMMIT)
    assert hub.private == {"some/poems": True}
    files = hub.repos["some/poems"]
    assert set(files) == {
        "artifact.fwy", "tokenizer.model", "results.json", "README.md", "fairway.json"
    }  # fmt: skip
    # A commit is one, and nothing of this machine is in it.
    assert sum("/commit/main" in asked for asked in hub.asked) == 1
    for name in ("results.json", "README.md", "fairway.json"):
        assert (
            str(smoke_run).encode() not in files[name]
            and str(Path.home()).encode() not in files[name]
        )
    results = read_json(smoke_run / "results.json")
    card = files["README.md"].decode()
    assert f"{results['stages']['ttt']['bpb']:.4f} bits per byte" in card
    assert results["artifact"]["digest"] in card and "fairway load some/poems" in card
    assert digest_file(out / "artifact.fwy") == results["artifact"]["digest"]
    assert "exists already" in refusal(twice)


# File, what becomes of it, and what is told of the repository.
CHANGED: list[tuple[str, Callable[[bytes], bytes] | None, str]] = [
    ("artifact.fwy", lambda data: data[:-1] + b"x", "artifact.fwy of {} does not"),
    ("tokenizer.model", lambda data: b"", "tokenizer.model of {} does not match"),
    ("fairway.json", lambda data: b"{", "is not valid JSON"),
    ("fairway.json", lambda data: b"[]", "names no files with digests"),
    ("fairway.json", lambda data: b'{"files": {"README.md": "0"}}', "has no artifact.fwy"),
    ("fairway.json", lambda data: data.replace(b'"artifact.fwy": "', b'"artifact.fwy": "0'),
     "artifact.fwy of {} does not match"),
    ("fairway.json", None, "has no fairway.json; it was not made by `fairway push`"),
]  # fmt: skip


def test_what_is_not_what_was_pushed_is_refused_and_nothing_kept(
    hub: Hub, smoke_run: Path, tmp_path: Path
) -> None:
    out, lines = tmp_path / "out", []
    for number, (name, change, _) in enumerate(CHANGED):
        files = hub.repos[f"some/poems{number}"] = dict(pushed(smoke_run))
        data = files.pop(name)
        if change is not None:
            files[name] = change(data)
            assert files[name] != data
        lines.append(("load", f"some/poems{number}", "--out", out))
    for number, done in enumerate(fairway(hub, tmp_path, *lines)):
        assert CHANGED[number][2].format(f"some/poems{number}") in refusal(done)
    # Each would have found what the one before it had left.
    assert not out.exists()


def pushed(run: Path) -> dict[str, bytes]:
    """Return the files of a pushed run, without a push."""
    from fairway.submission.hub import files_of

    return files_of(run, "some/poems")


def test_a_manifest_cannot_name_files_elsewhere(hub: Hub, smoke_run: Path, tmp_path: Path) -> None:
    files = dict(pushed(smoke_run))
    manifest = json.loads(files["fairway.json"])
    manifest["files"] |= {"../../climbed": "0" * 64, "evil.py": "0" * 64}
    files |= {"fairway.json": json.dumps(manifest).encode(), "evil.py": b"print('ran')"}
    hub.repos["some/poems"] = files
    (done,) = fairway(hub, tmp_path, ("load", "some/poems", "--out", tmp_path / "out"))
    assert done.code == 0, done.err
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(files) - {"evil.py"}
    assert not list(tmp_path.parent.glob("climbed"))


def test_refusals_are_one_sentence(hub: Hub, smoke_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    copy = Path(shutil.copytree(smoke_run, tmp_path / "run"))
    (copy / "results.json").write_text("{}")
    hub.repos["some/poems"] = {}
    names = ("poems", "a/b/c", "../x", "a b/c")
    asked = [
        *((("push", smoke_run, name), "write owner/name") for name in names),
        *((("load", name, "--out", out), "write owner/name") for name in names),
        (("load", "a/b", "--out", out), "no model repository 'a/b'"),
        (("load", "some/poems", "--out", out, "--revision", "gone"), "has no revision 'gone'"),
        (("push", copy, "a/b"), "was changed after it was written"),
        (("push", tmp_path, "a/b"), "is not a run folder"),
    ]
    for done, (_, told) in zip(
        fairway(hub, tmp_path, *(words for words, _ in asked)), asked, strict=True
    ):
        assert told in refusal(done)
    push = ("push", smoke_run, "a/b")
    hub.refuses = 401
    (done,) = fairway(hub, tmp_path, push)
    assert "log in with `hf auth login`" in refusal(done)
    (done,) = fairway(None, tmp_path, push)
    assert "cannot reach the Hub" in refusal(done)
