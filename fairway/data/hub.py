"""Downloads the challenge's published shards and tokenizer from the Hugging Face Hub.

The usual repository for SP8192 has shards in `datasets/datasets/fineweb10B_sp8192/` and tokenizers
in `datasets/tokenizers/` (field notes of #1394 and later records). A fetched folder is flat, and
its `fetch.json` has the commit and the digest of every file.
"""

import hashlib
import re
import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from fairway.base.endings import why_unwritten
from fairway.base.errors import UserError
from fairway.base.files import digest_file, read_json, write_json
from fairway.base.folders import behind, held, locked_folder
from fairway.base.units import megabytes
from fairway.data.manifest import FETCHED, TOKENIZER, UNFINISHED
from fairway.data.shards import open_shard
from fairway.data.tokens import Tokenizer

REPO = "kevclark/parameter-golf"
DATASET = "fineweb10B_sp8192"
TOKENIZER_FILE = "fineweb_8192_bpe.model"
_STAGING = ".fetch"
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class _Remote:
    """A file of the repository: its path, its local name, and its size and digests."""

    path: str
    name: str
    size_bytes: int
    sha256: str | None
    git_blob: str | None


def fetch(
    out: Path,
    *,
    repo: str = REPO,
    revision: str = "main",
    dataset: str = DATASET,
    tokenizer: str = TOKENIZER_FILE,
    shards: int = 1,
    expected: dict[str, str] | None = None,
    new_commit: bool = False,
) -> dict[str, Any]:
    """Download training shards, all validation shards and the tokenizer; return the record.

    `revision` is resolved to a commit first, and all files come from that commit. Existing correct
    files are kept, so an interrupted fetch continues at the file where it stopped. `expected` pins
    SHA-256 by local file name, in addition to the repository's own digests. Progress is the Hub
    library's own bar for each file.

    Raises UserError when offline, for an unknown repository, revision or file, a damaged download,
    a full disk, a folder with other content, a folder that another process fetches into, or one
    that was fetched from another commit (unless `new_commit`).
    """
    if out.exists() and not (out.is_dir() and (_is_fetched(out) or not held(out))):
        raise UserError(f"{out} holds something other than fetched data; name another folder")
    folder = behind(out)
    commit, files = _list_files(repo, revision)
    before = _recorded(out, repo, commit, new_commit)
    wanted = _select(files, repo, dataset, tokenizer, shards, set(before))
    _check_expected(wanted, expected or {})
    _check_space(out, wanted)
    record = {"repo": repo, "revision": revision, "commit": commit, "dataset": dataset}
    digests = {file.name: file.sha256 or "" for file in wanted}
    folder.mkdir(parents=True, exist_ok=True)
    with locked_folder(folder):
        # Written first as well, so that an incomplete folder, or one of two commits, is refused.
        write_json(folder / FETCHED, {**record, UNFINISHED: True, "files": digests})
        for file in wanted:
            pinned = (expected or {}).get(file.name)
            digests[file.name] = _fetch_file(folder, repo, commit, file, pinned)
        shutil.rmtree(folder / _STAGING, ignore_errors=True)
        write_json(folder / FETCHED, {**record, "files": digests})
    return {**record, "files": digests}


def _list_files(repo: str, revision: str) -> tuple[str, list[_Remote]]:
    """Return the commit of a revision and all its files."""
    try:
        info = HfApi().dataset_info(repo, revision=revision, files_metadata=True)
    except (HTTPError, HFValidationError, OSError) as error:
        raise hub_error(error, repo, revision, kind="dataset") from None
    if not info.sha or not _COMMIT.fullmatch(info.sha):
        raise UserError(f"the Hub names no commit for {repo} at '{revision}'; try again later")
    return info.sha, [
        _Remote(
            path=item.rfilename,
            name=PurePosixPath(item.rfilename).name,
            size_bytes=item.size or 0,
            sha256=item.lfs.sha256 if item.lfs else None,
            git_blob=item.blob_id,
        )
        for item in info.siblings or []
        # A path with '..' would be written outside the folder.
        if ".." not in PurePosixPath(item.rfilename).parts
    ]


def _select(
    files: list[_Remote], repo: str, dataset: str, tokenizer: str, shards: int, kept: set[str]
) -> list[_Remote]:
    """Return the tokenizer, the validation shards and the first training shards, in this order."""
    inside = [file for file in files if PurePosixPath(file.path).parent.name == dataset]
    inside = sorted((f for f in inside if f.name.endswith(".bin")), key=lambda f: f.name)
    val = [f for f in inside if "_val_" in f.name and "_bytes_" not in f.name]
    train = [f for f in inside if "_train_" in f.name]
    models = [file for file in files if file.name == tokenizer]
    if not val or not train:
        known = {PurePosixPath(f.path).parent.name for f in files if f.name.endswith(".bin")}
        listed = ", ".join(sorted(known)) or "none"
        raise UserError(f"{repo} has no complete data set '{dataset}'; it has {listed}")
    if len(models) != 1:
        raise UserError(f"{repo} has {len(models)} files named {tokenizer}; expected one")
    if len({file.name for file in inside}) < len(inside):
        raise UserError(f"{repo} has two files of one name in folders named '{dataset}'")
    if not 1 <= shards <= len(train):
        raise UserError(f"{shards} training shards were requested; {repo} has 1 to {len(train)}")
    model = _Remote(**{**vars(models[0]), "name": TOKENIZER})
    more = [file for file in train[shards:] if file.name in kept]
    return [model, *val, *train[:shards], *more]


