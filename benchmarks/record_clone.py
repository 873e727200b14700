"""Record folders out of a clone of the challenge's repository: by git's plumbing alone.

Only pull requests with even numbers, and merged folders of even days: the other half is for whoever
tests a checker that was made with this one.
"""

import os
import re
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

TRACKS = ("track_10min_16mb", "track_non_record_16mb")
# Models are as large as the challenge allows, and no checker of texts opens them.
MOST_BYTES = 4 << 20
# A pull request that touches more folders moves or copies them.
_MOST_FOLDERS = 12


@dataclass(frozen=True, slots=True)
class Origin:
    """A folder of a pull request (0: merged) at a revision ('head' or a commit), by its path."""

    pull: int
    revision: str
    path: str

    @property
    def name(self) -> str:
        """Return the folder's place below the folder of all, and its name in answers."""
        inner = self.path.removeprefix("records/")
        return f"pr/{self.pull}/{self.revision}/{inner}" if self.pull else f"merged/{inner}"


class Clone:
    """A clone whose objects are read; nothing in it is changed."""

    def __init__(self, path: Path) -> None:
        self._git = ["git", "-C", str(path)]
        self._blobs = subprocess.Popen(
            [*self._git, "cat-file", "--batch"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.main = self._text("rev-parse", "HEAD").strip()
        merges = self._text("rev-list", "--merges", "--parents", self.main)
        # By what was merged: what it was merged into.
        self._merged = {
            words[2]: words[1] for words in map(str.split, merges.splitlines()) if len(words) == 3
        }

    def _text(self, *words: str) -> str:
        done = subprocess.run([*self._git, *words], capture_output=True)
        return done.stdout.decode("utf-8", "surrogateescape") if done.returncode == 0 else ""

    def pulls(self) -> list[int]:
        """Return the even numbers of pull requests."""
        refs = self._text("for-each-ref", "--format=%(refname)", "refs/pull")
        numbers = {int(n) for n in re.findall(r"^refs/pull/(\d+)/head$", refs, re.MULTILINE)}
        return sorted(n for n in numbers if n % 2 == 0)

    def merged(self) -> Iterator[Origin]:
        """Yield the merged folders whose date is an even day."""
        for track in TRACKS:
            names = self._text("ls-tree", "-d", "--name-only", self.main, f"records/{track}/")
            for name in names.splitlines():
                day = re.search(r"/\d{4}-\d\d-(\d\d)", name)
                if day and int(day[1]) % 2 == 0:
                    yield Origin(0, "head", name)

    def folders(self, pull: int, revision: str = "head") -> list[Origin]:
        """Return the folders of records that a pull request adds or changes, as of a revision."""
        head = f"refs/pull/{pull}/head"
        commit = head if revision == "head" else revision
        changed = self._text(
            "diff",
            "--name-only",
            "--diff-filter=AM",
            "-z",
            self._base(head),
            commit,
            "--",
            "records",
        )
        parts = [name.split("/") for name in changed.split("\0")]
        paths = sorted({"/".join(part[:3]) for part in parts if len(part) > 3})
        return [] if len(paths) > _MOST_FOLDERS else [Origin(pull, revision, p) for p in paths]

    def _base(self, head: str) -> str:
        """Return the commit that a pull request began from."""
        commit = self._text("rev-parse", head).strip()
        onto = self._merged.get(commit, self.main)
        return self._text("merge-base", onto, head).strip() or self.main

    def write(self, origin: Origin, below: Path) -> Path:
        """Write a folder's files below a folder of all, unless it is there; return its path."""
        if origin.pull == 0:
            commit = self.main
        else:
            commit = origin.revision
            commit = f"refs/pull/{origin.pull}/head" if commit == "head" else commit
        place = below / origin.name
        if place.exists():
            return place
        place.mkdir(parents=True)
        for name, blob in self._files(commit, origin.path):
            file = place / os.path.relpath(name, origin.path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(self._blob(blob))
        return place

    def _files(self, commit: str, path: str) -> Iterator[tuple[str, str]]:
        """Yield name and blob of the regular files of a folder that are not too large."""
        listed = self._text("ls-tree", "-r", "-l", "-z", commit, "--", f"{path}/")
        for entry in filter(None, listed.split("\0")):
            facts, name = entry.split("\t", 1)
            mode, kind, blob, size = facts.split()
            # A mirror may lack the largest files, whose size git then calls BAD.
            small = size.isdigit() and int(size) < MOST_BYTES
            if kind == "blob" and mode != "120000" and small and ".." not in name.split("/"):
                yield name, blob

    def _blob(self, blob: str) -> bytes:
        assert self._blobs.stdin and self._blobs.stdout
        self._blobs.stdin.write(f"{blob}\n".encode())
        self._blobs.stdin.flush()
        words = self._blobs.stdout.readline().split()
        if len(words) != 3:
            return b""
        data = self._blobs.stdout.read(int(words[2]) + 1)
        return data[:-1]

    def close(self) -> None:
        """End git."""
        self._blobs.kill()
        self._blobs.wait()


def chosen(clone: Clone, revisions: Iterable[tuple[int, str]], every: int) -> list[Origin]:
    """Return the folders to check: heads and merged ones, of them every so many, and revisions."""
    heads = [origin for pull in clone.pulls() for origin in clone.folders(pull)]
    heads += clone.merged()
    labelled = set(revisions)
    wanted = [
        origin
        for number, origin in enumerate(heads)
        if number % every == 0 or (origin.pull, "head") in labelled
    ]
    for pull, revision in sorted(labelled):
        if revision != "head":
            wanted += clone.folders(pull, revision)
    return wanted
