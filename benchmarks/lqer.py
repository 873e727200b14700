"""What corrections of low rank (LQER) take off the errors of the trained seed model's matrices.

    python benchmarks/lqer.py WEIGHTS.safetensors TEXT.jsonl.zst TOKENIZER.model [--tokens 8192]

GPTQ at the seed's settings, Hessians from the first tokens of the text. For each matrix, norm and
rank: what is left of the squared error of the weights and of the outputs, by the factors as they
are and as they are coded. 1 is no gain; above 1 a correction does harm.
"""

import argparse
import itertools
from pathlib import Path

import torch
from seed_model import load_state
from torch import Tensor

from fairway.config.settings import ModelConfig, QuantConfig
from fairway.data.sources import read_documents
from fairway.data.tokens import Tokenizer, encode_documents
from fairway.model.gpt import build
from fairway.quantise.calibrate import collect_hessians
from fairway.quantise.correction import product
from fairway.quantise.gptq import DAMP, energy, inverse_factor, quantise_model
from fairway.quantise.grid import QuantisedTensor, restore
from fairway.quantise.low_rank import code, factors

LENGTH = 1024
# Documents that are read for so few tokens.
DOCUMENTS = 64
NAMES = [
    "blocks.1.mlp.fc.weight", "blocks.4.mlp.proj.weight", "blocks.9.mlp.proj.weight",
    "blocks.9.attn.proj.weight", "tok_emb.weight",
]  # fmt: skip


def tokens(text: Path, tokenizer: Path, count: int) -> Tensor:
    """Return the first tokens of a text, [B, LENGTH]."""
    documents = itertools.islice(read_documents([text]), DOCUMENTS)
    ids = encode_documents(Tokenizer.load(tokenizer), (document.text for document in documents))
    return torch.from_numpy(ids[:count].astype("int64")).view(-1, LENGTH)


def shares(error_RC: Tensor, hessian_CC: Tensor, added_RC: Tensor) -> str:
    """Return what is left of an error, by weights and by outputs."""
    left_RC = error_RC - added_RC
    weights = energy(left_RC, None) / energy(error_RC, None)
    outputs = energy(left_RC, hessian_CC) / energy(error_RC, hessian_CC)
    return f"weights {weights:.4f} outputs {outputs:.4f}"


def nearest(error_RC: Tensor, hessian_CC: Tensor, norm: str, rank: int) -> tuple[Tensor, Tensor]:
    """Return the factors of a rank nearest to an error, by weights or by outputs.

    With U as for GPTQ, H + damping = U^-1 U^-T, so tr(E H E^T) is the square of |E U^-1|.
    """
    if norm == "weights":
        return factors(error_RC, rank)
    upper_CC = inverse_factor(hessian_CC, DAMP, "H")
    whitened_RC = torch.linalg.solve_triangular(upper_CC, error_RC, upper=True, left=False)
    left_RK, right_KC = factors(whitened_RC, rank)
    return left_RK, right_KC @ upper_CC


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("weights", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--tokens", type=int, default=8 * LENGTH)
    chosen = parser.parse_args()
    ids_BT = tokens(chosen.text, chosen.tokenizer, chosen.tokens)
    model, state = build(ModelConfig(embed_bf16=False)), load_state(chosen.weights)
    model.load_state_dict(state)
    model.set_looping(True)
    hessians = collect_hessians(model, ids_BT.split(2), NAMES)
    coded = quantise_model({name: state[name] for name in NAMES}, hessians, QuantConfig())
    for name in NAMES:
        tensor, hessian_CC = coded[name], hessians[name].double()
        assert isinstance(tensor, QuantisedTensor)
        error_RC = state[name].double() - restore(tensor).double()
        print(f"{name}: norm of the error {float(error_RC.norm()):.2f}")
        for norm, rank in itertools.product(("weights", "outputs"), (4, 16)):
            left_RK, right_KC = nearest(error_RC, hessian_CC, norm, rank)
            exact = shares(error_RC, hessian_CC, left_RK @ right_KC)
            as_coded = shares(error_RC, hessian_CC, product(code(left_RK, right_KC)).double())
            print(f"  {norm}, rank {rank:2}: exact {exact}; coded {as_coded}", flush=True)


if __name__ == "__main__":
    main()
