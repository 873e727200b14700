"""Bad input from the command line: one sentence, exit code 2, nothing half-written.

Every case is a row: what is damaged, the command, and what its sentence must say.
"""

import struct
from collections.abc import Callable

import pytest
from damage import (
    ARTIFACT,
    FIXED,
    HOSTILE,
    TRAIN,
    TRAINS,
    VAL,
    WITHOUT_RECORD,
    Call,
    Damage,
    Place,
    both,
    contents,
    flip,
    halve,
    refused,
    remove,
    rewrite,
    untouched,
)

from fairway.pipeline.folder import MEMORY

# ---------------------------------------------------------------------------------------------
# Recipes, settings and options: refused before anything is made

WRONG_WORDS = [
    ("run smokey SMOKE", "unknown recipe 'smokey'; did you mean 'smoke'?"),
    ("run smoke --set train.step=3", "did you mean 'train.steps'?"),
    ("run smoke --set qk_gain=3", "did you mean 'model.qk_gain'?"),
    ("run smoke --set train.steps", "has no '='; write section.field=value"),
    ("run smoke --set =3", "override '=3' names no setting; write section.field=value"),
    ("run smoke --set train.steps=many", "train.steps must be a whole number, got 'many'"),
    ("run smoke --set train.steps=1.5", "train.steps must be a whole number"),
    ("run smoke --set optim.matrix_lr=nan", "optim.matrix_lr is not a number"),
    ("run smoke --set model.smear=maybe", "model.smear must be true or false"),
    ("run smoke --set train.steps=0", "train.steps is 0; it must be at least 1"),
    ("run smoke --set model.vocab_size=70000", "must be between 260 and 65,535"),
    ("run smoke --set train.clock=sun", "choose one of wall, steps, replay"),
    ("run smoke --set model.num_heads=3", "does not divide into model.num_heads 3"),
    ("run smoke --set model.num_kv_heads=3", "not a multiple of model.num_kv_heads 3"),
    ("run smoke --set model.rope_dims=7", "model.rope_dims 7 must be even"),
    ("run smoke --set model.rope_dims=64", "at most the head width 32"),
    ("run smoke --set model.loop_last=9", "the recurrence runs over blocks 1 to 9"),
    ("run smoke --set score.stride=65", "score.stride 65 is longer than score.seq_len 64"),
    ("run smoke --set train.batch_tokens=1000", "not a multiple of train.seq_len 64"),
    ("run smoke --set train.micro_tokens=384", "not a multiple of train.micro_tokens 384"),
    ("run smoke --set train.clock=replay", "go together"),
    ("run smoke --set optim.ema_decay=0.9", "set exactly one of"),
    ("run demo --set train.reserve_s=200", "is not below train.budget_s"),
    ("run smoke --resume --restart", "choose one"),
    ("train smoke --resume --restart", "choose one"),
    ("run smoke --dry-run --set model.dim=63", "does not divide"),
    ("run smoke --out text.txt SMOKE", "text.txt is a file; name a folder with --out"),
    ("pack nowhere", "nowhere is not a run folder"),
    ("report data", "data is not a run folder"),
    ("score nowhere", "nowhere does not exist"),
    ("score data", "data is not a run folder"),
    ("score run --tokenizer text.txt", "--tokenizer needs text files to score"),
    ("score run/artifact.fwy --adapter text.txt", "--adapter needs text files to score"),
    ("score run/artifact.fwy text.txt --set score.stride=8", "for an artifact, set only runtime"),
    ("audit", "name a run folder to audit, or --program"),
    ("audit run --program x --tokens y", "name a run folder to audit, or --program"),
    ("audit --program x", "--program and --scorer take --tokens FILE"),
    ("audit --program cat --tokens text.txt", "is not valid JSON"),
    ("audit --program nowhere --tokens run/run.json", "must hold a JSON list of token ids"),
    (
        "audit run --fresh text.txt",
        "--fresh goes with --program or --scorer only, not with a run or a log",
    ),
    ("audit --log text.txt --fresh text.txt", "--fresh goes with --program or --scorer only"),
    (
        "audit run --fresh text.txt --bytes 9",
        "--fresh and --bytes go with --program or --scorer only",
    ),
    ("audit nowhere", "nowhere is not a run folder"),
    ("audit run --set audit.tokens=3", "audit.tokens is 3; it must be between 64"),
    ("audit-record nowhere", "nowhere does not exist"),
    ("verify nowhere", "nowhere does not exist; name the folder of a record"),
    ("verify text.txt", "text.txt is a file; name the folder of a record"),
    ("compress . --artifact run", "cannot read .: it is a folder, not a file"),
    ("compress / --artifact run", "cannot read /: it is a folder, not a file"),
    ("decompress . --artifact run --out x", "cannot read .: it is a folder, not a file"),
    ("sample nowhere", "the artifact nowhere does not exist"),
    ("sample run --temperature -1", "temperature is -1; it must be a number of 0 or more"),
    ("sample run --temperature nan", "temperature is nan; it must be a number of 0 or more"),
    ("sample run --temperature inf", "temperature is inf; it must be a number of 0 or more"),
    ("sample run --tokens -1", "'--tokens': -1 is out of bounds; it must be at least 0"),
    ("sample run --top-k 0", "'--top-k': 0 is out of bounds; it must be at least 1"),
    ("sample run --top-p 2", "top_p is 2; it must be a number from 0 to 1"),
    ("sample run --seed 9223372036854775808", "must be between 0 and 9,223,372,036,854,775,807"),
    (f"sample run --seed {5000 * '9'}", "must be between 0 and 9,223,372,036,854,775,807"),
    ("sample run --seed 1.5", "'--seed': '1.5' is not a whole number"),
    ("data build", "name text files to build from, or pass --embedded, but not both"),
    ("data build text.txt --embedded", "but not both"),
    ("data build text.txt --vocab-size 9", "model.vocab_size is 9; it must be between 260"),
    ("data build text.txt --val-share 0.9", "data.val_share is 0.9; it must be between"),
    ("data build text.txt --shard-tokens 0", "0 is out of bounds; it must be at least 1,000"),
    ("data show nowhere", "there is no data folder nowhere"),
    ("run smoke --dry-run --set data.source=nowhere", "there is no data folder nowhere"),
    ("run smoke --dry-run --set data.source=run", "no train shards"),
    ("run smoke --dry-run --set data.source=data", "has 300 pieces, but model.vocab_size is 512"),
    ("run smoke --dry-run --set train.init=text.txt", "is not a Fairway artifact"),
    ("run smoke --dry-run --set train.init=run", "has 300 pieces, but model.vocab_size is 512"),
    ("run best_8 --dry-run --set train.init=nowhere", "train.init is nowhere, which is neither"),
    ("run smoke --dry-run --out text.txt", "text.txt is a file; name a folder with --out"),
    ("run smoke --dry-run SMOKE --set train.init=run --set model.dim=96", "the weights do not fit"),
    ("run smoke --dry-run SMOKE --set train.batch_tokens=6400000", "and one step needs"),
    ("ablate smoke --arm a:data.source=nowhere --dry-run", "arm 'a': there is no data"),
    ("data show run", "no train shards"),
    ("data fetch --out run", "run holds something other than fetched data"),
]


