"""The exported model as a class of transformers, for `trust_remote_code=True`.

Version 4 of transformers names the earlier positions `past_key_values`, later ones `cache`.
"""

import dataclasses
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from fairway.export.core import Reader

_FIELDS = {field.name for field in dataclasses.fields(CausalLMOutputWithPast)}
_PAST = "cache" if "cache" in _FIELDS else "past_key_values"


class FairwayConfig(PretrainedConfig):
    """The content of config.json; Fairway's own settings are under `fairway`."""

    model_type = "fairway"

    def __init__(self, fairway: dict[str, Any] | None = None, **named: Any) -> None:
        self.fairway = fairway or {"model": {}, "looping": False, "length": 2048}
        super().__init__(**named)


class FairwayForCausalLM(Reader, PreTrainedModel, GenerationMixin):
    """A trained model of Fairway that transformers can load, run and generate with."""

    config_class = FairwayConfig
    main_input_name = "input_ids"
    _no_split_modules = ("Block",)
    _supports_sdpa = True

    def __init__(self, config: FairwayConfig) -> None:
        super().__init__(config)
        self.begin(config.fairway)
        if self.gpt.tok_emb.weight.device.type != "meta":
            self.gpt.init_weights(0)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Change no weights: they are set when the model is made, or read from a file."""

    def get_input_embeddings(self) -> nn.Module:
        """Return the embedding, which is also the head unless the settings separate them."""
        return self.gpt.tok_emb

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        cache: Any = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **named: Any,
    ) -> CausalLMOutputWithPast:
        """Return logits, the loss of `labels` (-100 does not count), and all positions read."""
        past = past_key_values if cache is None else cache
        if past is None and use_cache:
            past = DynamicCache(config=self.config)
        states_BTD = self.hidden(input_ids, attention_mask, past)
        logits_BTV = self.gpt.logits(states_BTD[:, -logits_to_keep:])
        loss = None
        if labels is not None:
            told = logits_BTV[:, :-1].flatten(0, 1)
            loss = F.cross_entropy(told, labels[:, 1:].flatten().to(told.device))
        return CausalLMOutputWithPast(loss=loss, logits=logits_BTV, **{_PAST: past})
