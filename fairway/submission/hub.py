"""Shares runs through the Hugging Face Hub: `fairway push` and `fairway load`.

A repository contains the artifact, its tokenizer, the results, a card, and `fairway.json` with
the digest of each. `fairway load` takes all files from one commit and checks every digest.
"""

import re
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import (
    CommitOperationAdd,
    HfApi,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
)
from huggingface_hub.errors import HFValidationError, HTTPError

from fairway.api import load
from fairway.base.errors import UserError
from fairway.base.files import digest_bytes, digest_file, parse_json, read_bytes, write_atomic
from fairway.base.folders import added_files
from fairway.base.names import ARTIFACT, TOKENIZER_FILE
from fairway.base.outputs import require_absent, require_folder
from fairway.data.hub import hub_error
from fairway.machine.plan import Plan
from fairway.pipeline.results import RESULTS, read_results
from fairway.submission.card import card
from fairway.submission.texts import as_json
from fairway.version import VERSION

CARD, MANIFEST = "README.md", "fairway.json"
_NAME = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SCHEMA = 1
_MOST_MANIFEST_BYTES = 1 << 16
# The files of a repository that Fairway reads, and the largest size of each.
_MOST_BYTES = {ARTIFACT: 1 << 31, TOKENIZER_FILE: 1 << 26, RESULTS: 1 << 23, CARD: 1 << 20}
# No computation is needed: the artifact is only loaded.
_PLAN = Plan("cpu", "float32", "highest", 1, "plain")


def push(run: Path, repo: str, private: bool = False) -> dict[str, Any]:
    """Upload a finished run in one commit to a repository, new or existing; return its facts.

    Raises UserError for a run without results, a wrong name, and a refusal by the Hub.
    """
    _require_name(repo)
    files = files_of(run, repo)
    operations = [CommitOperationAdd(name, data) for name, data in files.items()]
    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        made = api.create_commit(repo, operations, commit_message=f"Fairway {VERSION}")
    except (HTTPError, HFValidationError, OSError, ValueError) as error:
        raise hub_error(error, repo) from None
    digests = {name: digest_bytes(data) for name, data in files.items()}
    return {"repo": repo, "commit": made.oid, "url": made.commit_url, "files": digests}


def files_of(run: Path, repo: str) -> dict[str, bytes]:
    """Return the files that share a finished run, by name; UserError like `push`."""
    results = read_results(run)
    files = {
        ARTIFACT: read_bytes(run / ARTIFACT),
        TOKENIZER_FILE: read_bytes(run / TOKENIZER_FILE),
        RESULTS: as_json(results),
        CARD: card(results, repo).encode(),
    }
    if digest_bytes(files[ARTIFACT]) != results["artifact"]["digest"]:
        raise UserError(f"{run / ARTIFACT} is not the artifact that was scored; pack it again")
    digests = {name: digest_bytes(data) for name, data in files.items()}
    manifest = {"schema": _SCHEMA, "fairway": VERSION, "files": digests}
    return {**files, MANIFEST: as_json(manifest)}


def fetch_model(repo: str, out: Path, revision: str = "main") -> dict[str, Any]:
    """Download a pushed run into a folder and check every digest; return its source.

    All files come from one commit. Raises UserError for a repository without a manifest, a file
    that differs from the manifest, an artifact that cannot be loaded, and existing files.
    """
    _require_name(repo)
    require_folder(out)
    require_absent(out, *_MOST_BYTES, MANIFEST)
    try:
        commit = HfApi().model_info(repo, revision=revision).sha or ""
    except (HTTPError, HFValidationError, OSError) as error:
        raise hub_error(error, repo, revision) from None
    if not _COMMIT.fullmatch(commit):
        raise UserError(f"the Hub names no commit for {repo} at '{revision}'; try again later")
    with tempfile.TemporaryDirectory() as folder:
        staged = Path(folder)
        digests = _manifest(repo, commit, staged)
        for name in digests:
            path = _download(repo, commit, name, staged, _MOST_BYTES[name])
            if path.stat().st_size > _MOST_BYTES[name] or digest_file(path) != digests[name]:
                raise UserError(
                    f"{name} of {repo} does not match {MANIFEST} (SHA-256 {digest_file(path)}, "
                    f"expected {digests[name]}); nothing was kept"
                )
        # Check before anything is kept that the artifact can be loaded.
        load(staged / ARTIFACT, plan=_PLAN)
        with added_files(out, *digests, MANIFEST) as new:
            for name in (*digests, MANIFEST):
                write_atomic(new / name, read_bytes(staged / name))
    return {"repo": repo, "commit": commit, "files": digests}


def _require_name(repo: str) -> None:
    if not _NAME.fullmatch(repo):
        raise UserError(f"'{repo[:200]}' is not a repository name; write owner/name")


def _manifest(repo: str, commit: str, staged: Path) -> dict[str, str]:
    """Return the digests of the files that Fairway reads from a repository."""
    path = _download(repo, commit, MANIFEST, staged, _MOST_MANIFEST_BYTES)
    try:
        said = parse_json(read_bytes(path, _MOST_MANIFEST_BYTES))
    except ValueError as error:
        raise UserError(f"{MANIFEST} of {repo} is not valid JSON ({error})") from None
    files = said.get("files") if isinstance(said, dict) else None
    if not isinstance(files, dict) or not all(isinstance(d, str) for d in files.values()):
        raise UserError(f"{MANIFEST} of {repo} names no files with digests; push the run again")
    if missing := [name for name in (ARTIFACT, TOKENIZER_FILE) if name not in files]:
        raise UserError(f"{MANIFEST} of {repo} has no {missing[0]}; push the run again")
    # The repository may contain other files, which are not downloaded.
    return {name: digest for name, digest in files.items() if name in _MOST_BYTES}


def _download(repo: str, commit: str, name: str, staged: Path, most_bytes: int) -> Path:
    """Download a file of at most this many bytes; its size is asked for before."""
    try:
        size_bytes = get_hf_file_metadata(hf_hub_url(repo, name, revision=commit)).size
        fits = size_bytes is not None and size_bytes <= most_bytes
        path = hf_hub_download(repo, name, revision=commit, local_dir=staged) if fits else ""
    except (HTTPError, OSError, ValueError) as error:
        raise hub_error(error, repo, commit, name) from None
    if not path:
        told = "an unknown size" if size_bytes is None else f"{size_bytes:,} bytes"
        raise UserError(
            f"{name} of {repo} has {told}; Fairway downloads at most {most_bytes:,} bytes of it"
        )
    assert PurePosixPath(name).name == name and Path(path).name == name
    return Path(path)
