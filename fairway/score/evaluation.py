"""The inputs of every scorer in one value: text, settings, witness."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from fairway.config.settings import ScoreConfig, TttConfig
from fairway.machine.ranks import ALONE, Ranks
from fairway.score.ledger import Ledger, Span, Text, Witness
from fairway.score.predictor import Helped, alone
from fairway.score.windows import usable_targets


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """A text to score, and the settings of scoring.

    `ttt` holds the settings of test-time training, if any. `seed` determines the positions that are
    checked (and the adapters of LoRA); progress lines show `description`. All `ranks` call a scorer
    with the same model and evaluation, and get the same score. `helped` adds experts to the model;
    experts that learn need one rank. The `witness` receives every action of the ledger.
    """

    text: Text
    score: ScoreConfig
    ttt: TttConfig = field(default_factory=TttConfig)
    seed: int = 0
    description: str = "score"
    ranks: Ranks = ALONE
    helped: Helped = alone
    witness: Witness = field(default_factory=Witness)

    @property
    def targets(self) -> int:
        """Return how many targets are scored; UserError if the text is too short."""
        return usable_targets(len(self.text.ids), self.score.seq_len, self.score.truncate)

    def ledger(
        self,
        tolerances: dict[torch.dtype, float],
        dtype: torch.dtype,
        spans: Sequence[Span],
        side_by_side: bool = False,
    ) -> Ledger:
        """Return the ledger of this process's share of the text."""
        return Ledger(
            self.text,
            self.targets,
            self.score.check_positions,
            self.seed,
            tolerances[dtype],
            spans=spans,
            side_by_side=side_by_side,
            witness=self.witness,
        )
