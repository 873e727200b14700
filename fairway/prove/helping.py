"""Proofs of a model with experts, coded with the whole distribution of the mixture.

Each stream has its own experts, as each stream has its own ledger when it is scored. The scorer
computes costs along the paths of the actual tokens. Here the cost of every token is computed, node
by node, at every position.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fairway.api import LanguageModel
from fairway.base.arrays import IntArray, untouched
from fairway.base.errors import UserError
from fairway.config.checks import check_mixture
from fairway.config.settings import MixtureConfig, ScoreConfig, TttConfig
from fairway.data.tokens import Tokenizer
from fairway.model.modes import mode
from fairway.prove.learning import ChunkSgd, proven_text
from fairway.prove.streams import Stream, cut_evenly
from fairway.prove.walk import Course, Fixed, Frozen, Learner, Segments, window_segments
from fairway.score.evaluation import Evaluation
from fairway.score.experts.mixture import Helpers
from fairway.score.experts.trie import Tries, token_strings
from fairway.score.ways import evaluate


@dataclass(frozen=True, slots=True)
class WithExperts:
    """The model of `mixture.base` with experts; the model is frozen or learns by `ttt`."""

    mixture: MixtureConfig
    ttt: TttConfig

    def cut(self, ids: IntArray, count: int, tokenizer: Tokenizer) -> list[Stream]:
        """Return the streams of the base."""
        if self.mixture.base == "sgd":
            return ChunkSgd(self.ttt).cut(ids, count, tokenizer)
        return cut_evenly(ids, count, tokenizer)

    def segments(self, targets: int, score: ScoreConfig) -> Segments:
        """Return the segments of the base; UserError for experts that cannot decode."""
        if self.mixture.base == "lora":
            raise UserError(
                "experts follow one text, but method lora reads documents side by side; use method "
                "sliding or sgd, or set mixture.experts= to leave them out"
            )
        check_mixture(self.mixture, self.ttt, score)
        return window_segments(targets, score.seq_len, score.stride)

    def learner(self, language: LanguageModel, course: Course) -> "ExpertLearner":
        """Return the base's learner with experts beside it."""
        course.require_one_group()
        base: Learner = Frozen(language.model)
        if self.mixture.base == "sgd":
            base = ChunkSgd(self.ttt).learner(language, course)
        return ExpertLearner(base, language.tokenizer, self.mixture, course)

    def scorer_nats(self, language: LanguageModel, streams: Sequence[IntArray]) -> float:
        """Return the sum of the scorer's nats over the streams, each with fresh experts."""
        config = replace(language.score_config, truncate=False)
        checks = -(-config.check_positions // max(len(streams), 1))
        nats, tries = 0.0, Tries(token_strings(language.tokenizer))
        for ids in streams:
            helpers = Helpers(language.tokenizer, self.mixture, len(ids) - 1, tries)
            asked = Evaluation(
                *(proven_text(language, [ids]), replace(config, check_positions=checks), self.ttt),
                description="scoring",
                helped=helpers.beside,
            )
            with mode(language.model, restored=True):
                nats += evaluate(language.model, asked, self.mixture.base).nats
        return nats


class ExpertLearner:
    """Mixes the experts into the model's distributions before the coder."""

    def __init__(
        self, base: Learner, tokenizer: Tokenizer, mixture: MixtureConfig, course: Course
    ) -> None:
        self._base, self._tokenizer, self._mixture = base, tokenizer, mixture
        self.steady = base.steady
        self.predicting, self.logits = base.predicting, base.logits
        self._targets, self._tries = course.targets, Tries(token_strings(tokenizer))
        self._helpers: list[Helpers] = []
        self._previous: list[int] = []
        self._log_probs_SV = torch.zeros(0, 0, dtype=torch.float64)

    def begin(self, streams: range) -> None:
        """Begin with fresh experts; UserError if so many do not fit into memory."""
        self._base.begin(streams)
        try:
            self._helpers = [self._fresh(self._targets[stream]) for stream in streams]
        except MemoryError as error:
            raise UserError(
                f"experts for {len(streams)} streams side by side, the longest of "
                f"{max(self._targets)} tokens, do not fit this machine ({error}); code with fewer "
                "--streams, decode with more memory"
            ) from None

    def _fresh(self, targets: int) -> Helpers:
        # A file claims the lengths of its streams, so the tables grow only with the tokens read.
        return Helpers(self._tokenizer, self._mixture, targets, self._tries, untouched)

    def mixed(self, active_A: IntArray, previous_S: Tensor, log_probs_SV: Tensor) -> Tensor:
        """Return the mixture's log-probabilities, on the CPU."""
        self._previous, self._log_probs_SV = previous_S.tolist(), log_probs_SV.cpu()
        mixed_SV = self._log_probs_SV.clone()
        for row in active_A.tolist():
            log_probs_V = self._log_probs_SV[row].numpy()
            found_V = self._helpers[row].row(log_probs_V, self._previous[row])
            mixed_SV[row] = torch.from_numpy(found_V)
        return mixed_SV

    def heard(self, active_A: IntArray, ids_S: Tensor) -> None:
        """Let the experts learn the fixed tokens."""
        tokens = ids_S.tolist()
        for row in active_A.tolist():
            token, previous = np.array([tokens[row]]), np.array([self._previous[row]])
            self._helpers[row].start(self._log_probs_SV[row : row + 1], token, previous)()

    def adapt(self, fixed: Fixed) -> None:
        """Let the base learn."""
        self._base.adapt(fixed)
