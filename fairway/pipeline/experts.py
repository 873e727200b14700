"""The stages of a run that put experts beside its artifact: score.mixture, and published."""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

from fairway.base import units
from fairway.config.settings import Config
from fairway.data.tokens import Tokenizer
from fairway.machine.ranks import Ranks
from fairway.model.gpt import GPT
from fairway.pipeline.folder import RunFolder
from fairway.score.evaluation import Evaluation
from fairway.score.experts.evaluate import evaluate_mixture, evaluate_published, published_facts
from fairway.score.experts.published import LABEL
from fairway.score.ledger import Text
from fairway.score.trail import Trail, trail_file, write_trails
from fairway.train.steps import Say

MIXTURE, PUBLISHED = "score.mixture", "published"


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class ExpertStages:
    """What both stages take. `load_model` reads the artifact anew, since models may learn."""

    config: Config
    reads: Callable[[str], dict[str, Any]]
    text: Text
    tokenizer: Tokenizer
    load_model: Callable[[], GPT]
    artifact: str
    say: Say

    def run(self, folder: RunFolder) -> None:
        """Run the stages that the config asks for and forget the others; one process does this."""
        mixture = self.config.mixture
        for stage, wanted, files, work in (
            (MIXTURE, bool(mixture.experts), [trail_file("mixture")], self._mixture),
            (PUBLISHED, mixture.published, [], self._published),
        ):
            if wanted:
                do = functools.partial(work, folder)
                folder.stage(stage, self.reads(stage), files, do, self.say)
            else:
                folder.forget(stage)

    def _mixture(self, folder: RunFolder) -> dict[str, Any]:
        config, start_s, trail = self.config, time.perf_counter(), Trail()
        asked = Evaluation(
            self.text, config.score, config.ttt, config.seed, "score mixture", witness=trail
        )
        score, facts = evaluate_mixture(self.load_model(), asked, config.mixture, self.tokenizer)
        seconds = time.perf_counter() - start_s
        self.say(
            f"{'mixture':>9}: {score.bpb:.4f} bpb, {facts['gain_bpb']:.4f} less than "
            f"{config.mixture.base} alone ({units.duration(seconds)})"
        )
        facts["trail"] = write_trails(trail, Ranks(), folder.file(trail_file("mixture")))
        account = {**dataclasses.asdict(score), "seconds": seconds}
        return {**account, "file_digest": self.artifact, **facts}

    def _published(self, folder: RunFolder) -> dict[str, Any]:
        config, start_s = self.config, time.perf_counter()
        asked = Evaluation(self.text, config.score, config.ttt, config.seed, "published mixture")
        found = evaluate_published(self.load_model(), asked, config.mixture, self.tokenizer)
        assert found.sums is not None
        self.say(
            f"published: {found.bpb:.4f} on {found.coverage:.1%} of the tokens, {LABEL}: prices of "
            f"the vocabulary sum to {found.sums.mean:.3f}; the gate fired on "
            f"{found.gate_share:.1%} of the bytes"
        )
        facts = {**published_facts(found), "label": LABEL, "base": config.mixture.base}
        return {
            **facts,
            "seconds": time.perf_counter() - start_s,
            "file_digest": self.artifact,
        }
