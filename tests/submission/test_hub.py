"""Runs are pushed to a Hub and loaded from it: a local server with the few endpoints it takes."""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
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


def fairway(hub: Hub | None, home: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Run a command whose Hub is the given server, or a closed port."""
    environment = {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port if hub else 9}",
        "HF_HOME": str(home / "hf"),
        "HF_TOKEN": "hf_none",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }
    command = [*forking(), *map(str, words)]
    environment = {**os.environ, **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_a_pushed_run_is_loaded_again(hub: Hub, smoke_run: Path, tmp_path: Path) -> None:
    done = fairway(hub, tmp_path, "push", smoke_run, "some/poems", "--private", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
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
    out = tmp_path / "model"
    done = fairway(hub, tmp_path, "load", "some/poems", "--out", out)
    assert done.returncode == 0, done.stderr
    assert digest_file(out / "artifact.fwy") == results["artifact"]["digest"]
    again = fairway(hub, tmp_path, "sample", out, "--prompt", "The", "--json")
    assert again.returncode == 0, again.stderr
    assert "exists already" in refusal(fairway(hub, tmp_path, "load", "some/poems", "--out", out))


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("artifact.fwy", lambda data: data[:-1] + b"x", "artifact.fwy of some/poems does not"),
        ("tokenizer.model", lambda data: b"", "tokenizer.model of some/poems does not match"),
        ("fairway.json", lambda data: b"{", "is not valid JSON"),
        ("fairway.json", lambda data: b"[]", "names no files with digests"),
        ("fairway.json", lambda data: b'{"files": {"README.md": "0"}}', "has no artifact.fwy"),
        ("fairway.json", lambda data: data.replace(b'"artifact.fwy": "', b'"artifact.fwy": "0'),
         "artifact.fwy of some/poems does not match"),
        ("fairway.json", None, "has no fairway.json; it was not made by `fairway push`"),
    ],
)  # fmt: skip
def test_what_is_not_what_was_pushed_is_refused_and_nothing_kept(
    hub: Hub, smoke_run: Path, tmp_path: Path, name: str, change: object, told: str
) -> None:
    hub.repos["some/poems"] = dict(pushed(smoke_run))
    if callable(change):
        hub.repos["some/poems"][name] = change(hub.repos["some/poems"][name])
    else:
        del hub.repos["some/poems"][name]
    assert told in refusal(fairway(hub, tmp_path, "load", "some/poems", "--out", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


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
    done = fairway(hub, tmp_path, "load", "some/poems", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(files) - {"evil.py"}
    assert not list(tmp_path.parent.glob("climbed"))


def test_refusals_are_one_sentence(hub: Hub, smoke_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for repo in ("poems", "a/b/c", "../x", "a b/c"):
        assert "write owner/name" in refusal(fairway(hub, tmp_path, "push", smoke_run, repo))
        assert "write owner/name" in refusal(fairway(hub, tmp_path, "load", repo, "--out", out))
    assert "no model repository 'a/b'" in refusal(
        fairway(hub, tmp_path, "load", "a/b", "--out", out)
    )
    hub.repos["some/poems"] = {}
    words = ("load", "some/poems", "--out", out, "--revision", "gone")
    assert "has no revision 'gone'" in refusal(fairway(hub, tmp_path, *words))
    hub.refuses = 401
    assert "log in with `hf auth login`" in refusal(
        fairway(hub, tmp_path, "push", smoke_run, "a/b")
    )
    assert "cannot reach the Hub" in refusal(fairway(None, tmp_path, "push", smoke_run, "a/b"))
    copy = Path(shutil.copytree(smoke_run, tmp_path / "run"))
    (copy / "results.json").write_text("{}")
    assert "was changed after it was written" in refusal(
        fairway(hub, tmp_path, "push", copy, "a/b")
    )
    assert "is not a run folder" in refusal(fairway(hub, tmp_path, "push", tmp_path, "a/b"))