@pytest.mark.parametrize(("line", "told"), WRONG_WORDS)
def test_wrong_words(place: Place, call: Call, line: str, told: str) -> None:
    line += f" {FIXED}" if line.startswith("sample") else ""
    untouched(place, call, line, told)


DATA = [
    (remove(TRAIN), "is missing; build or fetch the data again"),
    (remove(*TRAINS), "no train shards"),
    (remove(VAL), "no val shards"),
    (remove("data/tokenizer.model"), "missing"),
    (rewrite(TRAIN, halve), "damaged or cut short"),
    (rewrite(TRAIN, lambda data: data[:100]), "a token shard has at least 1024"),
    (rewrite(TRAIN, lambda data: data + b"xx"), "damaged or cut short"),
    (rewrite(TRAIN, lambda data: b"GGUF" + data[4:]), "is not a token shard: its first word is"),
    (rewrite(TRAIN, lambda data: data[:4] + b"\2" + data[5:]), "is a token shard of version 2"),
    (rewrite(VAL, halve), "damaged or cut short"),
    (rewrite("data/manifest.json", halve), "manifest.json is not valid JSON"),
    (rewrite("data/manifest.json", lambda data: b"[]"), "manifest.json is damaged"),
    (rewrite("data/tokenizer.model", flip(0.5)), "tokenizer.model"),
    (rewrite("data/tokenizer.model", lambda data: HOSTILE), "not a usable SentencePiece model"),
    (
        both(WITHOUT_RECORD, rewrite("data/tokenizer.model", lambda data: HOSTILE)),
        "not a usable SentencePiece model",
    ),
    (both(remove(TRAIN), lambda place: (place / TRAIN).mkdir()), "it is a folder, not a file"),
]