def _fetch_file(out: Path, repo: str, commit: str, file: _Remote, expected: str | None) -> str:
    """Return the SHA-256 of a file in `out`, after downloading it if necessary."""
    final = out / file.name
    if final.exists() and _is_right(final, file, expected):
        return digest_file(final)
    try:
        staged = Path(
            hf_hub_download(
                repo, file.path, repo_type="dataset", revision=commit, local_dir=out / _STAGING
            )
        )
    except (HTTPError, OSError, ValueError) as error:
        raise hub_error(error, repo, commit, kind="dataset") from None
    if not _is_right(staged, file, expected):
        found = digest_file(staged)
        staged.unlink()
        raise UserError(
            f"{file.path} of {repo} arrived damaged (SHA-256 {found}, expected "
            f"{expected or file.sha256 or 'git blob ' + str(file.git_blob)}); fetch it again"
        )
    _check_content(staged)
    staged.replace(final)
    return digest_file(final)


def _is_right(path: Path, file: _Remote, expected: str | None) -> bool:
    digest = digest_file(path)
    if (expected or digest) != digest:
        return False
    if file.sha256:
        return digest == file.sha256
    return file.git_blob is None or _git_blob(path) == file.git_blob


def _git_blob(path: Path) -> str:
    """Return git's name for a file's content; the Hub gives it for small files."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\x00" % len(data) + data, usedforsecurity=False).hexdigest()


def _check_content(path: Path) -> None:
    if path.suffix == ".bin":
        open_shard(path)
    else:
        Tokenizer.load(path)


def _is_fetched(out: Path) -> bool:
    return (out / FETCHED).exists()


def _recorded(out: Path, repo: str, commit: str, new_commit: bool) -> dict[str, str]:
    """Return the files of an earlier fetch; refuse to mix two commits unless allowed."""
    if not _is_fetched(out):
        return {}
    record = read_json(out / FETCHED)
    if not isinstance(record, dict) or not isinstance(record.get("files"), dict):
        raise UserError(f"{out / FETCHED} is damaged; remove the folder and fetch again")
    if (record.get("repo"), record.get("commit")) != (repo, commit) and not new_commit:
        raise UserError(
            f"{out} was fetched from {record.get('repo')} at {record.get('commit')}, not from "
            f"{repo} at {commit}; name another folder, or use --new-commit"
        )
    return dict(record["files"])


def _check_expected(wanted: list[_Remote], expected: dict[str, str]) -> None:
    for file in wanted:
        pinned = expected.get(file.name)
        if pinned and file.sha256 and pinned != file.sha256:
            raise UserError(
                f"{file.path} has SHA-256 {file.sha256} on the Hub, but {pinned} is expected; "
                "the published file has changed"
            )


def _check_space(out: Path, wanted: list[_Remote]) -> None:
    missing = sum(file.size_bytes for file in wanted if not (out / file.name).exists())
    folder = next(parent for parent in (out, *out.absolute().parents) if parent.exists())
    free = shutil.disk_usage(folder).free
    if missing > free:
        raise UserError(
            f"{megabytes(missing)} must be fetched, but {folder} has {megabytes(free)} free"
        )


def hub_error(
    error: Exception, repo: str, revision: str = "", file: str = "", kind: str = "model"
) -> UserError:
    """Return an error of the Hub library as one sentence.

    `kind` of repository is model or dataset. A missing `file` was never pushed.
    """
    if isinstance(error, GatedRepoError):
        return UserError(f"{repo} is gated; accept its terms and log in with `hf auth login`")
    if isinstance(error, RepositoryNotFoundError):
        return UserError(f"there is no {kind} repository '{repo}' on the Hub, or it is private")
    if isinstance(error, RevisionNotFoundError):
        return UserError(f"{repo} has no revision '{revision}'")
    status = getattr(getattr(error, "response", None), "status_code", None)
    if kind == "model" and (isinstance(error, LocalTokenNotFoundError) or status == 401):
        return UserError(f"writing to {repo} needs an account; log in with `hf auth login`")
    if file and status == 404 and isinstance(error, HfHubHTTPError):
        return UserError(f"{repo} has no {file}; it was not made by `fairway push`")
    if isinstance(error, HfHubHTTPError):
        return UserError(f"the Hub refused {repo}: {str(error).splitlines()[0]}")
    if isinstance(error, HFValidationError):
        return UserError(f"'{repo}' is not a repository name; write owner/name")
    offline = isinstance(error, LocalEntryNotFoundError)
    if kind == "dataset" and isinstance(error, OSError) and error.errno and not offline:
        return UserError(f"cannot store files of {repo}: {''.join(why_unwritten(error))}")
    again = "fetch again: what has arrived is kept" if kind == "dataset" else "try again"
    return UserError(
        f"cannot reach the Hub for {repo} ({type(error).__name__}); check the connection, or "
        f"HF_ENDPOINT, and {again}"
    )
