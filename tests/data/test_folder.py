import functools
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from fairway.base.errors import UserError
from fairway.data.build import build_data
from fairway.data.documents import Document
from fairway.data.folder import PIECE_BYTES, DataFolder, _level, _run_of_paragraphs, _sample
from fairway.data.shards import write_shard
from fairway.data.tokens import Tokenizer, encode_documents, train_tokenizer

TRAIN = ["The first text.\nIt has two lines.", "A second text, quite short.", "And a third one."]
VAL = ["Text to score.", "More text to score.\nOn two lines."]


@functools.cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_bytes(train_tokenizer([*TRAIN, *VAL], 290))


def challenge_folder(path: Path) -> Path:
    """A folder as the challenge publishes it: no manifest, documents cut by shards."""
    path.mkdir()
    train = encode_documents(tokenizer(), TRAIN)
    for number, part in enumerate(np.array_split(train, 5)):
        write_shard(path / f"fineweb_train_{number:06d}.bin", part)
    write_shard(path / "fineweb_val_000000.bin", encode_documents(tokenizer(), VAL))
    (path / "fineweb_290_bpe.model").write_bytes(tokenizer().data)
    return path


def built_folder(path: Path) -> Path:
    documents = [Document(f"d{i}", f"{text} {i}") for i, text in enumerate(TRAIN)]
    val = [Document(f"v{i}", text) for i, text in enumerate(VAL)]
    build_data(
        documents, path, vocab_size=290, val_share=0.5, shard_tokens=1000,
        tokenizer=tokenizer(), val_documents=val,
    )  # fmt: skip
    return path


def test_a_challenge_folder_is_read_without_a_manifest(tmp_path: Path) -> None:
    folder = DataFolder.open(challenge_folder(tmp_path / "data"))
    folder.verify()
    assert len(folder.train_shards()) == 5
    assert list(folder.last_train_documents()) == TRAIN[::-1]
    validation = folder.sample_validation()
    assert validation.documents == VAL and validation.bytes == sum(map(len, VAL))
    assert validation.ids.tolist() == folder.val_tokens().tolist()


def test_a_built_folder_gives_its_text_back(tmp_path: Path) -> None:
    folder = DataFolder.open(built_folder(tmp_path / "data"))
    folder.verify()
    assert folder.sample_validation().documents == VAL
    assert sorted(folder.last_train_documents()) == sorted(f"{t} {i}" for i, t in enumerate(TRAIN))


@pytest.mark.parametrize("make", [challenge_folder, built_folder])
def test_the_digest_follows_the_content(tmp_path: Path, make) -> None:  # type: ignore[no-untyped-def]
    digest = DataFolder.open(make(tmp_path / "a")).digest
    assert DataFolder.open(make(tmp_path / "b")).digest == digest
    changed = make(tmp_path / "c")
    record, shard = changed / "manifest.json", changed / "fineweb_train_000000.bin"
    path = record if record.exists() else shard
    path.write_bytes(path.read_bytes() + b"\n")
    assert DataFolder.open(changed).digest != digest


@pytest.mark.parametrize(
    "name", ["fairway_train_000000.bin", "fairway_val_000000.bin", "val.jsonl"]
)
def test_a_changed_file_is_found(tmp_path: Path, name: str) -> None:
    path = built_folder(tmp_path / "data") / name
    path.write_bytes(path.read_bytes()[:-2] + b"\x09\x00")
    with pytest.raises(UserError, match=f"{name} is not the file that was recorded"):
        DataFolder.open(tmp_path / "data").verify()


def test_a_file_too_many_is_found(tmp_path: Path) -> None:
    built_folder(tmp_path / "data")
    write_shard(tmp_path / "data" / "fairway_train_000009.bin", np.array([1], np.uint16))
    with pytest.raises(UserError, match=r"fairway_train_000009\.bin is not the file"):
        DataFolder.open(tmp_path / "data").verify()


def test_tokens_of_another_tokenizer_are_found(tmp_path: Path) -> None:
    challenge_folder(tmp_path / "data")
    write_shard(tmp_path / "data" / "fineweb_val_000000.bin", np.array([1, 290], np.uint16))
    with pytest.raises(UserError, match=r"fineweb_val_000000\.bin has token id 290"):
        DataFolder.open(tmp_path / "data").verify()


