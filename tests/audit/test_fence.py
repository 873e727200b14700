"""A record that takes too much is ended, said to be, and does not hide the others."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from audit.record import Case

from fairway.audit.records import audit, fence
from fairway.audit.records.audit import Work
from fairway.audit.records.fence import Reader
from fairway.audit.records.telling import failed, judged, sentence

FIRST = (
    "import sys, json, time, os, signal\n"
    "from fairway.audit.records import serving\n"
    "from fairway.audit.findings import Finding\n"
)
# What becomes of the process, and what is said of it.
ENDS = {
    "spins": ("while True: pass", "within 8 s of processor time"),
    "waits": ("time.sleep(99)", "within 1 s"),
    "dies": ("os._exit(3)", "ended with code 3"),
    "is killed": ("os.kill(os.getpid(), signal.SIGKILL)", "ended with code -9"),
    "says nonsense": ("print('{', flush=True); os._exit(0)", "ended with code 0"),
    "floods": ("print('x' * 3_000_000, flush=True); time.sleep(9)", "more than 1,000,000 bytes"),
    "fails": ("raise KeyError('it')", "KeyError: 'it'"),
    "fills memory": ("x = bytearray(1 << 40)", "MemoryError"),
}


@pytest.mark.parametrize("kind", ENDS)
def test_what_was_found_stays_and_the_end_is_a_finding(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    does, words = ENDS[kind]
    program = (
        f"{FIRST}def findings(path, facts):\n  yield Finding('invalid', 'subset', 'why')\n"
        f"  {does.replace(chr(10), chr(10) + '  ')}\n"
        "serving.findings, serving.MOST_S = findings, 0.2\n"
        "print(file=sys.stderr, flush=True)\nserving.serve()\n"
    )
    monkeypatch.setattr(fence, "MOST_WALL_S", 1.0 if kind == "waits" else 60.0)
    monkeypatch.setattr(fence, "_MOST_SAID_BYTES", 1_000_000)

    def started() -> "subprocess.Popen[bytes]":
        """Return the process once it has imported what it needs: that is not to be waited for."""
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        process = subprocess.Popen([sys.executable, "-c", program], bufsize=0, **pipes)
        assert process.stderr and process.stderr.readline() == b"\n"
        return process

    with monkeypatch.context() as other, Reader() as reader:
        other.setattr(fence, "_started", started)
        found = reader.audit(tmp_path)
    assert {f.code for f in found.findings} == {"subset", "not-audited"}
    assert words in next(f.why for f in found.findings if f.code == "not-audited")
    assert failed(found) and judged(found) == "invalid"


def test_the_next_record_is_audited_whatever_became_of_the_last(tmp_path: Path) -> None:
    good = Case().write(tmp_path / "good")
    with Reader() as reader:
        alone = reader.audit(good)
        first = reader._process
        assert reader.audit(tmp_path / "none").findings[0].code == "not-audited"
        assert reader._process is first
        assert first is not None
        first.kill()
        assert "ended with code -9" in sentence(reader.audit(good))
        again = reader.audit(good)
    assert alone.findings == again.findings == ()
    assert alone.facts == again.facts == audit.audit_record(good).facts
    assert first.poll() is not None


def test_a_part_that_fails_does_not_hide_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deep(*_: object) -> object:
        raise RecursionError("too deep")

    folder = Case().change(42, artifact_bytes=16_020_000).write(tmp_path)
    monkeypatch.setattr(audit, "check_denominators", deep)
    found = audit.audit_record(folder)
    assert {f.code for f in found.findings} == {"over-cap", "not-audited"}
    assert "denominators could not be audited (RecursionError: too deep)" in found.findings[-1].why


def test_the_work_of_one_record_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "Work", lambda: Work(most_s=-1.0))
    found = audit.audit_record(Case().write(tmp_path))
    assert [f.code for f in found.findings] == ["work-ended"]
    assert "logs" in found.findings[0].value and "README" in found.findings[0].value
    assert judged(found) == "not judged"


def test_a_file_that_goes_or_changes_while_it_is_read_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Case().write(tmp_path)
    opened = audit.open_folder

    def late(path: Path) -> object:
        found = opened(path)
        for name in ("train_seed42.log", "README.md", "submission.json", "train_gpt.py"):
            (folder / name).unlink()
        os.mkfifo(folder / "train_seed42.log")
        (folder / "train_seed314.log").write_bytes(b"")
        return found

    monkeypatch.setattr(audit, "open_folder", late)
    start_s = time.monotonic()
    codes = {f.code for f in audit.audit_record(folder).findings}
    assert {"unreadable", "not-audited", "json"} <= codes
    assert time.monotonic() - start_s < 5
