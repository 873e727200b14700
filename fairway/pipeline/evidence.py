"""The stages of a run beside its scores: text, compressors, samples, proof; in one process."""

import dataclasses
from collections.abc import Callable
from typing import Any

from fairway.api import load, openings
from fairway.base.files import digest_bytes
from fairway.base.memory import give_back
from fairway.config.settings import Config
from fairway.data.folder import DataFolder, Validation
from fairway.machine.plan import Plan
from fairway.pipeline.folder import RunFolder
from fairway.pipeline.inputs import ARTIFACT
from fairway.pipeline.proving import prove_run
from fairway.score import baselines
from fairway.train.steps import Say

PROOF = "proof.fwp"


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What the stages take."""

    config: Config
    folder: RunFolder
    reads: Callable[[str], dict[str, Any]]
    source: DataFolder
    validation: Validation
    plan: Plan
    say: Say

    def run(self) -> None:
        """Do them in order."""
        self._stage("text", [], self._text)
        self._stage("baselines", [], self._baselines)
        self._stage("samples", [], self._samples)
        if self.config.prove.bytes:
            self._stage("proof", [PROOF], self._proof)

    def _stage(self, name: str, files: list[str], work: Callable[[], dict[str, Any]]) -> None:
        self.folder.stage(name, self.reads(name), files, work, self.say)

    def _text(self) -> dict[str, Any]:
        text = self.validation
        return {
            "bytes": text.bytes,
            "tokens": len(text.ids) - 1,
            "documents": len(text.documents),
            "digest": digest_bytes("".join(text.documents).encode()),
            **self.source.facts(),
        }

    def _baselines(self) -> dict[str, Any]:
        return baselines.measure(self.validation.documents, self.source.train_documents())

    def _samples(self) -> dict[str, Any]:
        """Continue the openings of a few validation documents."""
        model = load(self.folder.file(ARTIFACT), plan=self.plan)
        return {"samples": openings(model, self.validation.documents)}

    def _proof(self) -> dict[str, Any]:
        """Code the beginning of the validation text and let a fresh process restore it."""
        give_back()
        config, plan = self.config, self.plan
        runtime = dataclasses.replace(config.runtime, device=plan.device, threads=plan.threads)
        artifact, out = self.folder.file(ARTIFACT), self.folder.file(PROOF)
        facts = prove_run(config, runtime, artifact, self.validation.documents, out)
        # Coding had arithmetic of its own.
        plan.apply()
        self.say(
            f"{'proof':>9}: {facts['bytes']:,} bytes coded in {facts['coded_bytes']:,} "
            f"({facts['difference_share']:+.2%} to the ledger) and restored by a fresh process"
        )
        return facts
