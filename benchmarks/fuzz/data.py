"""What data come as: shards, tokenizers, data folders, and text of every kind of file."""

import io
import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import sentencepiece
import zstandard

from fairway.base.files import digest_bytes
from fairway.data.build import build_data
from fairway.data.documents import Document, LeftOut
from fairway.data.folder import DataFolder
from fairway.data.manifest import MANIFEST, TOKENIZER, VAL_TEXT
from fairway.data.shards import HEADER_BYTES, check_vocabulary, open_shard, write_shard
from fairway.data.sources import read_documents
from fairway.data.tokens import Tokenizer, encode_documents, prove_bytes, train_tokenizer

from . import Case, Change, Files
from .damage import damaged, odd_json, spoil_value

_SENTENCE = "the of a model text token learns predicts small every byte is and to in that"
_WORDS = _SENTENCE.split()
_VOCABULARY = 290


def _text(seed: int, words: int = 120) -> str:
    return " ".join(random.Random(seed).choices(_WORDS, k=words)) + f"\n{seed} \u00e9\u6c34."


def _in_folder(write: Callable[[Path], object]) -> Files:
    """Return the files that something writes into a folder."""
    with tempfile.TemporaryDirectory() as place:
        write(Path(place))
        return {path.name: path.read_bytes() for path in Path(place).iterdir()}


# ---------------------------------------------------------------------------------------------
# Shards


class Shards:
    """Token shards: no digest covers one alone, so what is read must be what is there."""

    name = "shard"

    def specimens(self) -> list[Files]:
        """Return a shard of one token, and one of many."""
        draw = np.random.default_rng(0)
        sizes = (1, 5_000)
        made = [draw.integers(_VOCABULARY, size=size).astype(np.uint16) for size in sizes]
        return [
            _in_folder(lambda place, ids=ids: write_shard(place / "a.bin", ids)) for ids in made
        ]

    def spoil(self, files: Files, rng: random.Random) -> Case:
        """Spoil bytes, or a word of the header, with the length made right or not."""
        data = files["a.bin"]
        if rng.random() < 0.5:
            return Case({"a.bin": damaged(data, rng)}, False, "bytes")
        header = np.frombuffer(data[:HEADER_BYTES], "<i4").copy()
        at = rng.choice((0, 1, 2, 2, 3, 255))
        odd = (0, 1, -1, 2**31 - 1, -(2**31), 20240520, rng.randrange(10_000))
        header[at] = rng.choice(odd)
        tail = data[HEADER_BYTES:]
        if rng.random() < 0.5:
            tail = rng.randbytes(2 * min(max(0, int(header[2])), 20_000))
        return Case({"a.bin": header.tobytes() + tail}, True, f"header word {at}")

    def read(self, folder: Path) -> Any:
        """Open the shard and look at every id."""
        ids = open_shard(folder / "a.bin")
        check_vocabulary(ids, 2**16, "a.bin")
        return np.array(ids)

    def wrong(self, files: Files, case: Case, found: Any) -> str:
        """Read the ids once more, by the format's own words."""
        data = case.changes.get("a.bin", files["a.bin"])
        assert isinstance(data, bytes)
        ids = np.frombuffer(data[HEADER_BYTES:], "<u2")
        count = int.from_bytes(data[8:12], "little")
        return "" if count == len(ids) and np.array_equal(ids, found) else "other ids were read"


# ---------------------------------------------------------------------------------------------
# Tokenizers


