"""Compressed files: any bytes come back, none grow by much, and nothing damaged is decoded."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from damage import run_command
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from streams import piped

from fairway.base.errors import UserError
from fairway.data.folder import DataFolder
from fairway.prove.archive import compress, decompress
from fairway.prove.coding import Session
from fairway.prove.container import PREFIX_BYTES, PROOF, Header, coded_file, open_coded, open_file

FIXED = "--set runtime.threads=1 --set runtime.dtype=float32 --set runtime.matmul=highest"
TEXT = (
    "The model predicts a token.  It\r\nlearns \u2581 every byte that is in the text.\n" * 14
).encode()
# Long enough to pay for its header.
SHORT = TEXT[:700]


@pytest.mark.long
@settings(
    max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.one_of(st.binary(max_size=300), st.text(max_size=120).map(str.encode)))
def test_any_bytes_come_back(session: Session, artifact: Path, data: bytes) -> None:
    file = compress(data, session, 8)
    assert decompress(file, artifact, None) == data
    assert len(file) <= len(data) + PREFIX_BYTES


@pytest.mark.parametrize("data", [b"", random.Random(1).randbytes(900)], ids=["empty", "noise"])
def test_what_does_not_pay_is_stored(session: Session, artifact: Path, data: bytes) -> None:
    file = compress(data, session, 8)
    assert len(file) == len(data) + PREFIX_BYTES
    assert decompress(file, artifact, None) == data


def test_long_noise_is_not_even_walked(
    session: Session, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Session, "encode", None)
    noise = random.Random(2).randbytes(5000)
    assert decompress(compress(noise, session, 8), artifact, None) == noise
    with pytest.raises(TypeError):
        compress(TEXT * 8, session, 8)


@pytest.mark.long
def test_text_is_coded_in_several_streams(session: Session, artifact: Path) -> None:
    file = compress(TEXT, session, 2)
    header, _ = open_coded(open_file(file)[1])
    assert len(header.targets) == 2 and max(header.targets) - min(header.targets) <= 1
    assert len(file) < 0.8 * len(TEXT)
    assert decompress(file, artifact, None) == TEXT


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)

    def call(line: str) -> tuple[int, str, str]:
        return run_command(line.split(), capsys, monkeypatch)

    return call


@pytest.mark.long
def test_the_verbs(cli, artifact: Path) -> None:  # type: ignore[no-untyped-def]
    Path("a.txt").write_bytes(SHORT)
    code, out, err = cli(f"compress a.txt --artifact {artifact} --compare --json {FIXED}")
    assert code == 0, err
    facts = json.loads(out)
    assert (
        facts["bytes"] == len(SHORT)
        and facts["compressed_bytes"] == Path("a.txt.fwz").stat().st_size
    )
    assert set(facts["others"]) == {"xz -9e", "brotli -11", "zstd -19", "PPMd, order 16"}
    for line, told in (
        (f"decompress a.txt --artifact {artifact}", "does not end in .fwz"),
        (f"decompress a.txt --artifact {artifact} --out b", "a.txt: it was not written by"),
        ("decompress a.txt.fwz --artifact nowhere --out b", "nowhere does not exist"),
        (f"compress nowhere --artifact {artifact}", "nowhere"),
        (
            f"compress a.txt --artifact {artifact} --out b --set score.stride=3",
            "set only runtime",
        ),
    ):
        code, _, err = cli(line)
        assert (code, err[:9], err.count("\n")) == (2, "fairway: ", 1), err
        assert told in err
    assert not Path("b").exists()
    code, out, err = cli(f"decompress a.txt.fwz --artifact {artifact} --out b")
    assert (code, Path("b").read_bytes()) == (0, SHORT), err


def test_only_a_file_of_the_same_content_is_replaced(cli, artifact: Path) -> None:  # type: ignore[no-untyped-def]
    """Archives of single bytes are stored, so no model is walked."""
    Path("a").write_bytes(b"a")
    code = f"compress a --artifact {artifact} {FIXED}"
    back = f"decompress a.fwz --artifact {artifact}"
    for line in (code, code, f"{code} --out b.fwz", f"{code} --out b.fwz", back, f"{back} --out c"):
        assert cli(line)[0] == 0, line
    assert cli(f"{back} --out c")[0] == 0 and Path("c").read_bytes() == b"a"
    kept = Path("a.fwz").read_bytes()
    Path("a").write_bytes(b"b")
    for line, name in ((code, "a.fwz"), (f"{code} --out b.fwz", "b.fwz"), (back, "a")):
        ended, _, err = cli(line)
        assert ended == 2 and f"{name} exists already, and holds something else; name" in err
    assert Path("a.fwz").read_bytes() == Path("b.fwz").read_bytes() == kept
    Path("a.fwz").write_bytes(kept[:-1])
    assert cli(code)[0] == 2 and Path("a").read_bytes() == b"b"
    Path("a.fwz").write_bytes(b"")
    assert cli(code)[0] == 0
    with piped(Path("b.fwz").read_bytes()) as path:
        assert cli(f"decompress {path} --artifact {artifact} --out c")[0] == 0


def test_streams_come_back(cli, artifact: Path) -> None:  # type: ignore[no-untyped-def]
    with piped(SHORT) as path:
        code, _, err = cli(f"compress {path} --artifact {artifact} --out a.fwz {FIXED}")
    assert code == 0, err
    with piped(Path("a.fwz").read_bytes()) as path:
        code, _, err = cli(f"decompress {path} --artifact {artifact} --out b")
    assert (code, Path("b").read_bytes()) == (0, SHORT), err
    with piped(SHORT) as path:
        code, _, err = cli(f"compress {path} --artifact {artifact} {FIXED}")
    assert (code, err.count("\n")) == (2, 1) and "name the file with --out" in err


@pytest.mark.parametrize("text", [b"", b"a", b"\xff\n"])
def test_a_file_that_does_not_shrink_is_told_so(cli, artifact: Path, text: bytes) -> None:  # type: ignore[no-untyped-def]
    Path("a.txt").write_bytes(text)
    code, out, err = cli(f"compress a.txt --artifact {artifact} {FIXED}")
    size = Path("a.txt.fwz").stat().st_size
    told = f"a.txt.fwz: {len(text)} to {size} bytes (no shorter: too few bytes, or bytes that the "
    assert code == 0 and out.startswith(told) and "%" not in out, err


def test_prove_by_words(cli, artifact: Path) -> None:  # type: ignore[no-untyped-def]
    Path("a.txt").write_text("The model predicts a token.")
    code, out, err = cli(f"prove {artifact} a.txt --bytes 9 --out p {FIXED}")
    assert code == 0, err
    assert "9 bytes of text" in out
    code, _, err = cli(f"prove --decode p --artifact {artifact} --out b.txt")
    assert (code, Path("b.txt").read_text()) == (0, "The model"), err
    assert cli(f"prove --decode p --artifact {artifact} --out b.txt")[0] == 0
    code, _, err = cli(f"prove --decode p --artifact {artifact} --out a.txt")
    assert code == 2 and "a.txt exists already, and holds something else" in err
    assert Path("a.txt").read_text() == "The model predicts a token."
    for line in (
        "prove --out x",
        f"prove {artifact} --out x",
        f"prove {artifact} a.txt --decode p --artifact {artifact} --out x",
        "prove --decode p --out x",
    ):
        assert cli(line)[0] == 2
    code, _, err = cli(f"decompress p --artifact {artifact} --out x")
    assert "it is a proof; restore it with fairway prove --decode" in err
    assert not Path("x").exists()


def test_the_validation_text_of_a_data_folder(cli, artifact: Path, data_folder: Path) -> None:  # type: ignore[no-untyped-def]
    code, out, err = cli(f"prove {artifact} {data_folder} --bytes 50 --out p {FIXED}")
    assert code == 0 and "50 bytes of text" in out, err
    assert cli(f"prove --decode p --artifact {artifact} --out t")[0] == 0
    first = DataFolder.open(data_folder).sample_validation().documents[0]
    assert Path("t").read_text() == first.encode()[:50].decode()


def test_a_decoding_that_differs_is_never_a_success(
    cli,
    artifact: Path,
    monkeypatch: pytest.MonkeyPatch,  # type: ignore[no-untyped-def]
) -> None:
    Path("a.txt").write_bytes(TEXT[:100])
    monkeypatch.setattr("fairway.prove.archive.decompress", lambda *args: b"other")
    code, _, err = cli(f"compress a.txt --artifact {artifact} {FIXED}")
    assert code == 2 and "does not decode to the same bytes" in err
    assert not Path("a.txt.fwz").exists()


def test_altered_bytes_with_a_fitting_digest_are_noticed(session: Session, artifact: Path) -> None:
    header, payload = open_coded(open_file(compress(SHORT, session, 8))[1])
    assert isinstance(header, Header) and header.documents == 0
    noticed = "decoding gave other bytes|ends before the tokens|does not end where"
    for at, told in ((40, noticed), (-1, "other bytes|does not end where")):
        spoilt = bytearray(payload)
        spoilt[at] ^= 0x80 if at < 0 else 1  # The last bits of a code may be free.
        with pytest.raises(UserError, match=told):
            decompress(coded_file(1, header, bytes(spoilt)), artifact, None)
    for more in (bytes(20), b"\1" * 20):
        with pytest.raises(UserError, match="does not end where its last token does"):
            decompress(coded_file(1, header, payload + more), artifact, None)
    with pytest.raises(UserError, match="claims 1 documents, but 0 were restored"):
        decompress(coded_file(1, replace(header, documents=1), payload), artifact, None)
    with pytest.raises(UserError, match="it is a proof"):
        decompress(coded_file(PROOF, header, payload), artifact, None)