def test_incomplete_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no data folder"):
        DataFolder.open(tmp_path / "none")
    for name, sentence in (
        ("fineweb_290_bpe.model", "has 0 tokenizers"),
        ("fineweb_val_000000.bin", "no val shards"),
    ):
        path = challenge_folder(tmp_path / name)
        (path / name).unlink()
        with pytest.raises(UserError, match=sentence):
            DataFolder.open(path)
    built_folder(tmp_path / "built")
    (tmp_path / "built" / "val.jsonl").unlink()
    with pytest.raises(UserError, match=r"val\.jsonl is missing"):
        DataFolder.open(tmp_path / "built")


def test_two_tokenizers_or_a_foreign_one_are_refused(tmp_path: Path) -> None:
    path = challenge_folder(tmp_path / "a")
    shutil.copy(path / "fineweb_290_bpe.model", path / "other.model")
    with pytest.raises(UserError, match="has 2 tokenizers"):
        DataFolder.open(path)
    path = built_folder(tmp_path / "b")
    (path / "tokenizer.model").write_bytes(train_tokenizer(TRAIN, 286))
    with pytest.raises(UserError, match="is not the tokenizer that made the shards"):
        DataFolder.open(path)


@pytest.mark.parametrize(
    "record",
    ["[]", "{}", '{"format": "fairway-data", "version": 2}', '{"format": 1, "version": 1}'],
)
def test_a_damaged_record_is_refused(tmp_path: Path, record: str) -> None:
    path = built_folder(tmp_path / "data")
    (path / "manifest.json").write_text(record)
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        DataFolder.open(path)
    (path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        DataFolder.open(path)


DELETED = object()


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("version", True, r"version is True; expected 1"),
        ("version", "1", r"version is '1'; expected 1"),
        ("train", [], r"train is \[\]; expected an object"),
        ("train.bytes", -5, r"train\.bytes is -5; expected a whole number of at least 1"),
        ("val.bytes", "many", r"val\.bytes is 'many'; expected a whole number"),
        ("val.bytes", 0, r"val\.bytes is 0; expected a whole number"),
        ("val.bytes", 66.0, r"val\.bytes is 66\.0; expected a whole number"),
        ("val.documents", None, r"val\.documents is None; expected a whole number"),
        (
            "val.documents",
            10**30,
            r"val\.documents is 10+; expected at most half of its \d+ tokens",
        ),
        ("train.tokens", 7, r"train\.tokens is 7; expected \d+, the sum of its shards"),
        ("train.shards", {"a": 1}, r"train\.shards is \{'a': 1\}; expected a list of shards"),
        ("val.shards", [], r"val\.shards is \[\]; expected a list of shards"),
        ("val.shards.0", "x", r"val\.shards\[0\]\.name is missing; expected a string"),
        ("val.shards.0.name", 5, r"val\.shards\[0\]\.name is 5; expected a string"),
        ("val.shards.0.sha256", None, r"val\.shards\[0\]\.sha256 is None; expected a SHA-256"),
        ("val.text_sha256", "a" * 63, r"val\.text_sha256 is 'aa.*; expected a SHA-256"),
        ("corpus_sha256", DELETED, r"corpus_sha256 is missing; expected a SHA-256"),
        ("split", None, r"split is None; expected an object"),
        ("dropped", {"blank": -1}, r"dropped is \{'blank': -1\}; expected an object of counts"),
        ("dropped.repeats", False, r"dropped is .*; expected an object of counts"),
        ("provenance", [1], r"provenance is \[1\]; expected an object"),
        ("tokenizer", [1], r"tokenizer is \[1\]; expected an object"),
        (
            "tokenizer.vocab_size",
            10**30,
            r"vocab_size is 10+; expected 290, as its tokenizer has it",
        ),
        ("tokenizer.vocab_size", DELETED, r"tokenizer\.vocab_size is missing; expected 290"),
        ("tokenizer.lossless", "maybe", r"tokenizer\.lossless is 'maybe'; expected True"),
        ("tokenizer.lossless", 1, r"tokenizer\.lossless is 1; expected True"),
        ("tokenizer.case_ops", True, r"tokenizer\.case_ops is True; expected False"),
        ("tokenizer.case_ops", [], r"tokenizer\.case_ops is \[\]; expected False"),
    ],
)
def test_impossible_facts_are_refused(
    tmp_path: Path, field: str, value: object, sentence: str
) -> None:
    record(built_folder(tmp_path / "data"), field, value)
    with pytest.raises(
        UserError, match=rf"manifest\.json is damaged: .*{sentence}.*; make the data"
    ):
        DataFolder.open(tmp_path / "data")


