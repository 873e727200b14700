import json
import os
import tracemalloc
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from streams import piped

from fairway.base.errors import UserError
from fairway.data.documents import REASONS, LeftOut, document_key, told
from fairway.data.sources import read_documents


def read(*paths: Path) -> list[tuple[str, str]]:
    return [(document.name, document.text) for document in read_documents(list(paths))]


def json_lines(*texts: str) -> bytes:
    return b"".join(json.dumps({"text": text, "id": 3}).encode() + b"\n" for text in texts)


def parquet(path: Path, **columns: list[object]) -> None:
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def test_every_kind_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffcaf\u00e9\r\nend\n".encode())
    (tmp_path / "B.MD").write_text("# title")
    (tmp_path / "c.jsonl").write_bytes(
        b"\xef\xbb\xbf" + json_lines("one") + b"\n" + json_lines("two")
    )
    (tmp_path / "d.jsonl.zst").write_bytes(
        zstandard.compress(json_lines("three")) + zstandard.compress(json_lines("four"))
    )
    parquet(tmp_path / "e.parquet", id=[1, 2, 3], text=["five", None, "six"])
    assert read(tmp_path / "a.txt", tmp_path) == [
        ("a.txt", "\ufeffcaf\u00e9\r\nend\n"),
        ("B.MD", "# title"),
        ("a.txt", "\ufeffcaf\u00e9\r\nend\n"),
        ("c.jsonl:1", "one"),
        ("c.jsonl:3", "two"),
        ("d.jsonl.zst:1", "three"),
        ("d.jsonl.zst:2", "four"),
        ("e.parquet:1", "five"),
        ("e.parquet:3", "six"),
    ]


ODD_TEXTS = [
    "one\r\ntwo\r\n",
    "one\rtwo\r",
    "\ufeffmarked",
    "tabs\t\x0b\x0c\x00\x1f\x7f\x85 end \n\n",
    "lines\u2028and\u2029more\n",
    "e\u0301 is not \u00e9, \ufb01 not fi, \uff21 not A",
    "\U0001f600 \u05e9\u05dc\u05d5\u05dd \u200b\u00a0\u3000",
    "",
    "\r\n",
]


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_a_text_is_the_same_in_every_kind_of_file(tmp_path: Path, text: str) -> None:
    line = json.dumps({"text": text}).encode()
    raw_line = json.dumps({"text": text}, ensure_ascii=False).encode() + b"\r\n"
    (tmp_path / "a.txt").write_bytes(text.encode())
    (tmp_path / "b.md").write_bytes(text.encode())
    (tmp_path / "c.jsonl").write_bytes(line)
    (tmp_path / "d.jsonl").write_bytes(b"\xef\xbb\xbf" + raw_line)
    (tmp_path / "e.jsonl.zst").write_bytes(zstandard.compress(line + b"\n"))
    parquet(tmp_path / "f.parquet", text=[text])
    assert [found for _, found in read(tmp_path)] == [text] * 6


NUMBERS = [b"9" * 5000, b"-" + b"1" * 100_000, b"1e999", b"NaN", b"-Infinity", b"[1e400, {}]"]


@pytest.mark.parametrize("number", NUMBERS)
def test_numbers_beside_a_text_do_not_matter(tmp_path: Path, number: bytes) -> None:
    (tmp_path / "a.jsonl").write_bytes(
        b'{"id": ' + number + b', "text": "taken", "b": {"text": 1}}'
    )
    assert read(tmp_path) == [("a.jsonl:1", "taken")]


