"""The stage of a run that audits it: kept as long as nothing that it reads has changed."""

import dataclasses
from collections.abc import Callable
from typing import Any

from fairway.audit.stage import RunFacts, audit_run, audited, summary
from fairway.base.arrays import IntArray
from fairway.config.settings import Config
from fairway.data.tokens import Tokenizer
from fairway.model.gpt import GPT
from fairway.pipeline.folder import RunFolder
from fairway.train.steps import Say

AUDIT = "audit"


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class AuditStage:
    """What the audit takes. `load_model` reads the artifact anew, since its weights will change."""

    config: Config
    code_bytes: int
    reads: dict[str, Any]
    ids: IntArray
    tokenizer: Tokenizer
    load_model: Callable[[], GPT]
    say: Say

    def run(self, folder: RunFolder) -> None:
        """Run the stage; one process does this."""
        stages = {n: r for n, r in folder.memory["stages"].items() if audited(n)}
        facts = {name: record["facts"] for name, record in stages.items()}
        run = RunFacts(folder.path, facts, self.code_bytes)

        def work() -> dict[str, Any]:
            facts = audit_run(run, self.config, self.load_model(), self.ids, self.tokenizer)
            self.say(f"{AUDIT:>9}: {summary(facts)}")
            return facts

        folder.stage(AUDIT, self.reads, [], work, self.say)