def record(folder: Path, field: str, value: object) -> None:
    """Change a fact of a manifest."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    *way, last = [int(key) if key.isdigit() else key for key in field.split(".")]
    inner = functools.reduce(lambda some, key: some[key], way, manifest)
    if value is DELETED:
        del inner[last]
    else:
        inner[last] = value
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize("field", ["train.documents", "train.bytes", "val.documents", "val.bytes"])
@pytest.mark.parametrize("change", [-1, 1])
def test_other_counts_than_those_of_the_shards_are_found(
    tmp_path: Path, field: str, change: int
) -> None:
    folder = built_folder(tmp_path / "data")
    DataFolder.open(folder).verify()
    side, name = field.split(".")
    count = json.loads((folder / "manifest.json").read_text())[side][name]
    record(folder, field, count + change)
    source = DataFolder.open(folder)
    wanted = rf"{field} is {count + change}; expected {count}, as its shards have it"
    with pytest.raises(
        UserError, match=rf"manifest\.json is damaged: {wanted}; make the data again"
    ):
        source.verify()


def test_a_description_counts_what_is_there(tmp_path: Path) -> None:
    challenge = DataFolder.open(challenge_folder(tmp_path / "a"))
    challenge.verify()
    told = challenge.description()
    assert told["vocab_size"] == 290 and told["left_out"] is None
    size = sum(len(text.encode()) for text in VAL)
    assert (told["val_documents"], told["val_bytes"]) == (2, size)
    assert told["val_tokens"] == len(challenge.val_tokens())
    built = DataFolder.open(built_folder(tmp_path / "b"))
    assert built.description() == {
        **told,
        **built.facts(),
        "left_out": {"blank": 0, "not_representable": 0},
    }


def test_a_document_across_shards_is_counted_once(tmp_path: Path) -> None:
    path = challenge_folder(tmp_path / "data")
    (path / "fineweb_val_000000.bin").unlink()
    ids = encode_documents(tokenizer(), VAL)
    for number, part in enumerate(np.array_split(ids, 9)):
        write_shard(path / f"fineweb_val_{number:06d}.bin", part)
    told = DataFolder.open(path).description()
    size = sum(len(text.encode()) for text in VAL)
    assert [told[f"val_{name}"] for name in ("documents", "bytes", "tokens")] == [2, size, len(ids)]


def test_case_operations_are_refused(tmp_path: Path) -> None:
    path = challenge_folder(tmp_path / "data")
    write_shard(path / "fineweb_val_bytes_000000.bin", np.array([0, 3], np.uint16))
    with pytest.raises(UserError, match="belongs to CaseOps data"):
        DataFolder.open(path)


def test_a_sample_is_proven_text_of_the_documents(tmp_path: Path) -> None:
    folder = DataFolder.open(challenge_folder(tmp_path / "data"))
    validation = folder.sample_validation(30)
    assert 0 < validation.bytes <= 30
    assert all(any(piece in document for document in VAL) for piece in validation.documents)
    assert validation.ids.tolist() == encode_documents(tokenizer(), validation.documents).tolist()


def test_a_sample_has_no_text_that_the_tokenizer_would_change(tmp_path: Path) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*TRAIN, *VAL]), model_writer=model, model_type="bpe",
        vocab_size=290, byte_fallback=True, hard_vocab_limit=False, minloglevel=3,
    )  # fmt: skip
    words = Tokenizer(model.getvalue())
    # Single bytes stand for the ellipsis, which its normaliser would write as three dots.
    odd = [int(words.byte_ids[value]) for value in "\u2026".encode()]
    path = challenge_folder(tmp_path / "data")
    (path / "fineweb_290_bpe.model").write_bytes(words.data)
    plain = "Text to score."
    bos = words.bos_id
    ids = [bos, *words.encode(plain).tolist(), bos, *words.encode("More").tolist(), *odd]
    write_shard(path / "fineweb_val_000000.bin", np.array(ids, np.uint16))
    assert DataFolder.open(path).sample_validation().documents == [plain, "More\u2026"]
    assert DataFolder.open(path).sample_validation(max_bytes=1000).documents == [plain]


def test_the_beginning_of_the_validation_text_may_be_scored_alone(tmp_path: Path) -> None:
    folder = DataFolder.open(challenge_folder(tmp_path / "data"))
    whole, part = folder.sample_validation(), folder.sample_validation(max_tokens=20)
    assert part.ids.tolist() == whole.ids[:21].tolist() and len(whole.ids) > 21
    assert whole.documents[0].startswith(part.documents[0])
    assert part.bytes == sum(len(document.encode()) for document in part.documents)


def test_validation_without_text_is_refused(tmp_path: Path) -> None:
    path = challenge_folder(tmp_path / "data")
    write_shard(path / "fineweb_val_000000.bin", np.array([1, 1], np.uint16))
    with pytest.raises(UserError, match="no validation text"):
        DataFolder.open(path).sample_validation()


# Sampling


def article(seed: int, paragraphs: int) -> str:
    return "\n".join(
        f"{seed} {i} " + "word " * (20 + (seed * i) % 50) + "end." for i in range(paragraphs)
    )


def test_a_sample_is_spread_and_full() -> None:
    documents = [article(seed, 60) for seed in range(50)]
    pieces = list(_sample(documents, 64_000))
    total = sum(len(piece.encode()) for piece in pieces)
    assert 60_000 < total <= 64_000 and len(pieces) >= 15
    assert max(len(piece.encode()) for piece in pieces) <= PIECE_BYTES
    sources = [next(d for d in documents if piece in d) for piece in pieces]
    assert len(set(sources)) == len(pieces)
    whole = {line for document in documents for line in document.split("\n")}
    assert all(line in whole for piece in pieces for line in piece.split("\n"))
    assert any(not source.startswith(piece) for source, piece in zip(sources, pieces, strict=True))


def test_a_sample_ignores_the_order_of_documents() -> None:
    documents = [article(seed, 60) for seed in range(20)]
    assert list(_sample(documents, 30_000)) == list(_sample(documents[::-1], 30_000))


def test_few_long_documents_give_more_each() -> None:
    documents = [article(seed, 400) for seed in range(3)]
    total = sum(len(piece) for piece in _sample(documents, 60_000))
    assert 55_000 < total <= 60_000


def test_more_than_there_is_gives_everything() -> None:
    documents = [article(seed, 5) for seed in range(9)]
    assert sorted(_sample(documents, 10**9)) == sorted(documents)


def test_a_long_paragraph_is_cut_at_a_blank() -> None:
    text = "w\u00f6rd " * 3000
    piece = _run_of_paragraphs(text, 1001, 7)
    assert text.startswith(piece + " ") and 990 <= len(piece.encode()) <= 1001


@pytest.mark.parametrize("key", range(9))
def test_a_run_starts_where_enough_follows(key: int) -> None:
    paragraphs = [f"{i}" * 99 for i in range(8)]
    run = _run_of_paragraphs("\n".join(paragraphs), 300, key).split("\n")
    assert len(run) == 3 and run == paragraphs[int(run[0][0]) : int(run[0][0]) + 3]


def test_the_level_fills_the_total() -> None:
    sizes = [5, 100, 30, 70]
    for total in range(1, 206):
        level = _level(sizes, total)
        given = sum(min(size, level) for size in sizes)
        assert given >= min(total, 205)
        assert sum(min(size, level - 1) for size in sizes) < total
    assert _level([], 7) == 0


def test_names_that_are_not_utf8_are_digested(tmp_path: Path, data_folder: Path) -> None:
    for path in data_folder.iterdir():
        if path.name not in ("manifest.json", "val.jsonl"):
            name = path.name.replace("_0", os.fsdecode(b"_\xff\xfe0"))
            shutil.copy(path, tmp_path / name)
    source = DataFolder.open(tmp_path)
    assert len(source.digest) == 64 and source.sample_validation().documents


@pytest.mark.parametrize("name", ["x" * 5000, "../val.jsonl", "a\x00b", "\ud800"])
def test_odd_names_in_a_record_are_missing(tmp_path: Path, data_folder: Path, name: str) -> None:
    shutil.copytree(data_folder, tmp_path / "data")
    record = json.loads((tmp_path / "data" / "manifest.json").read_text())
    record["train"]["shards"][0]["name"] = name
    (tmp_path / "data" / "manifest.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="is missing; build or fetch the data again") as told:
        DataFolder.open(tmp_path / "data")
    assert len(str(told.value)) < 600
