"""The model in other programs: weights and code of one folder that need only PyTorch.

`fairway.export.program` writes this module and the parts of the package that it needs into one
file. The package defines the walk through the blocks. This module adds the attention over padded
positions and positions of earlier calls, and reads a folder.

Shapes: B rows, T new positions, N all positions, H query heads, G key/value heads, K head width,
V vocabulary.
"""

import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from fairway.config.settings import ModelConfig
from fairway.model.adapters import Adapters, attach
from fairway.model.block import Walk
from fairway.model.gpt import GPT, rope_table
from fairway.model.seen import ALL, Seen

CONFIG, WEIGHTS = "config.json", "model.safetensors"


class Past:
    """Keys, values and tokens of positions that were read before; `update` adds to them."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of positions read before."""
        return self._kept[layer_idx][0].shape[2] if layer_idx in self._kept else 0

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int) -> Any:
        """Add the keys and values of new positions; return those of all."""
        if layer_idx in self._kept:
            old = self._kept[layer_idx]
            key_states = torch.cat([old[0], key_states], 2)
            value_states = torch.cat([old[1], value_states], 2)
        self._kept[layer_idx] = key_states, value_states
        return self._kept[layer_idx]


class Reader:
    """Reads new positions, padded or after others. `gpt` is the model itself."""

    gpt: GPT
    length: int
    rope_length: int
    lora: Adapters | None
    lora_values: nn.ParameterList

    def begin(self, values: dict[str, Any]) -> None:
        """Make the model from config.json, without its weights."""
        known = {field.name for field in dataclasses.fields(ModelConfig)}
        settings = ModelConfig(**{k: v for k, v in values["model"].items() if k in known})
        self.gpt = GPT(settings)
        self.gpt.set_looping(values["looping"])
        self.rope_length = values["length"]
        self.lora = None
        # The adapters that `fairway tune` trained.
        if own := values.get("adapter"):
            self.lora = Adapters(self.gpt, own["targets"], own["rank"], own["alpha"])
            self.lora_values = nn.ParameterList(map(nn.Parameter, self.lora.zeros(1)))
        # The most positions that are read in pieces, since these have one rotary base.
        self.length = max(self.rope_length, settings.rope_train_len)

    @property
    def visits(self) -> int:
        """The number of visits of blocks on a walk; each visit has its own keys."""
        return len(self.gpt.encoder_visits) + len(self.gpt.decoder_visits)

    def hidden(self, ids: Tensor, mask: Tensor | None = None, past: Any = None) -> Tensor:
        """Return the final states of new positions, which `gpt.logits` turns into logits."""
        gpt, first = self.gpt, 0 if past is None else int(past.get_seq_length())
        gpt.compute_dtype = gpt.tok_emb.weight.dtype
        if self.lora is not None:
            attach(gpt, self.lora, list(self.lora_values))
        end = first + ids.shape[1]
        if past is not None and end > self.length:
            raise ValueError(
                f"{end} positions are too many to be read piece by piece, {self.length} at most: "
                "read without a cache (use_cache=False), or a shorter text"
            )
        padding_BN = None if mask is None or bool(mask.all()) else mask == 0
        attend = _Attend(padding_BN, past, first)
        x_BTD = self._embedded(ids, past, first)
        return gpt.states(x_BTD, Walk(self._rope(first, end, past is not None), None, attend.at))

    def _embedded(self, ids: Tensor, past: Any, first: int) -> Tensor:
        """Return embeddings. SmearGate reads the previous token, so tokens are kept too."""
        if past is None or not self.gpt.config.smear:
            return self.gpt.embedded(ids)
        # Whole numbers up to 2^24 are exact in float32, and caches have tensors of four dimensions.
        new_B1T1 = ids[:, None, :, None].float()
        all_B1N1, _ = past.update(new_B1T1, new_B1T1, self.visits)
        if not first:
            return self.gpt.embedded(ids)
        return self.gpt.embedded(all_B1N1[:, 0, first - 1 :, 0].long())[:, 1:]

    def _rope(self, first: int, end: int, kept: bool) -> tuple[Tensor, Tensor]:
        """Return the rotary table of new positions: for the text's length, or the full window."""
        length = max(end, self.rope_length) if kept else end
        device = self.gpt.tok_emb.weight.device
        cos_NR, sin_NR = rope_table(length, self.gpt.config)
        return cos_NR[first:end].to(device), sin_NR[first:end].to(device)