@pytest.mark.parametrize(("damage", "told"), DATA)
def test_damaged_data(place: Place, call: Call, damage: Damage, told: str) -> None:
    damage(place)
    before = contents(place.path)
    refused(call, "run smoke --out new SMOKE", told)
    # The folder of the new run holds its settings, and no part of a result.
    after = contents(place.path)
    assert set(after) - set(before) <= {f"new/{MEMORY}", "new/steps.jsonl"}
    assert before.items() <= after.items()


def test_a_vocabulary_that_does_not_fit(place: Place, call: Call) -> None:
    told = "has 300 pieces, but model.vocab_size is 310; set model.vocab_size=300"
    refused(call, "train smoke --out new SMOKE --set model.vocab_size=310", told)


def foreign_ids(place: Place) -> None:
    """Put an id outside the vocabulary into each training shard, and forget the digests."""
    WITHOUT_RECORD(place)
    for name in TRAINS:
        rewrite(name, lambda data: data[:1024] + struct.pack("<H", 400) + data[1026:])(place)


@pytest.mark.parametrize(
    "line",
    [
        "data show data",
        "train smoke --out new SMOKE",
    ],
)
def test_ids_outside_the_vocabulary(place: Place, call: Call, line: str) -> None:
    foreign_ids(place)
    refused(call, line, "has token id 400, outside the vocabulary of 300")


def test_a_changed_shard_is_found_by_show(place: Place, call: Call) -> None:
    rewrite(TRAIN, flip(0.9))(place)
    untouched(place, call, "data show data", "is not the file that was recorded")


def test_validation_shorter_than_a_window(place: Place, call: Call) -> None:
    window = "--set score.truncate=true --set score.seq_len=4096 --set ttt.method=off"
    told = "but one window needs 4097; lower score.seq_len, set score.truncate=false"
    refused(call, f"run smoke --out new SMOKE {window}", told)
    assert not (place / "new" / "results.json").exists()


def test_validation_shorter_than_a_window_is_told_before_training(place: Place, call: Call) -> None:
    window = "--set score.truncate=true --set score.seq_len=8192 --set data.val_bytes=0"
    window += " --set ttt.method=off"
    refused(call, f"run smoke --out new SMOKE {window}", "but one window needs 8193")
    assert not (place / "new" / "weights.safetensors").exists()


def test_training_text_shorter_than_a_step(place: Place, call: Call) -> None:
    longer = "--set train.batch_tokens=1048576 --set train.micro_tokens=1048576"
    refused(call, f"train smoke --out new SMOKE {longer}", "lower train.batch_tokens")


def test_a_sequence_longer_than_a_shard(place: Place, call: Call) -> None:
    longer = " ".join(f"--set train.{n}=16384" for n in ("seq_len", "batch_tokens", "micro_tokens"))
    refused(call, f"train smoke --out new SMOKE {longer}", "lower train.")


def lines(*texts: str) -> Damage:
    return lambda place: (place / "lines.jsonl").write_text("\n".join(texts))


def nothing(place: Place) -> None:
    """Damage nothing."""


