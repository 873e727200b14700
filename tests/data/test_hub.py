import functools
import hashlib
import json
import re
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from calls import Calls, Done, hub_environment

from fairway.base.errors import UserError
from fairway.base.folders import locked_folder
from fairway.data.folder import DataFolder
from fairway.data.shards import write_shard
from fairway.data.tokens import Tokenizer, encode_documents, train_tokenizer

COMMITS = {"main": "a" * 40, "next": "b" * 40}
SHARDS = "datasets/datasets/fineweb10B_sp8192"
MODEL = "datasets/tokenizers/fineweb_8192_bpe.model"
TEXTS = ["A published text.", "Another published text, longer."]
PROGRAM = """
import json, sys
from pathlib import Path
from fairway.data.hub import fetch
from fairway.base.errors import UserError

def work(words):
    try:
        print(json.dumps(fetch(Path(words[0]), **json.loads(words[1]))))
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
"""
# Nobody listens there.
CLOSED = 9


@functools.cache
def repository() -> dict[str, bytes]:
    """The published layout, small: a tokenizer, three training shards, two of validation."""
    model = train_tokenizer(TEXTS, 285)
    ids = encode_documents(Tokenizer.from_bytes(model), TEXTS)
    with tempfile.TemporaryDirectory() as folder:
        write_shard(Path(folder) / "shard.bin", ids)
        shard = (Path(folder) / "shard.bin").read_bytes()
    names = ("train_000000", "train_000001", "train_000002", "val_000000", "val_000001")
    shards = {f"{SHARDS}/fineweb_{name}.bin": shard for name in names}
    return {MODEL: model, "README.md": b"data", "datasets/manifest.json": b"{}", **shards}