class Tokenizers:
    """SentencePiece models, with and without a normaliser."""

    name = "tokenizer"
    samples = (_text(1), "caf\u00e9\r\n\t\u6c34 \U0001f600", "\x00 <s> 12", "a  b", "\u2581")

    def specimens(self) -> list[Files]:
        """Return a lossless tokenizer and one that normalises as SP8192 does."""
        texts = [_text(seed) for seed in range(20)]
        return [{"a.model": train_tokenizer(texts, _VOCABULARY)}, {"a.model": _normalising(texts)}]

    def spoil(self, files: Files, rng: random.Random) -> Case:
        """Spoil bytes; its end, where the settings are, as often as the pieces."""
        data = files["a.model"]
        if rng.random() < 0.5:
            return Case({"a.model": damaged(data, rng)}, False, "bytes")
        settings = len(data) - min(len(data), 400)
        return Case({"a.model": data[:settings] + damaged(data[settings:], rng)}, False, "settings")

    def read(self, folder: Path) -> Any:
        """Encode samples, and prove their bytes as a score does."""
        tokenizer = Tokenizer.load(folder / "a.model")
        texts = [tokenizer.canonical(sample) for sample in self.samples]
        kept = [text for text in texts if text and tokenizer.represents(text)]
        ids = encode_documents(tokenizer, kept)
        return tokenizer, kept, ids, prove_bytes(tokenizer, ids) if kept else 0

    def wrong(self, files: Files, case: Case, found: Any) -> str:
        """Compare with the library itself."""
        tokenizer, kept, ids, size = found
        model = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.data)
        if model.vocab_size() != tokenizer.vocab_size:
            return "the vocabulary has another size"
        if size != sum(len(text.encode()) for text in kept):
            return "the bytes are others than the texts'"
        expected = [token for text in kept for token in (model.bos_id(), *model.encode(text))]
        return "" if expected == ids.tolist() else "the tokens are others than the library's"


def _normalising(texts: list[str]) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=_VOCABULARY + 10,
        byte_fallback=True,
        required_chars="\u2581",
        hard_vocab_limit=False,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        num_threads=1,
        minloglevel=3,
    )
    return model.getvalue()


# ---------------------------------------------------------------------------------------------
# Data folders


class DataFolders:
    """Folders of `data build`: manifest, tokenizer, shards and validation text."""

    name = "data"

    def specimens(self) -> list[Files]:
        """Return a folder of several shards."""
        documents = [Document(f"d{seed}", _text(seed)) for seed in range(30)]
        settings: dict[str, Any] = {"vocab_size": _VOCABULARY, "val_share": 0.2}

        def build(place: Path) -> None:
            build_data(documents, place, shard_tokens=1500, **settings)

        return [_in_folder(build)]

    def spoil(self, files: Files, rng: random.Random) -> Case:
        """Spoil one file, or a file and its digest, or the manifest's values or syntax."""
        kind = rng.random()
        manifest = json.loads(files[MANIFEST])
        if kind < 0.25:
            note = spoil_value(manifest, rng, (*files, "../x", "fairway_val_000000.bin"))
            return Case({MANIFEST: json.dumps(manifest).encode()}, False, f"manifest{note}")
        if kind < 0.35:
            return Case({MANIFEST: odd_json(manifest, rng)}, False, "odd manifest")
        name = rng.choice(sorted(files.keys() - {MANIFEST}))
        if kind < 0.45:
            change: Change = None if rng.random() < 0.5 else Path.mkdir
            return Case({name: change}, False, f"{name} is missing or a folder")
        data = damaged(files[name], rng)
        if kind < 0.7:
            return Case({name: data}, False, name)
        _set_digest(manifest, name, digest_bytes(data))
        return Case({name: data, MANIFEST: json.dumps(manifest).encode()}, True, name)

    def read(self, folder: Path) -> Any:
        """Open and verify as a run does; read validation and training text."""
        source = DataFolder.open(folder)
        source.verify()
        source.facts()
        whole = source.sample_validation()
        sample = source.sample_validation(max_bytes=500)
        return whole, sample, list(source.last_train_documents())[::-1], source.tokenizer

    def wrong(self, files: Files, case: Case, found: Any) -> str:
        """Compare with the library's own decoding of the shards that were there at first."""
        whole, sample, train, tokenizer = found
        for taken in (whole, sample):
            if taken.bytes != sum(len(text.encode()) for text in taken.documents):
                return "the bytes are others than the texts'"
        if case.repaired:
            return ""
        model = sentencepiece.SentencePieceProcessor(model_proto=files[TOKENIZER])
        if tokenizer.data != files[TOKENIZER]:
            return "another tokenizer was read"
        for side, texts in (("train", train), ("val", whole.documents)):
            names = sorted(name for name in files if f"_{side}_" in name)
            ids = [np.frombuffer(files[name][HEADER_BYTES:], "<u2") for name in names]
            plain = model.decode(np.concatenate(ids).tolist())
            if plain != "".join(texts):
                return f"another {side} text was read"
        return ""


