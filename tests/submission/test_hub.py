"""Runs are pushed to a Hub and loaded from it: a local server with the few endpoints it takes."""

import base64
import hashlib
import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from calls import Calls, Done, hub_environment

from fairway.base.files import digest_file, read_json

COMMIT = "c" * 40


class Hub(ThreadingHTTPServer):
    """Model repositories in memory: what was committed, and who may write."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.calls: Calls
        self.begin()

    def begin(self) -> None:
        """Hold nothing, and have been asked nothing."""
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


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with Hub() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        home = tmp_path_factory.mktemp("hf")
        server.calls = Calls(PROGRAM, hub_environment(server.server_port, home))
        yield server
        server.calls.close()
        server.shutdown()


@pytest.fixture
def hub(server: Hub) -> Hub:
    server.begin()
    return server


PROGRAM = """
import sys
import fairway.data.hub, fairway.submission.hub
from fairway.cli.main import main

def work(words):
    sys.argv = ["fairway", *words]
    main()
"""
# Nobody listens there.
CLOSED = 9


def fairway(hub: Hub, *lines: Sequence[object]) -> list[Done]:
    """Run command lines whose Hub is the given server."""
    return [hub.calls(words) for words in lines]


def refusal(done: Done) -> str:
    assert done.code == 2 and done.err.count("\n") == 1, done.err
    return done.err


@pytest.mark.long
def test_a_pushed_run_is_loaded_again(hub: Hub, smoke_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    load = ("load", "some/poems", "--out", out)
    done, loaded, again, twice = fairway(
        hub,
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
    ("fairway.json", lambda data: data + b" " * (1 << 16), "downloads at most 65,536 bytes of it"),
    ("README.md", lambda data: data + bytes(1 << 20), "downloads at most 1,048,576 bytes of it"),
    ("results.json", lambda data: data + bytes(1 << 23), "downloads at most 8,388,608 bytes of it"),
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
    for number, done in enumerate(fairway(hub, *lines)):
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
    (done,) = fairway(hub, ("load", "some/poems", "--out", tmp_path / "out"))
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
    for done, (_, told) in zip(fairway(hub, *(words for words, _ in asked)), asked, strict=True):
        assert told in refusal(done)
    push = ("push", smoke_run, "a/b")
    hub.refuses = 401
    (done,) = fairway(hub, push)
    assert "log in with `hf auth login`" in refusal(done)
    calls = Calls(PROGRAM, hub_environment(CLOSED, tmp_path / "hf"))
    assert "cannot reach the Hub" in refusal(calls(push))
    calls.close()