class FairwayModel(Reader, nn.Module):
    """A trained model of Fairway. `model(ids)` returns logits, [B, T, V] in float32."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__()
        self.begin(values)

    def forward(self, ids: Tensor, mask: Tensor | None = None, past: Any = None) -> Tensor:
        """Return the logits behind every token of `ids`, [B, T].

        `mask`, [B, N], is 0 at padded positions. `past` has the positions that were read before,
        and the new ones are added to it: a `Past`, or a cache of transformers.
        """
        return self.gpt.logits(self.hidden(ids, mask, past))

    @torch.no_grad()
    def generate(
        self, ids: Tensor, max_tokens: int = 50, temperature: float = 0.8, seed: int = 0
    ) -> Tensor:
        """Return `ids`, [B, T], with tokens added: drawn, or the likeliest at temperature 0."""
        generator = torch.Generator().manual_seed(seed)
        past, unread = Past(), ids
        for _ in range(max_tokens):
            if past.get_seq_length() + unread.shape[1] > self.length:
                # Drop the oldest half and read the rest again.
                past, unread = Past(), ids[:, -(self.length // 2) :]
            logits_BV = self(unread, None, past)[:, -1].cpu()
            if temperature > 0:
                shares_BV = (logits_BV.double() / temperature).softmax(-1)
                unread = torch.multinomial(shares_BV, 1, generator=generator)
            else:
                unread = logits_BV.argmax(-1, keepdim=True)
            unread = unread.to(ids.device)
            ids = torch.cat([ids, unread], 1)
        return ids


class _Attend:
    """Attention over new and kept positions without padding, in each layer's window."""

    def __init__(self, padding_BN: Tensor | None, past: Any, first: int) -> None:
        self.padding_BN, self.past, self.first = padding_BN, past, first
        self.hidden: dict[int, Tensor] = {}

    def at(self, visit: int, own: Any) -> Any:
        """Return the attention of a visit."""

        def attend(q: Tensor, k: Tensor, v: Tensor, seen: Seen = ALL) -> Tensor:
            if self.past is not None:
                k, v = self.past.update(k, v, visit)
            mask = self._mask(q.shape[2], k.shape[2], seen.window, q.device)
            grouped = q.shape[1] != k.shape[1]
            return F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=grouped)

        return attend

    def _mask(self, new: int, count: int, window: int, device: Any) -> Tensor:
        """Return which positions each new one sees, [B or 1, 1, T, N]."""
        if window not in self.hidden:
            at_N = torch.arange(count, device=device)
            own_T1 = at_N[self.first : self.first + new, None]
            seen_1TN = ((at_N <= own_T1) & ((at_N > own_T1 - window) | (not window)))[None]
            if self.padding_BN is not None:
                # Padding sees only itself, so that no softmax divides by zero.
                shown_B1N = ~self.padding_BN.to(device)[:, None]
                seen_1TN = (seen_1TN & shown_B1N) | (at_N == own_T1)
            self.hidden[window] = seen_1TN[:, None]
        return self.hidden[window]


def load(folder: str | Path) -> FairwayModel:
    """Return the model of an exported folder, ready to run on the CPU."""
    values = json.loads((Path(folder) / CONFIG).read_text())
    with torch.device("meta"):
        model = FairwayModel(values["fairway"])
    weights = load_file(Path(folder) / WEIGHTS)
    model.load_state_dict(weights, assign=True)
    return model.eval()


def for_transformers() -> Any:
    """Return the classes for transformers; they need that package."""
    hugging = importlib.import_module("fairway.export.hugging")
    return hugging.FairwayConfig, hugging.FairwayForCausalLM
