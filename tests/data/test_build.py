import errno
import functools
import io
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece

from fairway.base.errors import UserError
from fairway.base.files import digest_file
from fairway.data import build
from fairway.data.build import DataFolder, build_data
from fairway.data.documents import REASONS, Document, LeftOut
from fairway.data.shards import open_shard
from fairway.data.sources import read_documents
from fairway.data.tokens import Tokenizer, prove_bytes, train_tokenizer

NOUNS = ["cat", "dog", "river", "stone", "window", "letter", "garden", "engine", "winter", "story"]
VERBS = ["sees", "takes", "finds", "leaves", "opens", "paints", "follows", "answers", "remembers"]


def text(seed: int, sentences: int = 12) -> str:
    rng = np.random.default_rng(seed)
    lines = []
    for number in range(sentences):
        a, c = rng.choice(NOUNS, 2)
        lines.append(
            f"The {a} {rng.choice(VERBS)} the {c} at {int(rng.integers(999))}, {seed}.{number}"
        )
    return "\n".join(lines)


def documents(count: int = 40) -> list[Document]:
    return [Document(f"d{i}", text(i)) for i in range(count)]


def build_small(
    out: Path, given: Iterable[Document] | None = None, **changes: Any
) -> dict[str, Any]:
    settings: dict[str, Any] = {"vocab_size": 320, "val_share": 0.1, "shard_tokens": 3000}
    return build_data(given or documents(), out, **(settings | changes))


def test_a_built_folder_holds_what_its_manifest_says(tmp_path: Path) -> None:
    manifest = build_small(tmp_path / "data", provenance={"source": "test"})
    out = tmp_path / "data"
    assert json.loads((out / "manifest.json").read_text()) == manifest
    assert manifest["provenance"] == {"source": "test"}
    listed = {"manifest.json", "tokenizer.model", "val.jsonl"}
    tokenizer = Tokenizer.load(out / "tokenizer.model")
    for split in ("train", "val"):
        shards = manifest[split]["shards"]
        tokens = [open_shard(out / shard["name"]) for shard in shards]
        listed |= {shard["name"] for shard in shards}
        assert [len(t) for t in tokens] == [shard["tokens"] for shard in shards]
        assert all(digest_file(out / s["name"]) == s["sha256"] for s in shards)
        stream = np.concatenate(tokens)
        assert prove_bytes(tokenizer, stream) == manifest[split]["bytes"]
        assert np.count_nonzero(stream == 1) == manifest[split]["documents"]
    assert {path.name for path in out.iterdir()} == listed
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    sizes = [shard["tokens"] for shard in manifest["train"]["shards"]]
    assert len(sizes) > 1 and max(sizes) - min(sizes) <= 1 and max(sizes) <= 3000


def test_the_validation_text_is_the_raw_text(tmp_path: Path) -> None:
    given = documents()
    build_small(tmp_path / "data", given)
    lines = (tmp_path / "data" / "val.jsonl").read_text().splitlines()
    kept = [Document(**json.loads(line)) for line in lines]
    assert kept and all(document in given for document in kept)
    validation = DataFolder.open(tmp_path / "data").sample_validation()
    assert validation.documents == [document.text.strip() for document in kept]


def test_nothing_is_lost_and_the_sides_are_apart(tmp_path: Path) -> None:
    build_small(tmp_path / "data")
    folder = DataFolder.open(tmp_path / "data")
    train, val = list(folder.last_train_documents()), folder.sample_validation().documents
    assert sorted([*train, *val]) == sorted(document.text for document in documents())
    assert train != [document.text for document in documents() if document.text in set(train)]