class Hub(ThreadingHTTPServer):
    """What the client library needs of the Hub for one dataset repository."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.calls: Calls
        self.begin()

    def begin(self) -> None:
        """Hold the repository as it was published, and have served nothing."""
        self.files = dict(repository())
        self.served: list[tuple[str, str | None]] = []
        self.damaged: set[str] = set()
        self.cut: set[str] = set()

    def listing(self, commit: str) -> dict[str, Any]:
        siblings = []
        for path, data in self.files.items():
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            entry: dict[str, Any] = {"rfilename": path, "size": len(data), "blobId": blob}
            if path.endswith(".bin"):
                sha256 = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"sha256": sha256, "size": len(data), "pointerSize": 130}
            siblings.append(entry)
        return {"id": "some/data", "sha": commit, "siblings": siblings}


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        if found := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/revision/(.+)", path):
            self.describe(*found.groups())
        elif found := re.fullmatch(r"/datasets/some/data/resolve/(\w{40})/(.+)", path):
            self.send(found[1], found[2], body)
        else:
            self.refuse("RepoNotFound")

    def describe(self, repo: str, revision: str) -> None:
        if repo != "some/data":
            return self.refuse("GatedRepo" if repo == "some/gated" else "RepoNotFound")
        if revision not in COMMITS:
            return self.refuse("RevisionNotFound")
        data = json.dumps(self.server.listing(COMMITS[revision])).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def refuse(self, code: str) -> None:
        self.send_response(403 if code == "GatedRepo" else 404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send(self, commit: str, path: str, body: bool) -> None:
        data = self.server.files[path]
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", str(len(data) - start))
        self.send_header("Accept-Ranges", "bytes")
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if not body:
            return
        self.server.served.append((path.rpartition("/")[2], self.headers.get("Range")))
        if path in self.server.damaged:
            data = data[:-1] + bytes([data[-1] ^ 1])
        if path in self.server.cut:
            self.server.cut.discard(path)
            self.wfile.write(data[start : len(data) // 2])
            self.close_connection = True
            return
        self.wfile.write(data[start:])

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


def fetch(hub: Hub, out: Path, **options: Any) -> Done:
    """Run `fetch` in a process whose Hub is the given server."""
    return hub.calls((out, json.dumps({"repo": "some/data", **options})))


def record(done: Done) -> dict[str, Any]:
    assert done.code == 0, done.err
    found: dict[str, Any] = json.loads(done.out)
    return found


def refusal(done: Done) -> str:
    assert done.code == 2, done.err
    return done.err.strip().splitlines()[-1]


def test_a_fetched_folder_can_be_used_and_extended(hub: Hub, tmp_path: Path) -> None:
    out = tmp_path / "data"
    first = record(fetch(hub, out))
    assert first == json.loads((out / "fetch.json").read_text())
    assert (first["commit"], first["revision"]) == ("a" * 40, "main")
    folder = DataFolder.open(out)
    folder.verify()
    assert folder.sample_validation().documents == TEXTS * 2
    assert len(folder.train_shards()) == 1
    digest = folder.digest
    assert {path.name for path in out.iterdir()} == {
        "fetch.json",
        "tokenizer.model",
        "fineweb_train_000000.bin",
        "fineweb_val_000000.bin",
        "fineweb_val_000001.bin",
    }
    hub.served.clear()
    more = record(fetch(hub, out, shards=3))
    assert [name for name, _ in hub.served] == [f"fineweb_train_00000{i}.bin" for i in (1, 2)]
    assert record(fetch(hub, out, shards=1)) == more
    assert DataFolder.open(out).digest != digest


@pytest.mark.long
def test_a_broken_connection_is_resumed(hub: Hub, tmp_path: Path) -> None:
    # The client keeps what arrived in whole pieces of 10 MiB.
    write_shard(tmp_path / "large.bin", np.ones(12_000_000, np.uint16))
    hub.files[f"{SHARDS}/fineweb_train_000001.bin"] = (tmp_path / "large.bin").read_bytes()
    hub.cut = {f"{SHARDS}/fineweb_train_000001.bin"}
    record(fetch(hub, tmp_path / "data", shards=2))
    ranges = [sent for name, sent in hub.served if name == "fineweb_train_000001.bin"]
    assert len(ranges) == 2 and ranges[1] is not None and int(ranges[1][6:-1]) > 0
    DataFolder.open(tmp_path / "data").verify()


def test_a_damaged_download_is_refused_and_can_be_repeated(hub: Hub, tmp_path: Path) -> None:
    out = tmp_path / "data"
    hub.damaged = {f"{SHARDS}/fineweb_train_000000.bin"}
    assert "fineweb_train_000000.bin of some/data arrived damaged" in refusal(fetch(hub, out))
    assert not (out / "fineweb_train_000000.bin").exists()
    hub.damaged = set()
    hub.served.clear()
    record(fetch(hub, out))
    assert [name for name, _ in hub.served] == ["fineweb_train_000000.bin"]


def test_a_damaged_tokenizer_is_noticed_without_lfs(hub: Hub, tmp_path: Path) -> None:
    hub.damaged = {MODEL}
    assert "fineweb_8192_bpe.model of some/data arrived damaged" in refusal(
        fetch(hub, tmp_path / "data")
    )


def test_a_local_file_that_changed_is_fetched_again(hub: Hub, tmp_path: Path) -> None:
    out = tmp_path / "data"
    record(fetch(hub, out))
    (out / "fineweb_val_000001.bin").write_bytes(b"damaged")
    hub.served.clear()
    record(fetch(hub, out))
    assert [name for name, _ in hub.served] == ["fineweb_val_000001.bin"]
    DataFolder.open(out).verify()


def test_another_commit_is_taken_only_when_told(hub: Hub, tmp_path: Path) -> None:
    out = tmp_path / "data"
    record(fetch(hub, out))
    message = refusal(fetch(hub, out, revision="next"))
    assert f"was fetched from some/data at {'a' * 40}" in message and "b" * 40 in message
    assert record(fetch(hub, out, revision="next", new_commit=True))["commit"] == "b" * 40


def test_pinned_digests_are_obeyed(hub: Hub, tmp_path: Path) -> None:
    model = hashlib.sha256(repository()[MODEL]).hexdigest()
    pinned = {"tokenizer.model": model, "fineweb_val_000000.bin": "0" * 64}
    message = refusal(fetch(hub, tmp_path / "a", expected=pinned))
    assert "the published file has changed" in message
    message = refusal(fetch(hub, tmp_path / "b", expected={"tokenizer.model": "0" * 64}))
    assert f"arrived damaged (SHA-256 {model}, expected {'0' * 64})" in message
    record(fetch(hub, tmp_path / "c", expected={"tokenizer.model": model}))


def test_a_shard_that_is_none_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub.files[f"{SHARDS}/fineweb_val_000000.bin"] = b"not a shard"
    assert "has 11 bytes; a token shard has at least 1024" in refusal(fetch(hub, tmp_path / "d"))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"repo": "some/other"}, "there is no dataset repository 'some/other'"),
        ({"repo": "some/gated"}, "some/gated is gated"),
        ({"repo": "a/b/c"}, "'a/b/c' is not a repository name"),
        ({"revision": "old"}, "some/data has no revision 'old'"),
        ({"dataset": "sp512"}, "no complete data set 'sp512'; it has fineweb10B_sp8192"),
        ({"tokenizer": "x.model"}, "has 0 files named x.model"),
        ({"shards": 4}, "4 training shards were requested; some/data has 1 to 3"),
        ({"shards": 0}, "0 training shards were requested"),
    ],
)
def test_what_is_not_there_is_named(
    hub: Hub, tmp_path: Path, options: dict[str, Any], sentence: str
) -> None:
    assert sentence in refusal(fetch(hub, tmp_path / "data", **options))
    assert not (tmp_path / "data").exists()


def test_without_a_connection_there_is_one_sentence(tmp_path: Path) -> None:
    calls = Calls(PROGRAM, hub_environment(CLOSED, tmp_path / "hf"))
    done = calls((tmp_path / "data", json.dumps({"repo": "some/data"})))
    calls.close()
    assert "cannot reach the Hub for some/data" in refusal(done)
    assert "Traceback" not in done.err and not (tmp_path / "data").exists()


def test_other_folders_are_left_alone(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "thesis.txt").touch()
    assert "holds something other than fetched data" in refusal(fetch(hub, tmp_path / "data"))
    assert hub.served == []


def test_a_path_that_climbs_is_ignored(hub: Hub, tmp_path: Path) -> None:
    hub.files["../fineweb10B_sp8192/fineweb_train_000009.bin"] = b"x"
    assert "requested; some/data has 1 to 3" in refusal(fetch(hub, tmp_path / "data", shards=4))


def test_a_fetch_that_was_interrupted_is_not_opened(hub: Hub, tmp_path: Path) -> None:
    out = tmp_path / "data"
    record(fetch(hub, out))
    hub.damaged = {f"{SHARDS}/fineweb_train_000001.bin"}
    assert "arrived damaged" in refusal(fetch(hub, out, shards=2))
    with pytest.raises(UserError, match="data is not complete; build or fetch the data again"):
        DataFolder.open(out)
    hub.damaged = set()
    assert "unfinished" not in record(fetch(hub, out, shards=2))
    assert len(DataFolder.open(out).train_shards()) == 2


def test_a_fetch_writes_behind_a_link_and_into_an_empty_disk(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "disk" / "lost+found").mkdir(parents=True)
    (tmp_path / "data").symlink_to("disk")
    (tmp_path / "new").symlink_to("disk/deep/er")
    for name in ("data", "new"):
        record(fetch(hub, tmp_path / name))
        assert (tmp_path / name).is_symlink()
        DataFolder.open(tmp_path / name).verify()


def test_two_cannot_fetch_into_one_folder(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with locked_folder(tmp_path / "data"):
        message = refusal(fetch(hub, tmp_path / "data"))
    assert "another process is writing" in message and list((tmp_path / "data").iterdir()) == []


def test_two_files_of_one_name_are_refused(hub: Hub, tmp_path: Path) -> None:
    shard = hub.files[f"{SHARDS}/fineweb_train_000000.bin"]
    hub.files["old/fineweb10B_sp8192/fineweb_train_000000.bin"] = shard
    assert "has two files of one name" in refusal(fetch(hub, tmp_path / "data"))