CORPORA = [
    (nothing, "empty.txt", "there is no text"),
    (lines('{"text": " "}', '{"text": ""}'), "lines.jsonl", "there is no text"),
    (nothing, "text.txt", "cannot be split into training and validation"),
    (lambda place: (place / "folder").mkdir(), "folder", "no text in the folder folder"),
    (nothing, "nowhere.txt", "nowhere.txt does not exist"),
    (nothing, "run/artifact.fwy", "has an unknown ending"),
    (rewrite("text.txt", lambda data: b"\xff\xfe" + data), "text.txt", "is not UTF-8"),
    (lines('{"text": "a"}', '{"text": '), "lines.jsonl", "lines.jsonl line 2 is not JSON"),
    (lines('{"words": "a"}'), "lines.jsonl", "its fields are 'words'; expected"),
    (nothing, "text.txt --tokenizer empty.txt", "not a usable SentencePiece model"),
    (nothing, "text.txt --tokenizer nowhere", "the tokenizer nowhere does not exist"),
    (nothing, "text.txt --validation text.txt", "overlaps with the validation text"),
    (nothing, "text.txt --validation empty.txt", "no text in the validation documents"),
]


@pytest.mark.parametrize(("damage", "texts", "told"), CORPORA)
def test_text_that_nothing_can_be_built_from(
    place: Place, call: Call, damage: Damage, texts: str, told: str
) -> None:
    damage(place)
    untouched(place, call, f"data build {texts} --out new", told)


def test_a_folder_of_something_else_is_not_replaced(place: Place, call: Call) -> None:
    told = "run holds something other than Fairway data"
    untouched(place, call, "data build text.txt --out run", told)
    untouched(place, call, "data build text.txt --out text.txt", "text.txt is a file")


# ---------------------------------------------------------------------------------------------
# Artifacts


def claim_header(length: int) -> Callable[[bytes], bytes]:
    """Return a change: the header's length, which is the second word after the magic."""
    return lambda data: data[:12] + struct.pack("<I", length) + data[16:]


ARTIFACTS: list[tuple[Callable[[bytes], bytes], str]] = [
    *[(flip(at), "artifact.fwy: ") for at in (0.0, 0.0002, 0.001, 0.02, 0.5, 0.99, 1.0)],
    (lambda data: b"", "this is not a Fairway artifact"),
    (lambda data: data[:20], "the file ends after 20 bytes"),
    (halve, "but its header describes"),
    (lambda data: data[:-1], "but its header describes"),
    (lambda data: data + b"\0", "but its header describes"),
    (claim_header(2**32 - 1), "the header claims 4294967295 bytes"),
    (claim_header(0), "the header is damaged"),
    (
        lambda data: data[:8] + b"\x09" + data[9:],
        "the file has format version 9, but this Fairway reads only version 5",
    ),
]


@pytest.mark.parametrize(("change", "told"), ARTIFACTS)
def test_damaged_artifacts(
    place: Place, call: Call, change: Callable[[bytes], bytes], told: str
) -> None:
    rewrite(ARTIFACT, change)(place)
    untouched(place, call, f"score {ARTIFACT} text.txt {FIXED}", told)
    untouched(place, call, f"sample run {FIXED}", told)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (f"score {ARTIFACT} text.txt --tokenizer empty.txt", "not a usable SentencePiece model"),
        (f"score {ARTIFACT} text.txt --tokenizer nowhere", "the tokenizer nowhere does not exist"),
        (f"score {ARTIFACT} empty.txt", "the text is empty"),
        (f"score {ARTIFACT} nowhere.txt", "nowhere.txt does not exist"),
        (f"score {ARTIFACT} {ARTIFACT}", "has an unknown ending"),
        ("score text.txt text.txt", "this is not a Fairway artifact"),
        ("sample run --prompt \udcff", "half a character"),
    ],
)
def test_artifacts_with_other_files(place: Place, call: Call, line: str, told: str) -> None:
    untouched(place, call, f"{line} {FIXED}", told)
