"""What cannot be read is named, and a record without a log that can be read was not judged."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from audit.record import Case
from damage import Cli

from fairway.audit.records.audit import audit_record
from fairway.audit.records.telling import judged, sentence

ENDINGS = ("gz", "zst", "xz", "lzma", "br", "7z", "bz2", "lz4", "zip", "tar")


def moved(folder: Path, how: Callable[[Path], None]) -> list[str]:
    """Write a record, change each of its logs, and return their names."""
    logs = sorted(Case().write(folder).glob("train_seed*.log"))
    for log in logs:
        how(log)
    return [log.name for log in logs]


@pytest.mark.parametrize("ending", [*ENDINGS, "ZST"])
def test_logs_in_archives_are_named(ending: str, tmp_path: Path) -> None:
    names = moved(tmp_path, lambda log: shutil.move(log, f"{log}.{ending}"))
    audit = audit_record(tmp_path)
    closed = [f"{name}.{ending}" for name in names]
    assert [f.file for f in audit.findings if f.code == "archive"] == closed
    (missing,) = (f for f in audit.findings if f.code == "no-log")
    assert missing.value == ", ".join(closed)
    assert "not opened" in missing.why
    assert judged(audit) == "not judged"
    assert sentence(audit) == "could not be judged: no log could be read"


def test_logs_behind_links_are_named(tmp_path: Path) -> None:
    away = tmp_path / "away"
    away.mkdir()

    def linked(log: Path) -> None:
        shutil.move(log, away / log.name)
        log.symlink_to(away / log.name)

    names = moved(tmp_path / "record", linked)
    audit = audit_record(tmp_path / "record")
    (missing,) = (f for f in audit.findings if f.code == "no-log")
    assert missing.value == ", ".join(names)


def test_few_of_many_names_are_listed(tmp_path: Path) -> None:
    for number in range(9):
        (tmp_path / f"run{number}.log.xz").write_bytes(b"x")
    (missing,) = (f for f in audit_record(tmp_path).findings if f.code == "no-log")
    assert missing.value == "run0.log.xz, run1.log.xz, run2.log.xz, run3.log.xz and 5 more"


def test_a_record_with_a_log_is_judged_and_its_archives_are_notes(tmp_path: Path) -> None:
    folder = Case().write(tmp_path)
    (folder / "train_gpt.py.lzma").write_bytes(b"x")
    audit = audit_record(folder)
    assert [(f.severity, f.code, f.file) for f in audit.findings] == [
        ("note", "archive", "train_gpt.py.lzma")
    ]
    assert judged(audit) == "clean"


@pytest.mark.parametrize(
    ("how", "code"),
    [
        (lambda log: shutil.move(log, f"{log}.zst"), 2),
        (lambda log: shutil.move(log, f"{log}.gz"), 2),
        (os.unlink, 2),
        (lambda log: log.write_text("nothing of a run\n"), 2),
        # One log is enough to judge; the claimed seeds without a log are asked about.
        (lambda log: None if "314" in log.name else shutil.move(log, f"{log}.zst"), 0),
        (lambda log: None, 0),
    ],
)
def test_the_exit_code_says_whether_a_record_was_judged(
    how: Callable[[Path], None], code: int, cli: Cli, tmp_path: Path
) -> None:
    moved(tmp_path / "record", how)
    found = cli("audit-record", str(tmp_path / "record"))
    assert found.code == code
    assert ("could not be judged: no log could be read" in found.out) == (code == 2)


def test_what_is_invalid_without_a_log_is_still_invalid(cli: Cli, tmp_path: Path) -> None:
    moved(tmp_path / "record", os.unlink)
    (tmp_path / "record/final_model.ptz").write_bytes(bytes(16_500_000))
    assert cli("audit-record", str(tmp_path / "record")).code == 1
    Case().write(tmp_path / "other")
    (tmp_path / "record/final_model.ptz").unlink()
    assert cli("audit-record", str(tmp_path / "other"), str(tmp_path / "record")).code == 2
    assert cli("audit-record", str(tmp_path / "other/train_gpt.py")).code == 0
