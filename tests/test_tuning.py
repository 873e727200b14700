"""Fine-tuning: the file of its adapters, what it belongs to, and a base that stays as it is."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import Cli
from safetensors.torch import save_file
from small_run import small_run
from specimens import change, reheaded
from torch import Tensor

from fairway.api import LanguageModel, load
from fairway.base.errors import UserError
from fairway.base.files import digest_file, read_json
from fairway.base.names import ARTIFACT, TOKENIZER_FILE
from fairway.config.settings import Config, RuntimeConfig
from fairway.export.formats import export
from fairway.machine.plan import Plan
from fairway.model.adapters import Adapters, attach
from fairway.score.adapter_file import load_adapter
from fairway.train.checkpoint import load_checkpoint, save_checkpoint
from fairway.tuning import tune as tuning

PLAN = Plan("cpu", "float32", "highest", 1, "plain")
# What a probe would take seconds to choose.
RUNTIME = RuntimeConfig(threads=1, dtype="float32", matmul="highest")
# Text that the pseudo-English of the tests has nothing of.
LEARNED = [f"{n}: the moon rises over hill {n % 7}; count {n}, and wait.\n" * 3 for n in range(40)]
CONFIG = replace(tuning.TUNING, lora_rank=2, lora_alpha=4.0, lora_lr=0.02)


@pytest.fixture(scope="module")
def run(tiny: Callable[..., Config]) -> Path:
    return small_run(tiny)


@pytest.fixture(scope="module")
def base(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the artifact of a run and its tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    for name in (ARTIFACT, TOKENIZER_FILE):
        (folder / name).write_bytes((run / name).read_bytes())
    return folder


@pytest.fixture(scope="module")
def made(base: Path) -> tuple[Path, dict[str, Any]]:
    """Return an adapter file and what its making said."""
    out = base / "adapter.safetensors"
    return out, tuning.tune(base, LEARNED, out, CONFIG, epochs=2, runtime=RUNTIME)


def logits(model: LanguageModel) -> Tensor:
    ids = torch.arange(2, 26)[None]
    with torch.no_grad():
        return model.model.logits(model.model.hidden(ids))


@pytest.mark.long
def test_learning_lowers_the_cost_of_text_that_was_learned_and_of_more_of_its_kind(
    base: Path, made: tuple[Path, dict[str, Any]]
) -> None:
    file, facts = made
    results = facts["results"]
    for part in ("learned", "held_out"):
        assert results["after"][part] < 0.8 * results["before"][part], part
    assert facts["base"] == digest_file(base / ARTIFACT)
    assert facts["bytes"] == file.stat().st_size
    plain, tuned = load(base, plan=PLAN), load(base, adapter=file, plan=PLAN)
    some = LEARNED[:8]
    assert tuned.bits_per_byte(some) < 0.8 * plain.bits_per_byte(some)


def test_the_base_is_what_it_was_without_the_adapter(
    base: Path, run: Path, made: tuple[Path, dict[str, Any]]
) -> None:
    assert (base / ARTIFACT).read_bytes() == (run / ARTIFACT).read_bytes()
    plain = load(base, plan=PLAN)
    seen = logits(plain)
    # Adapters whose matrices B are zero add nothing, to the bit.
    adapters = Adapters(plain.model, CONFIG.lora_targets.split(), 2, 4.0)
    values = adapters.zeros(1)
    for inner in values[::2]:
        inner.normal_()
    attach(plain.model, adapters, values)
    assert torch.equal(logits(plain), seen)
    assert not torch.equal(logits(load(base, adapter=made[0], plan=PLAN)), seen)


@pytest.mark.long
def test_what_was_learned_comes_back_to_the_bit(
    base: Path, made: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    again = tmp_path / "again.safetensors"
    facts = tuning.tune(base, LEARNED, again, CONFIG, epochs=2, runtime=RUNTIME)
    assert again.read_bytes() == made[0].read_bytes() and facts == made[1]
    plain = load(base, plan=PLAN)
    digests = facts["base"], facts["tokenizer"]
    adapters, values, _ = load_adapter(again, plain.model, *digests)
    stored, _ = load_checkpoint(again)
    assert all(torch.equal(a, b) for a, b in zip(values, stored.values(), strict=True))
    attach(plain.model, adapters, values)
    assert torch.equal(logits(plain), logits(load(base, adapter=again, plan=PLAN)))


def test_rows_and_cached_tokens_have_the_same_adapters(
    base: Path, made: tuple[Path, dict[str, Any]]
) -> None:
    tuned = load(base, adapter=made[0], plan=PLAN)
    # Token by token through a cache the likeliest continuation is that of whole windows.
    prompt = LEARNED[3][:20]
    text = tuned.generate(prompt, max_tokens=6, temperature=0.0)
    ids = list(tuned.packer.stream([prompt]))
    for _ in range(6):
        with torch.no_grad():
            states = tuned.model.hidden(torch.tensor([ids, ids]))
            both = tuned.model.logits(states)[:, -1]
        assert torch.allclose(both[0], both[1], atol=1e-5)
        ids.append(int(both[0].argmax()))
    assert tuned.packer.documents(torch.tensor(ids).numpy())[0].decode() == prompt + text


# ---------------------------------------------------------------------------------------------
# Other files


def refused(base: Path, file: Path, told: str) -> None:
    with pytest.raises(UserError, match=told) as caught:
        load(base, adapter=file, plan=PLAN)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_another_base_or_tokenizer_is_refused(
    base: Path, made: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for name in (ARTIFACT, TOKENIZER_FILE):
        (other / name).write_bytes((base / name).read_bytes())
    reheaded(other / ARTIFACT, change("provenance", "seed", to=7))
    refused(
        other, made[0], "belongs to the artifact .*, but this artifact is .*; name the artifact"
    )
    tensors, facts = load_checkpoint(made[0])
    save_checkpoint(tmp_path / "a", tensors, {**facts, "tokenizer": "0" * 64})
    refused(base, tmp_path / "a", "belongs to the tokenizer 000000000000, but this one is")


def test_what_is_no_adapter_or_damaged_is_refused(
    base: Path, made: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    file, data = tmp_path / "a.safetensors", made[0].read_bytes()
    told = "is not an adapter file of `fairway tune`, or it is damaged; make it again"
    for damaged in (data[:-1], data[:40], b"", b"text", data[:-9] + b"x" + data[-8:], data + b"x"):
        file.write_bytes(damaged)
        refused(base, file, told)
    save_file({"0.inner": torch.zeros(3)}, file, metadata={"format": "pt"})
    refused(base, file, told)
    refused(base, tmp_path / "none", "does not exist")
    refused(base, tmp_path, "it is a folder, not a file")
    refused(base, base / ARTIFACT, told)
    save_checkpoint(file, {}, {"looping": True})
    refused(base, file, "holds no adapter; name one that `fairway tune` wrote")


Spoil = Callable[[dict[str, Tensor], dict[str, Any]], Any]
SPOILT: list[tuple[Spoil, str]] = [
    (lambda t, f: f.update(version=2), "format version 2, but this Fairway reads only version 1"),
    (lambda t, f: f.pop("rank"), "field 'rank' is missing or of a wrong type"),
    (lambda t, f: f.update(rank=True), "field 'rank' is missing or of a wrong type"),
    (lambda t, f: f.update(rank=0), "rank is 0; it must be from 1 to 4096"),
    (lambda t, f: f.update(rank=10**6), "rank is 1000000; it must be from 1 to 4096"),
    (lambda t, f: f.update(rank=3), r"tensor '0\.inner' is torch\.float32 .*, and the model needs"),
    (lambda t, f: f.update(alpha="4"), "field 'alpha' is missing or of a wrong type"),
    (lambda t, f: f.update(alpha=1e300), "alpha is 1e.300; it must be from 0 to 1,000,000"),
    (lambda t, f: f.update(targets=[]), "targets are not some of q, k, v, o, mlp, head"),
    (lambda t, f: f.update(targets=["q", {}]), "targets are not some of q, k, v, o, mlp, head"),
    (lambda t, f: f.update(targets=["q"]), "tensors do not match its targets"),
    (lambda t, f: t.pop("1.outer"), "tensors do not match its targets"),
    (lambda t, f: t.update({"2.inner": torch.zeros(1)}), "tensors do not match its targets"),
    (lambda t, f: t["0.outer"].fill_(torch.nan), r"'0\.outer' holds a number that is not finite"),
    (lambda t, f: t.update({"0.inner": t["0.inner"].half()}), r"'0\.inner' is torch\.float16"),
]


@pytest.mark.parametrize(("spoil", "told"), SPOILT)
def test_every_field_and_tensor_of_an_adapter_is_checked(
    base: Path, made: tuple[Path, dict[str, Any]], tmp_path: Path, spoil: Spoil, told: str
) -> None:
    tensors, facts = load_checkpoint(made[0])
    spoil(tensors, facts)
    save_checkpoint(tmp_path / "a", tensors, facts)
    refused(base, tmp_path / "a", told)


# ---------------------------------------------------------------------------------------------
# Commands


def test_tune_score_sample_and_export(
    cli: Cli, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, out = tmp_path / "text.md", tmp_path / "own.safetensors"
    text.write_text("".join(LEARNED[:8]))
    fixed = ("threads=1", "dtype=float32", "matmul=highest")
    cpu = tuple(word for text in fixed for word in ("--set", f"runtime.{text}"))
    small = ("--set", "ttt.lora_rank=2", "--set", "ttt.lora_lr=0.02")
    told = cli("tune", base, text, "--out", out, "--epochs", 2, *small, *cpu, "--json").json
    assert told["rank"] == 2 and told["results"]["bytes"]["learned"] > 0
    before = cli("score", base, text, *cpu, "--json").json["bpb"]
    after = cli("score", base, text, "--adapter", out, *cpu, "--json").json["bpb"]
    assert after < before
    greedy = ("--prompt", "3: the", "--tokens", 4, "--temperature", 0, *cpu, "--json")
    said = cli("sample", base, "--adapter", out, *greedy).json["text"]
    assert said == load(base, adapter=out, plan=PLAN).generate(
        "3: the", max_tokens=4, temperature=0.0
    )
    exported = cli("export", base, "--out", tmp_path / "e", "--format", "torch", "--adapter", out)
    assert exported.code == 0
    assert read_json(tmp_path / "e/config.json")["fairway"]["adapter"]["rank"] == 2
    # A file of its own is replaced, one of another program is not.
    assert cli("tune", base, text, "--out", out, "--epochs", 1, *small, *cpu).code == 0
    (tmp_path / "mine").write_text("mine")
    for arguments, sentence in (
        (("tune", base, text, "--out", tmp_path / "mine"), "this command did not write it"),
        (("tune", base, text, "--out", text), "is the text"),
        (("tune", base, tmp_path / "none.md", "--out", out), "does not exist"),
        (("tune", base, text, "--out", out, "--epochs", 0), "must be between 1 and 10,000"),
        (("tune", base, text, "--out", out, "--set", "ttt.lora_chunks=8"), "has no effect on fine"),
        (("tune", base, text, "--out", out, "--set", "quant.fit=true"), "has its own settings"),
        (("score", base, "--adapter", out), "--adapter needs text files to score"),
        (
            ("score", base, text, "--adapter", text, *cpu),
            "is not an adapter file of `fairway tune`",
        ),
        (("export", base, "--out", tmp_path / "w", "--adapter", out), "choose --format torch or"),
    ):
        found = cli(*arguments)
        assert found.code == 2 and sentence in found.err and found.err.count("\n") == 1
    (tmp_path / "empty.md").write_text("")
    assert cli("tune", base, tmp_path / "empty.md", "--out", out, *cpu).code == 2


def test_a_short_text_is_learned_whole(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    facts = tuning.tune(base, ["Hm."], out, CONFIG, epochs=1, runtime=RUNTIME)
    assert set(facts["results"]["before"]) == {"learned"} and facts["results"]["steps"] == 1
    with pytest.raises(UserError, match="the text is empty"):
        tuning.tune(base, [""], tmp_path / "b", CONFIG, runtime=RUNTIME)
    with pytest.raises(UserError, match="holds the model's own matrices, which do not contain"):
        export(base, tmp_path / "e", "safetensors", adapter=out)
