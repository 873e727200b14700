"""Proofs of a model with experts beside it: what is coded with is the mixture's whole distribution.

Every stream has experts of its own, as every stream is scored by a ledger of its own. The scorer
prices tokens along their paths; here all tokens are priced, node by node, at every position.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fairway.api import LanguageModel
from fairway.checks import check_mixture
from fairway.config import MixtureConfig, ScoreConfig, TttConfig
from fairway.data.tokens import Tokenizer
from fairway.errors import UserError
from fairway.prove.learning import ChunkSgd, proven_text, restoring
from fairway.prove.streams import Stream, cut_evenly
from fairway.prove.walk import Course, Fixed, Frozen, Learner, Segment, window_segments
from fairway.score.experts import evaluate_base
from fairway.score.mixture import Helpers

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class WithExperts:
    """The model that `mixture.base` names, with experts; frozen, or learning by `ttt`."""

    mixture: MixtureConfig
    ttt: TttConfig

    def cut(self, ids: IntArray, count: int, tokenizer: Tokenizer) -> list[Stream]:
        """Return the streams of the base."""
        if self.mixture.base == "sgd":
            return ChunkSgd(self.ttt).cut(ids, count, tokenizer)
        return cut_evenly(ids, count, tokenizer)

    def segments(self, targets: int, score: ScoreConfig) -> tuple[Segment, ...]:
        """Return the segments of the base; UserError for experts that cannot be decoded with."""
        if self.mixture.base == "lora":
            raise UserError(
                "experts follow one text, and method lora reads documents side by side; prove with "
                "method sliding or sgd, or set mixture.experts= to leave them out"
            )
        check_mixture(self.mixture, self.ttt, score)
        return window_segments(targets, score.seq_len, score.stride)

    def learner(self, language: LanguageModel, course: Course) -> "ExpertLearner":
        """Return the base's learner with experts beside it."""
        base: Learner = Frozen(language.model)
        if self.mixture.base == "sgd":
            base = ChunkSgd(self.ttt).learner(language, course)
        return ExpertLearner(base, language.tokenizer, self.mixture, course)

    def scorer_nats(self, language: LanguageModel, streams: Sequence[IntArray]) -> float:
        """Return the sum of what the scorer makes of the streams, each with fresh experts."""
        config = replace(language.score_config, truncate=False)
        checks = -(-config.check_positions // max(len(streams), 1))
        nats = 0.0
        for ids in streams:
            helpers = Helpers(language.tokenizer, self.mixture, len(ids) - 1)
            with restoring(language.model):
                nats += evaluate_base(
                    language.model,
                    proven_text(language.tokenizer, [ids]),
                    replace(config, check_positions=checks),
                    self.ttt,
                    self.mixture.base,
                    seed=0,
                    description="scoring",
                    helped=helpers.beside,
                ).nats
        return nats


class ExpertLearner:
    """Puts the experts between the model's distributions and the coder."""

    def __init__(
        self, base: Learner, tokenizer: Tokenizer, mixture: MixtureConfig, course: Course
    ) -> None:
        self._base, self._tokenizer, self._mixture = base, tokenizer, mixture
        self._targets = course.targets
        self._helpers: dict[int, Helpers] = {}
        self._seen: dict[int, tuple[FloatArray, int]] = {}

    @property
    def steady(self) -> bool:
        """Return the base's."""
        return self._base.steady

    def begin(self, streams: range) -> None:
        """Begin with experts that know nothing."""
        self._base.begin(streams)
        self._helpers = {
            stream: Helpers(self._tokenizer, self._mixture, self._targets[stream])
            for stream in streams
        }

    def predicting(self) -> AbstractContextManager[object]:
        """Return the base's."""
        return self._base.predicting()

    def logits(self, states_SD: Tensor) -> Tensor:
        """Return the base's."""
        return self._base.logits(states_SD)

    def mixed(self, stream: int, previous: int, log_probs_V: FloatArray) -> FloatArray:
        """Return the mixture's log-probabilities after a token."""
        self._seen[stream] = (log_probs_V, previous)
        return self._helpers[stream].row(log_probs_V, previous)

    def heard(self, stream: int, token: int) -> None:
        """Let the experts learn the token that was fixed."""
        log_probs_V, previous = self._seen.pop(stream)
        table_1V = torch.from_numpy(log_probs_V[None])
        self._helpers[stream].start(table_1V, np.array([token]), np.array([previous]))()

    def adapt(self, fixed: Fixed) -> None:
        """Let the base learn."""
        self._base.adapt(fixed)
