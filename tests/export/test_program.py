"""The generated code of an exported model against the model, with all that a model can have."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from export.elsewhere import bare_python, run
from features import ALL, FEATURES
from safetensors.torch import save_file
from tiny import TINY, alive

from fairway.config.settings import ModelConfig
from fairway.config.written import to_dict
from fairway.data.pieces import Packer
from fairway.data.tokens import Tokenizer, train_tokenizer
from fairway.export.program import MODEL_FILE, WORDS_FILE, program
from fairway.model.adapters import Adapters, attach

CONFIGS: dict[str, ModelConfig] = {
    "plain": TINY,
    "short": replace(TINY, rope_train_len=16),
    "smear": replace(TINY, smear=True, num_layers=4, loop_last=2, loop_extra=2),
    "no rope": replace(TINY, rope_dims=0),
    **{name: replace(TINY, **feature) for name, feature in FEATURES.items()},
    "all": replace(TINY, **ALL),
    "all, with adapters": replace(TINY, **ALL),
}
COMPARED = """
import json, sys, torch
sys.path.insert(0, ".")
from modeling_fairway import Past, load
assert "fairway" not in sys.modules
told = {}
for name in json.load(open("names.json")):
    model, kept = load(name), torch.load(f"{name}/seen.pt")
    ids, whole = kept["ids"], kept["logits"]
    def apart(a, b):
        return float((a - b).abs().max())
    with torch.no_grad():
        found = {"whole": apart(model(ids), whole)}
        past, parts = Past(), []
        for part in ids.split([5, 1, 1, ids.shape[1] - 7], 1):
            parts.append(model(part, past=past))
        found["pieces"] = apart(torch.cat(parts, 1), whole)
        wide = torch.cat([torch.full_like(ids[:, :3], 7), ids], 1)
        mask = torch.ones_like(wide)
        mask[:, :3] = 0
        half = len(ids[0]) // 2 + 3
        past = Past()
        parts = [model(wide[:, :half], mask[:, :half], past), model(wide[:, half:], mask, past)]
        found["padded"] = apart(torch.cat(parts, 1)[:, 3:], whole)
        grown = model.generate(ids[:, :6], 8, temperature=0.0)
        for at in range(6, 14):
            likeliest = model(grown[:, :at])[:, -1].argmax(-1)
            assert (likeliest == grown[:, at]).all(), "a continuation is another one"
        found["long"] = list(model.generate(ids, 20, seed=3).shape)
        again = model.generate(ids, 20, seed=3)
        assert (again == model.generate(ids, 20, seed=3)).all()
    told[name] = found
try:
    model(torch.ones(1, 3000, dtype=torch.long), past=Past())
except ValueError as error:
    told["refused"] = str(error)
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bare_python(tmp_path_factory.mktemp("bare"))


@pytest.mark.long
def test_every_feature_gives_the_same_logits_elsewhere_and_a_cache_has_its_room(
    python: Path, tmp_path: Path
) -> None:
    names = {f"{n}": name for n, name in enumerate(CONFIGS)}
    for folder, name in names.items():
        _written(tmp_path / folder, CONFIGS[name], "adapters" in name)
    (tmp_path / "names.json").write_text(json.dumps(list(names)))
    (tmp_path / MODEL_FILE).write_text(program(MODEL_FILE))
    told = run(python, COMPARED, tmp_path)
    assert "3000 positions are too many" in told["refused"]
    for folder, name in names.items():
        found = told[folder]
        assert found["long"] == [2, 32], name
        # A padded text of more positions has another rotary base, beyond the length of training.
        padded = 2e-5 if CONFIGS[name].rope_train_len > 15 else 1.0
        assert found["whole"] < 2e-5 and found["pieces"] < 2e-5 and found["padded"] < padded, name


WORDS = """
import json, sys
sys.path.insert(0, ".")
from tokenization_fairway import open_words
assert "fairway" not in sys.modules
words, texts = open_words("."), json.load(open("texts.json"))
ids = [words.encode(text) for text in texts]
print(json.dumps([ids, [words.decode(one) for one in ids]]))
"""


@pytest.mark.long
@pytest.mark.parametrize("case_ops", [False, True])
def test_words_elsewhere_have_the_marks_of_capital_letters(
    python: Path, tmp_path: Path, case_ops: bool
) -> None:
    sample = "the house of NASA stands. The House is old; the old house is small, " * 9
    texts = ["The House of NASA", "iPhone. the \ue001 end", " PDFs\n"]
    data = train_tokenizer([sample, "and other words for pieces of the model " * 9], 290, case_ops)
    (tmp_path / "tokenizer.model").write_bytes(data)
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    (tmp_path / WORDS_FILE).write_text(program(WORDS_FILE))
    ids, back = run(python, WORDS, tmp_path)
    packer = Packer(Tokenizer(data))
    assert packer.tokenizer.case_ops == case_ops and back == texts
    assert ids == [packer.stream([text]).tolist() for text in texts]


def _written(folder: Path, config: ModelConfig, adapted: bool = False) -> None:
    """Write a model as it is exported, and what it says of two texts with documents in them."""
    model = alive(config).eval()
    values: dict[str, Any] = {"model": to_dict(config), "looping": True, "length": 16}
    weights = {f"gpt.{n}": w.float().contiguous() for n, w in model.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    if adapted:
        own = {"targets": ["q", "k", "v", "o", "mlp", "head"], "rank": 2, "alpha": 3.0}
        adapters = Adapters(model, *own.values())
        # As large as the weights: larger ones would be rounded more coarsely than 1e-5.
        shapes = [value.shape for value in adapters.zeros(1)]
        drawn = [0.3 * torch.randn(shape, generator=generator) for shape in shapes]
        attach(model, adapters, drawn)
        weights |= {f"lora_values.{n}": value for n, value in enumerate(drawn)}
        values["adapter"] = own
    ids = torch.randint(2, config.vocab_size, (2, 12), generator=generator)
    ids[:, 0] = ids[0, 5] = ids[1, 8] = 1
    folder.mkdir()
    with torch.no_grad():
        torch.save({"ids": ids, "logits": model.logits(model.hidden(ids))}, folder / "seen.pt")
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"fairway": values}))


def test_code_has_what_transformers_asks_for() -> None:
    assert "class FairwayForCausalLM(" in program(MODEL_FILE)
    assert "class FairwayConfig(" in program(MODEL_FILE)
    assert "class FairwayTokenizer(" in program(WORDS_FILE)


def test_code_names_nothing_of_fairway_and_of_kernels() -> None:
    for file in (MODEL_FILE, WORDS_FILE):
        lines = [line.strip() for line in program(file).splitlines()]
        imports = [line for line in lines if line.startswith(("import ", "from "))]
        assert imports
        for word in ("fairway", "numba", "triton", "brotli"):
            assert not any(word in line for line in imports), (file, word)
