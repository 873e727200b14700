"""Whatever a record holds, reading it takes seconds and ends with findings, never with a trace."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from audit.hostile import HOSTILE
from audit.record import Case

from fairway.audit.records import folder as folder_module
from fairway.audit.records.audit import audit_record
from fairway.audit.records.fence import Reader
from fairway.audit.records.telling import grouped, sentence
from fairway.cli.show import record_lines

# 8 s of processor time, on a machine with the work of others.
MOST_WALL_S = 60.0


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    with Reader() as made:
        yield made


@pytest.mark.parametrize("kind", HOSTILE)
def test_reading_ends_in_time_and_every_part_was_read(
    kind: str, tmp_path: Path, reader: Reader
) -> None:
    folder = Case().write(tmp_path)
    HOSTILE[kind](folder)
    start_s = time.monotonic()
    found = reader.audit(folder)
    assert time.monotonic() - start_s < MOST_WALL_S
    assert "not-audited" not in {finding.code for finding in found.findings}, sentence(found)
    text = "\n".join(record_lines(grouped(found.findings)))
    assert not set(text) & {"\x1b", "\u202e", "\0"}
    json.dumps(found.facts)


@pytest.mark.parametrize("kind", ["UTF-16", "UTF-16 without a mark", "carriage returns"])
def test_a_log_is_read_whatever_its_encoding_and_ends_of_lines(kind: str, tmp_path: Path) -> None:
    plain = audit_record(Case().write(tmp_path / "plain")).facts
    folder = Case().write(tmp_path / "other")
    HOSTILE[kind](folder)
    found = audit_record(folder)
    assert not [f for f in found.findings if f.severity != "note"]
    assert (found.facts["seeds"], found.facts["stages"]) == (plain["seeds"], plain["stages"])


@pytest.mark.parametrize("kind", ["digits", "words", "blanks", "brackets", "namespace"])
def test_a_line_that_is_not_read_to_its_end_is_told(kind: str, tmp_path: Path) -> None:
    folder = Case().write(tmp_path)
    HOSTILE[kind](folder)
    found = {f.code: f for f in audit_record(folder).findings}["long-line"]
    lines = (folder / "train_seed42.log").read_bytes().split(b"\n")
    assert found.line is not None
    assert found.value == f"{max(map(len, lines)):,} bytes"
    assert len(lines[found.line - 1]) == max(map(len, lines))


def test_the_longest_line_is_found_over_the_ends_of_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_module, "_BLOCK_BYTES", 4)
    (tmp_path / "a").write_bytes(b"ab\n\ncdefghijkl\nmn\nopqrst")
    file = folder_module.open_file(tmp_path / "a").files[0]
    assert folder_module.longest_line(file, 1_000) == (3, 10)
    (tmp_path / "a").write_bytes(b"")
    assert folder_module.longest_line(file, 1_000) == (1, 0)


def test_of_files_with_one_name_the_outer_counts(tmp_path: Path) -> None:
    folder = Case().write(tmp_path)
    Case(claim={"val_bpb": 0.5}).write(folder / "a_reference")
    assert audit_record(folder).facts["claims"]["bpb"] == pytest.approx(1.081, abs=1e-4)