def _set_digest(manifest: dict[str, Any], name: str, digest: str) -> None:
    if name == TOKENIZER:
        manifest["tokenizer"]["sha256"] = digest
    elif name == VAL_TEXT:
        manifest["val"]["text_sha256"] = digest
    else:
        for shard in (*manifest["train"]["shards"], *manifest["val"]["shards"]):
            if shard["name"] == name:
                shard["sha256"] = digest


# ---------------------------------------------------------------------------------------------
# Text


class Texts:
    """Text files, lines of JSON, plain and compressed, and Parquet of several kinds."""

    name = "text"

    def specimens(self) -> list[Files]:
        """Return one file of each kind; names tell how it is read again."""
        texts = [_text(seed, 20) for seed in range(12)]
        lines = b"".join(
            json.dumps({"id": n, "text": t}).encode() + b"\n" for n, t in enumerate(texts)
        )
        packed = zstandard.ZstdCompressor(write_checksum=True)
        found: list[Files] = [
            {"a.txt": texts[0].encode()},
            {"a.jsonl": lines},
            {"a.jsonl.zst": packed.compress(lines[:600]) + packed.compress(lines[600:])},
        ]
        plain = pyarrow.array([*texts, None])
        for column, options in (
            (plain, {"compression": "none", "page_checksum": True}),
            (plain.dictionary_encode(), {"compression": "zstd"}),
            (plain.cast(pyarrow.large_string()), {"compression": "snappy", "row_group_size": 5}),
            (plain.cast(pyarrow.binary()), {"compression": "gzip", "use_dictionary": False}),
        ):
            table = pyarrow.table({"id": range(13), "text": column})
            found.append(_in_folder(lambda place, t=table, o=options: _parquet(place, t, o)))
        return found

    def spoil(self, files: Files, rng: random.Random) -> Case:
        """Spoil bytes, or a line of JSON by its values or its syntax, packed again."""
        ((name, data),) = files.items()
        if "jsonl" not in name or rng.random() < 0.4:
            return Case({name: damaged(data, rng)}, False, f"bytes of {name}")
        lines = _unpacked(name, data).splitlines()
        at = rng.randrange(len(lines))
        value = json.loads(lines[at])
        if rng.random() < 0.5:
            spoil_value(value, rng, ("text", "\x00", "\ufeff"))
            lines[at] = json.dumps(value).encode()
        else:
            lines[at] = odd_json(value, rng)
        whole = rng.choice((b"\n", b"\r\n", b"\n\n")).join(lines)
        packed = zstandard.compress(whole) if name.endswith("zst") else whole
        return Case({name: packed}, True, f"a line of {name}")

    def read(self, folder: Path) -> Any:
        """Read all documents as `data build` and `score` do."""
        left_out = LeftOut()
        return [d.text for d in read_documents([folder], left_out)], left_out["null_text"]

    def wrong(self, files: Files, case: Case, found: Any) -> str:
        """Read the file once more, whole, by other functions."""
        ((name, data),) = {**files, **case.changes}.items()
        assert isinstance(data, bytes)
        try:
            expected = _again(name, data)
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            return f"another reader refuses it: {error}"
        texts = [text for text in expected if text is not None]
        if texts != found[0] or len(expected) - len(texts) != found[1]:
            return "other texts were read"
        covered = name.endswith("zst") and not case.repaired
        if covered and texts != _again(name, files[name]):
            return "damage that a digest covers was not noticed"
        return ""


def _parquet(place: Path, table: Any, options: dict[str, Any]) -> None:
    options = {
        name.replace("page_checksum", "write_page_checksum"): o for name, o in options.items()
    }
    pyarrow.parquet.write_table(table, place / "a.parquet", **options)


def _unpacked(name: str, data: bytes) -> bytes:
    if not name.endswith("zst"):
        return data
    source = pyarrow.input_stream(pyarrow.py_buffer(data), compression="zstd")
    return bytes(source.read())


def _again(name: str, data: bytes) -> list[str | None]:
    if name.endswith(".txt"):
        return [data.decode()]
    if name.endswith(".parquet"):
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(data), columns=["text"])
        column = table.column("text").to_pylist()
        return [text.decode() if isinstance(text, bytes) else text for text in column]
    lines = _unpacked(name, data).removeprefix(b"\xef\xbb\xbf").split(b"\n")
    return [json.loads(line, parse_int=len)["text"] for line in lines if line.strip()]
