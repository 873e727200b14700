"""An exported artifact is the model: the same weights, hence the same scores, wherever it runs."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from damage import Cli
from export.elsewhere import bare_python, run
from safetensors.torch import load_file

from fairway.api import load
from fairway.base.errors import UserError
from fairway.base.files import digest_file, read_json
from fairway.config.settings import Config, ModelConfig
from fairway.config.written import from_dict
from fairway.export.formats import FORMATS, export
from fairway.machine.plan import Plan
from fairway.model.gpt import build
from fairway.pipeline.folder import RunFolder
from fairway.pipeline.run import Pipeline

PLAN = Plan("cpu", "float32", "highest", 1, "plain")
TEXTS = ["The model learns.", " two  blanks\n\n\tand a tab ", "naïve \u4e2d\u6587 \U0001f600", "x"]


def test_weights_and_config_make_the_same_model(smoke_run: Path, tmp_path: Path) -> None:
    facts = export(smoke_run, tmp_path / "out", "safetensors")
    tensors, config = (
        load_file(tmp_path / "out/model.safetensors"),
        read_json(tmp_path / "out/config.json"),
    )
    assert (
        config == facts
        and digest_file(tmp_path / "out/model.safetensors") == facts["weights_digest"]
    )
    assert all(value.dtype == torch.float32 for value in tensors.values())
    own = load(smoke_run, plan=PLAN).model
    shape: ModelConfig = from_dict(config["model"], ModelConfig)
    model = build(shape)
    model.load_state_dict(tensors)
    model.set_looping(config["provenance"]["looping"])
    ids = torch.arange(2, 34)[None]
    model.set_compute(own.compute_dtype, "plain")
    with torch.no_grad():
        assert torch.equal(model.logits(model.hidden(ids)), own.logits(own.hidden(ids)))


@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_there_stays_and_unknown_formats_are_refused(
    smoke_run: Path, tmp_path: Path, kind: str, cli: Cli
) -> None:
    assert (
        "format 'x' is unknown; choose"
        in cli("export", smoke_run, "--out", tmp_path, "--format", "x").err
    )
    for name in ("config.json", *FORMATS[kind]):
        (tmp_path / name).write_text("mine")
        with pytest.raises(UserError, match="exists already"):
            export(smoke_run, tmp_path, kind)
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------
# In a process without Fairway

PLAIN = """
import json, sys, torch
sys.path.insert(0, ".")
from modeling_fairway import load
from tokenization_fairway import open_words
assert not {"fairway", "numba", "transformers"} & set(sys.modules)
model, words = load("."), open_words(".")
texts = json.load(open("texts.json"))
ids = [words.encode(text) for text in texts]
with torch.no_grad():
    logits = [model(torch.tensor([one]))[0].tolist() for one in ids]
grown = model.generate(torch.tensor([ids[0]]), 12, temperature=0.0)[0]
print(json.dumps([ids, logits, [words.decode(one) for one in ids], words.decode(grown)]))
"""


@pytest.mark.long
@pytest.mark.parametrize("kind", ["torch", "transformers"])
def test_an_exported_folder_runs_in_plain_pytorch(
    smoke_run: Path, tmp_path: Path, kind: str, cli: Cli
) -> None:
    out = tmp_path / "out"
    assert cli("export", smoke_run, "--out", out, "--format", kind).code == 0
    (out / "texts.json").write_text(json.dumps(TEXTS))
    ids, logits, texts, grown = run(bare_python(tmp_path / "bare"), PLAIN, out)
    own = load(smoke_run, plan=PLAN)
    assert texts == TEXTS
    for text, found, values in zip(TEXTS, ids, logits, strict=True):
        assert found == own.packer.stream([text]).tolist()
        with torch.no_grad():
            expected = own.model.logits(own.model.hidden(torch.tensor([found])))[0]
        assert (torch.tensor(values) - expected).abs().max() < 1e-5
    assert grown == TEXTS[0] + own.generate(TEXTS[0], max_tokens=12, temperature=0.0)


HUGGING = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
words = AutoTokenizer.from_pretrained(".", trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(".", trust_remote_code=True).eval()
assert "fairway" not in sys.modules
texts = json.load(open("texts.json"))
ids = [words(text)["input_ids"] for text in texts]
with torch.no_grad():
    logits = [model(torch.tensor([one])).logits[0].tolist() for one in ids]
how = {"max_new_tokens": 9, "do_sample": False, "eos_token_id": None}
batch = words(texts, return_tensors="pt", padding=True)
told = {}
for cached in (True, False):
    grown = model.generate(**batch, **how, use_cache=cached)
    told[f"cached {cached}"] = grown[:, batch["input_ids"].shape[1] :].tolist()
one = torch.tensor([ids[0]])
told["alone"] = model.generate(one, **how)[:, len(ids[0]) :].tolist()
told["beams"] = len(model.generate(one, **how, num_beams=3)[0]) - len(ids[0])
told["loss"] = float(model(one, labels=one).loss)
model.save_pretrained("again")
words.save_pretrained("again")
again = AutoModelForCausalLM.from_pretrained("again", trust_remote_code=True)
with torch.no_grad():
    told["again"] = float((again(one).logits - model(one).logits).abs().max())
fresh = AutoModelForCausalLM.from_config(model.config, trust_remote_code=True)
told["fresh"] = all(bool(w.isfinite().all()) for w in fresh.parameters())
texts = [words.decode(one, skip_special_tokens=True) for one in ids]
print(json.dumps([ids, logits, texts, told]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("smear", [False, True])
def test_transformers_loads_runs_and_generates(
    smoke_run: Path, tiny: Callable[..., Config], tmp_path: Path, smear: bool
) -> None:
    packages, out = tmp_path / "packages", tmp_path / "out"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", packages]
    subprocess.run([*pip, "transformers", "tokenizers"], check=True)
    path = smoke_run
    if smear:
        path = tmp_path / "run"
        pipeline = Pipeline(tiny("model.smear=true"), RunFolder(path), lambda text: None)
        with pipeline.writing():
            pipeline.train()
            pipeline.pack()
    export(path, out, "transformers")
    (out / "texts.json").write_text(json.dumps(TEXTS))
    python = bare_python(tmp_path / "bare", packages)
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    ids, logits, texts, told = run(python, HUGGING, out, **offline)
    own = load(path, plan=PLAN)
    assert texts == TEXTS
    for text, found, values in zip(TEXTS, ids, logits, strict=True):
        assert found == own.packer.stream([text]).tolist()
        with torch.no_grad():
            expected = own.model.logits(own.model.hidden(torch.tensor([found])))[0]
        assert (torch.tensor(values) - expected).abs().max() < 1e-5
    assert (
        told["cached True"] == told["cached False"] and told["alone"][0] == told["cached True"][0]
    )
    assert told["beams"] == 9 and told["again"] == 0.0 and told["fresh"]
    assert told["loss"] == pytest.approx(float(-own.logprobs(TEXTS[0]).mean()), abs=1e-4)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "adapter_config.json", "tokenizer.json", "x.py"]
)
def test_two_models_are_not_mixed_in_one_folder(smoke_run: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(UserError, match=f"holds {name}, which programs could take"):
        export(smoke_run, tmp_path, "safetensors")
    assert len(list(tmp_path.iterdir())) == 2
