"""The inputs of a stage's work: settings, text, files and processes of a run.

Every stage reads the files of earlier stages, never their memory. So each stage can be repeated
alone, and the scored weights are the written ones.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from fairway.api import model_from, model_of
from fairway.base.files import digest_file
from fairway.base.names import ARTIFACT, WEIGHTS
from fairway.config.settings import Config
from fairway.data.folder import DataFolder, Validation
from fairway.machine.plan import Plan
from fairway.machine.ranks import Ranks
from fairway.model.gpt import GPT
from fairway.pack.artifact import Artifact, load_artifact
from fairway.score.evaluation import Evaluation
from fairway.score.ledger import Text
from fairway.score.sliding import text_of
from fairway.score.trail import Trail
from fairway.train.saved import weights_of
from fairway.train.steps import Beside, Say, nobody


@lru_cache(maxsize=1)
def _decoded(path: Path, digest: str) -> Artifact:
    return load_artifact(path)


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """A run from the view of its stages.

    `public` is its config with digests in place of paths, `code_bytes` is the size of the code that
    counts with its artifact, and `facts` holds the facts of the finished stages by name. `begin` is
    called after the last check before training, and `beside` observes the training; `resume`
    continues from a checkpoint.
    """

    config: Config
    public: Config
    plan: Plan
    ranks: Ranks
    source: DataFolder
    folder: Path
    code_bytes: int
    facts: Callable[[], Mapping[str, dict[str, Any]]]
    say: Say
    begin: Callable[[], None] = lambda: None
    beside: Beside = nobody
    resume: bool = False

    def file(self, name: str) -> Path:
        """Return the path of a file of this run."""
        return self.folder / name

    @cached_property
    def validation(self) -> Validation:
        """Return the validation text by the settings."""
        data = self.config.data
        return self.source.sample_validation(data.val_bytes, data.val_tokens)

    @cached_property
    def text(self) -> Text:
        """Return the validation text in the form for scorers."""
        return text_of(self.validation.ids, self.source.tokenizer.table, self.validation.bytes)

    def weights(self, kind: str) -> tuple[dict[str, Tensor], bool]:
        """Return the 'raw' or 'ema' weights, and whether recurrence was on."""
        return weights_of(self.file(WEIGHTS), kind)

    def artifact(self) -> Artifact:
        """Return the artifact as its file is now.

        An unchanged file is decoded once, because six stages read it and 36 million weights take
        seconds (`artifact.py`).
        """
        path = self.file(ARTIFACT)
        return _decoded(path, digest_file(path))

    def model(self, kind: str) -> GPT:
        """Return a model of the 'raw' or 'ema' weights, or the 'artifact', as read from disk."""
        if kind == "artifact":
            return model_of(self.artifact(), self.plan)
        state, looping = self.weights(kind)
        return model_from(state, self.config.model, self.plan, looping)

    def evaluation(self, description: str, trail: Trail, alone: bool = False) -> Evaluation:
        """Return the inputs of a scorer; `alone` if this process scores without the others."""
        config = self.config
        return Evaluation(
            *(self.text, config.score, config.ttt, config.seed, f"score {description}"),
            ranks=Ranks() if alone else self.ranks,
            witness=trail,
        )
