"""An artifact for other programs: its dequantised weights, and code that runs them."""

from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from fairway.api import LanguageModel, fitting_tokenizer, language_model
from fairway.base.errors import UserError
from fairway.base.files import digest_bytes, digest_file, write_atomic, write_json
from fairway.base.folders import added_files, held
from fairway.base.mistaken import artifact_at
from fairway.base.names import TOKENIZER_FILE
from fairway.config.written import to_dict
from fairway.export.core import CONFIG, WEIGHTS
from fairway.export.program import MODEL_FILE, WORDS_FILE, program
from fairway.machine.plan import Plan, unaffected
from fairway.pack.artifact import Artifact, load_artifact
from fairway.score.adapter_file import load_adapter

GENERATION, TOKENIZER_CONFIG = "generation_config.json", "tokenizer_config.json"
# Files of each format beside weights, config and tokenizer.
FORMATS: dict[str, tuple[str, ...]] = {
    "safetensors": (),
    "torch": (MODEL_FILE, WORDS_FILE),
    "transformers": (MODEL_FILE, WORDS_FILE, GENERATION, TOKENIZER_CONFIG),
}
# Loaders read such files too if they lie beside a model, and would mix two models.
_MIXED = (".json", ".safetensors", ".bin", ".pt", ".model", ".py", ".jinja")
# Nothing is computed, so no trial of speed is needed.
_PLAN = Plan("cpu", "float32", "highest", 1, "plain")


def export(
    path: Path, out: Path, kind: str, tokenizer: Path | None = None, adapter: Path | None = None
) -> dict[str, Any]:
    """Write an artifact into a folder in one of `FORMATS`; return its facts.

    The files appear together at the end. Weights are float32, as `fairway.load` has them. Their
    names are those of `fairway.model.gpt`, with the prefix 'gpt.' in formats with code. The
    matrices of an adapter file are stored with them. Raises UserError for an unknown format, for
    one that cannot have an adapter, and for a folder with files of a model.
    """
    if kind not in FORMATS:
        raise UserError(f"format '{kind}' is unknown; choose one of {', '.join(FORMATS)}")
    if adapter is not None and not FORMATS[kind]:
        raise UserError(
            f"--format {kind} holds the model's own matrices, which do not contain an adapter; "
            "choose --format torch or transformers, whose code adds it"
        )
    # The config is last, so that a readable folder is complete.
    with added_files(out, WEIGHTS, TOKENIZER_FILE, *FORMATS[kind], CONFIG) as folder:
        _require_no_model(out)
        return _export(path, folder, kind, tokenizer, adapter)


def _require_no_model(out: Path) -> None:
    for name in held(out) if out.is_dir() else []:
        if name.endswith(_MIXED):
            raise UserError(
                f"{out} holds {name}, which programs could take for a part of the exported model; "
                "name another folder with --out"
            )


def _export(
    path: Path, out: Path, kind: str, tokenizer: Path | None, adapter: Path | None
) -> dict[str, Any]:
    """Write the files into an empty folder; return their facts."""
    file = artifact_at(path)
    words = fitting_tokenizer(file, tokenizer, adapter)
    artifact = load_artifact(file)
    with unaffected():
        model = language_model(artifact, file, words, plan=_PLAN)
    prefix = "gpt." if FORMATS[kind] else ""
    tensors = {f"{prefix}{name}": value for name, value in artifact.state.items()}
    more: dict[str, Any] = {}
    if adapter is not None:
        _, values, told = load_adapter(adapter, model.model, digest_file(file), words.digest)
        tensors |= {f"lora_values.{n}": value for n, value in enumerate(values)}
        more = {"adapter": {name: told[name] for name in ("targets", "rank", "alpha")}}
    data = _weights(tensors)
    facts = {**_facts(artifact, data), **more}
    write_atomic(out / WEIGHTS, data)
    write_atomic(out / TOKENIZER_FILE, model.tokenizer.data)
    for name in {MODEL_FILE, WORDS_FILE} & {*FORMATS[kind]}:
        write_atomic(out / name, program(name).encode())
    if kind == "transformers":
        write_json(out / GENERATION, _generation(model))
        write_json(out / TOKENIZER_CONFIG, _tokenizer_config(model, facts))
    write_json(out / CONFIG, _config(facts, model, kind))
    return facts


def _weights(tensors: dict[str, Tensor]) -> bytes:
    plain = {name: value.float().contiguous() for name, value in tensors.items()}
    return bytes(save(plain, metadata={"format": "pt"}))


def _facts(artifact: Artifact, data: bytes) -> dict[str, Any]:
    return {
        "architecture": "fairway",
        "model": to_dict(artifact.config),
        "provenance": artifact.header["provenance"],
        "tokenizer_digest": artifact.header["tokenizer_digest"],
        "weights_digest": digest_bytes(data),
        "parameters": sum(value.numel() for value in artifact.state.values()),
    }


def _config(facts: dict[str, Any], model: LanguageModel, kind: str) -> dict[str, Any]:
    """Return config.json; the settings for the code are under `fairway`."""
    if kind == "safetensors":
        return facts
    length = facts["provenance"]["score"]["seq_len"]
    own = {**facts, "looping": facts["provenance"]["looping"], "length": length}
    if kind == "torch":
        return {"fairway": own}
    gpt, shape, module = model.model, facts["model"], Path(MODEL_FILE).stem
    visits = len(gpt.encoder_visits) + len(gpt.decoder_visits)
    return {
        "architectures": ["FairwayForCausalLM"],
        "auto_map": {
            "AutoConfig": f"{module}.FairwayConfig",
            "AutoModelForCausalLM": f"{module}.FairwayForCausalLM",
        },
        "model_type": "fairway",
        **_ids(model),
        "vocab_size": shape["vocab_size"],
        "hidden_size": shape["dim"],
        "num_attention_heads": shape["num_heads"],
        # Each visit has its own keys and values, and SmearGate keeps the tokens.
        "num_hidden_layers": visits + shape["smear"],
        "max_position_embeddings": max(length, shape["rope_train_len"]),
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "fairway": own,
    }


def _ids(model: LanguageModel) -> dict[str, int]:
    """Return the special tokens for transformers: the one that begins a document also ends it."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return dict.fromkeys(names, model.tokenizer.bos_id)


def _generation(model: LanguageModel) -> dict[str, Any]:
    return {**_ids(model), "do_sample": True, "temperature": 0.8, "top_k": 50}


def _tokenizer_config(model: LanguageModel, facts: dict[str, Any]) -> dict[str, Any]:
    begins = model.tokenizer.pieces[model.tokenizer.bos_id]
    return {
        "auto_map": {"AutoTokenizer": [f"{Path(WORDS_FILE).stem}.FairwayTokenizer", None]},
        "tokenizer_class": "FairwayTokenizer",
        **dict.fromkeys(("bos_token", "eos_token", "pad_token"), begins),
        "model_max_length": facts["provenance"]["score"]["seq_len"],
        # Texts to continue are at the end of each row.
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
    }