def test_null_texts_are_counted_in_both_kinds(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": null}\n{"text": "one"}\n\n{"text": null}')
    parquet(tmp_path / "b.parquet", text=[None, "two", None, None])
    parquet(tmp_path / "c.parquet", text=[None])
    left_out = LeftOut()
    found = [document.name for document in read_documents([tmp_path], left_out)]
    assert found == ["a.jsonl:2", "b.parquet:2"] and left_out["null_text"] == 6
    assert told(left_out) == "left out: rows or lines whose text is null (6)"


def test_what_a_folder_holds_besides_is_counted(tmp_path: Path) -> None:
    top = tmp_path / "top"
    for name in ("a.txt", "b/c.txt", "b/.hidden.txt", ".git/x.txt", "b/d.py", "e.json", "f.TXT.gz"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(name)
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "z.md").write_text("far")
    (top / "linked").symlink_to(tmp_path / "far")
    (top / "linked.txt").symlink_to(tmp_path / "far" / "z.md")
    (top / "again").symlink_to(top / "b")
    (top / "up").symlink_to(tmp_path)
    (top / "b" / "loop").symlink_to("..")
    (top / "self").symlink_to("self")
    (top / "dead.txt").symlink_to("nowhere")
    os.mkfifo(top / "pipe.txt")
    left_out = LeftOut()
    names = [document.name for document in read_documents([top], left_out)]
    assert names == ["a.txt", "b/c.txt", "linked.txt", "linked/z.md"]
    assert +left_out == {
        "hidden": 2,
        "unknown_kind": 3,
        "linked_again": 3,
        "broken_link": 2,
        "not_a_file": 1,
    }
    assert set(left_out) <= set(REASONS)


def test_names_that_are_not_utf8_are_written_as_bytes(tmp_path: Path) -> None:
    for name in (b"caf\xe9/a.txt", b"b\xff\xfe.txt"):
        path = tmp_path / "corpus" / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("text")
    names = [document.name for document in read_documents([tmp_path / "corpus"])]
    assert names == ["b\\xff\\xfe.txt", "caf\\xe9/a.txt"]
    assert len({document_key(d) for d in read_documents([tmp_path / "corpus"])}) == 2


def test_folders_are_searched_in_order_without_hidden_files(tmp_path: Path) -> None:
    for name in ("b/z.txt", "b/a.txt", "a.txt", ".git/x.txt", "b/.x.txt", "c.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert [name for name, _ in read(tmp_path)] == ["a.txt", "b/a.txt", "b/z.txt"]


def test_lines_may_be_longer_than_one_read(tmp_path: Path) -> None:
    texts = ["x" * 3_000_000, "y", "z" * 1_100_000]
    (tmp_path / "a.jsonl").write_bytes(json_lines(*texts)[:-1])
    assert [text for _, text in read(tmp_path)] == texts


@pytest.mark.long
def test_a_stream_is_not_held_in_memory(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(json_lines("x" * 1000) * 30_000))
    tracemalloc.start()
    assert sum(1 for _ in read_documents([tmp_path])) == 30_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 15_000_000


BAD_LINES = [
    (b"{", "line 2 is not JSON"),
    (b"[1]", "line 2 has no text: it is not a JSON object"),
    (b'{"txt": "a", "b": 1}', "line 2 has no field \"text\": its fields are 'txt, b'"),
    (b"{}", "line 2 has no text: it is empty"),
    (b'{"text": 3}', 'line 2 has no text: the field "text" is not a string'),
    (b'{"text": "\\ud800"}', "line 2 has half a character"),
    (b'{"text": "\xff"}', "line 2 is not UTF-8"),
    (b"[" * 100_000, "line 2 is not JSON: nested too deeply"),
    (b'{"text": "a"}{"text": "b"}', "line 2 is not JSON: more than one value on a line"),
    (b'{"text": "a", "text": "b"}', r'line 2 has 2 fields "text"'),
    (b'{"text": ' + b"9" * 5000 + b"}", "line 2 has no text"),
    (b'{"text": ["a"]}', "line 2 has no text"),
    (b'{"meta": {"text": "a"}}', 'line 2 has no field "text"'),
    (b"\xff\xfe{", "line 2 is not UTF-8"),
    (b'\xef\xbb\xbf{"text": "a"}', "line 2 is not JSON"),
]


@pytest.mark.parametrize(("line", "sentence"), BAD_LINES)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, sentence: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(json_lines("good") + line + b"\n")
    with pytest.raises(UserError, match=rf"a\.jsonl {sentence}"):
        read(tmp_path)


def test_text_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\ntwo\ncaf\xe9\n")
    with pytest.raises(UserError, match=r"a\.txt is not UTF-8 \(line 3\)"):
        read(tmp_path)


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:-9], lambda raw: raw + b"?", lambda raw: b"no"]
)
def test_damaged_zstandard_is_refused(tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    raw = zstandard.compress(json_lines(*map(str, range(5000))))
    (tmp_path / "a.jsonl.zst").write_bytes(damage(raw))
    with pytest.raises(UserError, match=r"cannot read .*a\.jsonl\.zst"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"body": ["a"], "id": [1]}, "no column 'text'; it has body, id"),
        ({"text": [1]}, "holds int64"),
    ],
)
def test_parquet_without_text_is_refused(tmp_path: Path, columns, sentence: str) -> None:  # type: ignore[no-untyped-def]
    parquet(tmp_path / "a.parquet", **columns)
    with pytest.raises(UserError, match=sentence):
        read(tmp_path)


@pytest.mark.parametrize("at", [4, 30, -9, -1])
def test_damaged_parquet_is_refused(tmp_path: Path, at: int) -> None:
    parquet(tmp_path / "a.parquet", text=["some text"] * 100)
    raw = bytearray((tmp_path / "a.parquet").read_bytes())
    raw[at] ^= 0xFF
    (tmp_path / "a.parquet").write_bytes(raw)
    with pytest.raises(UserError, match=r"a\.parquet"):
        read(tmp_path)


def test_a_stream_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a file")
    with piped("a stréam\r\n".encode()) as path:
        assert read(path, tmp_path / "a.txt") == [(path.name, "a stréam\r\n"), ("a.txt", "a file")]
    with piped(b"two\nl\xffnes") as path, pytest.raises(UserError, match=r"not UTF-8 \(line 2\)"):
        read(path)


def test_paths_that_lead_nowhere_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").touch()
    with pytest.raises(UserError, match="does not exist"):
        read(tmp_path / "none")
    os.mkfifo(tmp_path / ".pipe.txt")
    with pytest.raises(UserError, match="it is a pipe, not a file; write its content to a file"):
        read(tmp_path / ".pipe.txt")
    with pytest.raises(UserError, match=r"a\.pdf has an unknown ending"):
        read(tmp_path / "a.pdf")
    with pytest.raises(UserError, match="no text in the folder"):
        read(tmp_path)


def test_an_unreadable_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").touch()

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(UserError, match=r"cannot read .*a\.txt: Permission denied"):
        read(tmp_path)