@pytest.mark.long
@pytest.mark.parametrize("processes", [1, 2])
def test_a_build_is_a_function_of_its_input(
    tmp_path: Path, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_CHUNK_CHARS", 5000)
    build_small(tmp_path / "a")
    monkeypatch.setattr("fairway.data.parallel.processes", lambda: processes)
    build_small(tmp_path / "b", documents()[::-1])
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_a_given_tokenizer_is_used(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_bytes(train_tokenizer([text(500)], 300))
    manifest = build_small(tmp_path / "data", tokenizer=tokenizer, vocab_size=300)
    assert manifest["tokenizer"] == {
        "sha256": tokenizer.digest,
        "vocab_size": 300,
        "lossless": True,
    }
    with pytest.raises(UserError, match=r"has 300 pieces, but model\.vocab_size is 320"):
        build_small(tmp_path / "other", tokenizer=tokenizer)


def test_given_validation_documents_are_kept_in_order(tmp_path: Path) -> None:
    val = [Document("z", text(901)), Document("a", text(900))]
    manifest = build_small(tmp_path / "data", val_documents=val)
    folder = DataFolder.open(tmp_path / "data")
    assert folder.sample_validation().documents == [text(901), text(900)]
    assert manifest["split"]["rule"] == "given" and manifest["train"]["documents"] == 40


def test_overlapping_validation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="overlap"):
        build_small(tmp_path / "data", val_documents=[Document("copy", text(3))])
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_represented_is_left_out_and_counted(tmp_path: Path) -> None:
    odd = [Document("blank", " \n "), Document("marker", text(70) + "\u2581"), *documents()]
    manifest = build_small(tmp_path / "data", odd)
    assert manifest["dropped"]["blank"] == manifest["dropped"]["not_representable"] == 1
    assert manifest["train"]["documents"] + manifest["val"]["documents"] == 40


@functools.cache
def normalising() -> Tokenizer:
    """A tokenizer with SentencePiece's usual normaliser (nmt_nfkc), as SP8192 has it."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text(500).split("\n")), model_writer=model, model_type="bpe",
        vocab_size=320, byte_fallback=True, hard_vocab_limit=False, pad_id=0, bos_id=1, eos_id=2,
        unk_id=3, minloglevel=3,
    )  # fmt: skip
    return Tokenizer(model.getvalue())


def build_normalised(out: Path, given: list[Document], **changes: Any) -> dict[str, Any]:
    words = normalising()
    return build_small(out, given, tokenizer=words, vocab_size=words.vocab_size, **changes)


CHANGED = {
    "longer": lambda value: value.replace("The", "\ufdfa"),
    "shorter": lambda value: value.replace("a", "\uff41"),
    "ellipsis": lambda value: value + "\u2026",
    "ligature": lambda value: value.replace("fi", "\ufb01") + " \ufb01n",
    "half": lambda value: value + " \u00bd",
    "without width": lambda value: value.replace(" ", "\u200b", 1),
    "a sign of its own": lambda value: value.replace(" ", "\u2581", 1),
    "removed": lambda value: value + "\x01",
    "vertical tab inside": lambda value: value.replace(" ", "\x0b", 1),
}


@pytest.mark.parametrize("change", CHANGED.values(), ids=CHANGED)
def test_documents_whose_characters_the_tokenizer_changes_are_left_out(
    tmp_path: Path, change: Callable[[str], str]
) -> None:
    plain = documents()
    given = [Document(d.name, change(d.text)) if n % 2 else d for n, d in enumerate(plain)]
    val = [Document("v0", change(text(900))), Document("v1", text(901))]
    manifest = build_normalised(tmp_path / "data", given, val_documents=val)
    assert manifest["dropped"]["changed_by_tokenizer"] == 21
    assert manifest["dropped"]["not_representable"] == 0
    assert manifest["train"]["documents"] == 20 and manifest["val"]["documents"] == 1
    assert manifest["train"]["bytes"] == sum(len(d.text.encode()) for d in plain[::2])
    assert manifest["val"]["bytes"] == len(text(901).encode())
    kept = (tmp_path / "data" / "val.jsonl").read_text().splitlines()
    assert [json.loads(line)["name"] for line in kept] == ["v1"]
    DataFolder.open(tmp_path / "data").verify()


BLANKS = {
    "carriage returns": lambda value: value.replace("\n", "\r\n"),
    "blanks without a break": lambda value: value.replace(" ", "\u00a0"),
    "wide blanks": lambda value: value.replace(" ", "\u3000"),
    "runs": lambda value: value.replace(" ", " \t  \f"),
    "paragraphs": lambda value: value.replace("\n", "\u2029\u2028"),
    "at the ends": lambda value: f"\n\t{value}\u2003\r\n",
}


@pytest.mark.parametrize("change", BLANKS.values(), ids=BLANKS)
def test_blanks_and_line_ends_may_change(tmp_path: Path, change: Callable[[str], str]) -> None:
    given = [Document(d.name, change(d.text)) for d in documents()]
    manifest = build_normalised(tmp_path / "data", given)
    assert "changed_by_tokenizer" not in manifest["dropped"]
    usual = sum(len(" ".join(d.text.split()).encode()) for d in given)
    assert manifest["train"]["bytes"] + manifest["val"]["bytes"] == usual


@pytest.mark.parametrize("side", ["training", "validation"])
def test_a_tokenizer_that_changes_everything_is_refused(tmp_path: Path, side: str) -> None:
    plain, spoiled = documents(), [Document(d.name, d.text + "\u2026") for d in documents()]
    val = [Document("v", text(900))]
    given, val = (spoiled, val) if side == "training" else (plain, [Document("v", "\ufdfa")])
    count = {"training": 40, "validation": 1}[side]
    sentence = (
        rf"^no {side} text remains for this tokenizer \(left out: documents in which the tokenizer "
        rf"changes other characters than blanks and line ends \({count}\)\); train a new "
        "tokenizer: leave out --tokenizer$"
    )
    with pytest.raises(UserError, match=sentence):
        build_normalised(tmp_path / "data", given, val_documents=val)
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_that_keeps_all_characters_gives_no_reason(tmp_path: Path) -> None:
    given = [Document(d.name, CHANGED["longer"](d.text)) for d in documents()]
    manifest = build_small(tmp_path / "data", given)
    # A key without need would change the digest of data that is the same as before.
    assert "changed_by_tokenizer" not in manifest["dropped"]
    total = sum(len(document.text.encode()) for document in given)
    assert manifest["train"]["bytes"] + manifest["val"]["bytes"] == total


def test_a_collection_beside_its_parts_is_named(tmp_path: Path) -> None:
    whole = Document("all.txt", "\n\n".join(document.text for document in documents()))
    manifest = build_small(tmp_path / "data", [*documents(), whole])
    assert manifest["dropped"]["collection"] == 1
    assert manifest["split"]["collections"] == ["all.txt"]
    without = build_small(tmp_path / "other")
    assert "collections" not in without["split"] and "collection" not in without["dropped"]
    assert manifest["train"] == without["train"] and manifest["val"] == without["val"]


@pytest.mark.parametrize(
    ("given", "changes", "sentence"),
    [
        ([Document("a", " ")], {}, "no text in the 1 document given"),
        ([Document("a", "b")], {}, "1 distinct document cannot be split"),
        (documents(), {"val_documents": [Document("v", "\n")]}, "no text in the validation"),
        (documents(), {"vocab_size": 60_000}, "the largest possible is"),
        (
            [Document("a", "x\u2581y"), Document("b", "z\u2581")],
            {"vocab_size": 264},
            r"no training text remains .*cannot restore \(1\)\); give text without U\+2581",
        ),
    ],
)
def test_unusable_text_is_refused_and_nothing_written(
    tmp_path: Path, given: list[Document], changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        build_small(tmp_path / "data", given, **changes)
    assert list(tmp_path.iterdir()) == []


def test_no_documents_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no text in the 0 documents"):
        build_data([], tmp_path / "data", vocab_size=300, val_share=0.1, shard_tokens=3000)


def test_line_ends_stay_and_are_counted(tmp_path: Path) -> None:
    given = [Document(d.name, d.text.replace("\n", "\r\n")) for d in documents()]
    manifest = build_small(tmp_path / "data", given)
    total = sum(len(document.text.encode()) for document in given)
    assert manifest["train"]["bytes"] + manifest["val"]["bytes"] == total


def test_what_reading_left_out_is_recorded(tmp_path: Path) -> None:
    left_out = LeftOut(null_text=2, hidden=1)
    manifest = build_small(
        tmp_path / "data",
        [*documents(), Document("blank", "\n"), Document("again", text(3).upper())],
        left_out=left_out,
    )
    assert manifest["dropped"] == {
        **{"null_text": 2, "hidden": 1, "blank": 1, "repeats": 1, "not_representable": 0},
        **{"train_near_validation": 0, "validation_near_train": 0},
    }
    assert set(manifest["dropped"]) <= set(REASONS)
    told_of = [Document("v", text(77)), Document("w", "")]
    assert build_small(tmp_path / "b", val_documents=told_of)["dropped"]["blank"] == 1


def test_no_text_says_what_was_left_out(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"0 documents given \(left out: rows or lines whose text is null"
    ):
        build_data(
            iter(()),
            tmp_path / "data",
            **{"vocab_size": 300, "val_share": 0.1, "shard_tokens": 3000},
            left_out=LeftOut(null_text=3),
        )


def test_an_unfinished_folder_is_refused_and_built_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()

    def killed(part: Path, final: Path, last: str) -> None:
        (part / "fairway_train_000000.bin").rename(final / "fairway_train_000000.bin")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("fairway.base.folders._fill", killed)
        build_small(tmp_path / "data")
    shard = tmp_path / "data" / "fairway_train_000000.bin"
    shutil.copy(shard, shard.with_name("fairway_val_000000.bin"))
    with pytest.raises(UserError, match="data is not complete; build or fetch the data again"):
        DataFolder.open(tmp_path / "data")
    build_small(tmp_path / "data")
    DataFolder.open(tmp_path / "data").verify()


def test_data_are_replaced_only_when_told(tmp_path: Path) -> None:
    build_small(tmp_path / "data")
    before = {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir()}
    with pytest.raises(UserError, match="data already contains data; replace it with --replace"):
        build_small(tmp_path / "data", vocab_size=330)
    (tmp_path / "link").symlink_to("data")
    with pytest.raises(UserError, match="link already contains data"):
        build_small(tmp_path / "link", vocab_size=330)
    assert {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir()} == before
    build_small(tmp_path / "link", vocab_size=330, replace=True)
    assert (tmp_path / "link").is_symlink()
    assert DataFolder.open(tmp_path / "data").tokenizer.vocab_size == 330
    (tmp_path / "data" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something other than Fairway data .notes.txt"):
        build_small(tmp_path / "data", replace=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "link"]


def test_a_folder_inside_the_text_is_not_counted(tmp_path: Path) -> None:
    for document in documents():
        (tmp_path / f"{document.name}.txt").write_text(document.text)
    left_out = LeftOut()
    build_small(tmp_path / "data", read_documents([tmp_path], left_out), left_out=left_out)
    assert not +left_out


def test_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to("data")
    with pytest.raises(UserError, match="a link to itself"):
        build_small(tmp_path / "data")


def test_data_are_built_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    build_small(Path())
    with pytest.raises(UserError, match="already contains data"):
        build_small(Path())
    build_small(Path(), vocab_size=330, replace=True)
    source = DataFolder.open(tmp_path)
    source.verify()
    assert source.tokenizer.vocab_size == 330 and not list(tmp_path.glob(".*"))


def test_only_data_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    build_small(tmp_path / "mine")
    first = (tmp_path / "mine" / "manifest.json").read_bytes()
    build_small(tmp_path / "mine", vocab_size=330, replace=True)
    assert (tmp_path / "mine" / "manifest.json").read_bytes() != first
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").touch()
    for name, sentence in (
        ("other", "holds something other than Fairway data"),
        ("file", "is a file"),
    ):
        with pytest.raises(UserError, match=sentence):
            build_small(tmp_path / name)
    assert (tmp_path / "other" / "thesis.txt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "mine", "other"]


def test_a_full_disk_leaves_the_old_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_small(tmp_path / "data")
    before = (tmp_path / "data" / "manifest.json").read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(build, "write_json", full)
    with pytest.raises(UserError, match=r"cannot write the data folder .*: the disk is full; free"):
        build_small(tmp_path / "data", vocab_size=330, replace=True)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert (tmp_path / "data" / "manifest.json").read_bytes() == before
