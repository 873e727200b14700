"""The stages beside the scores. All processes score documents without learning. The first process
alone makes baselines, samples, costs of tokens, proof and audit."""

import time
from dataclasses import replace
from typing import Any

import numpy as np

from fairway.api import language_model, openings
from fairway.audit.stage import RunFacts, audit_run, audited, summary
from fairway.base.files import canonical_json, digest_bytes, digest_file, write_atomic
from fairway.base.memory import give_back
from fairway.base.names import ARTIFACT, COSTS, PROOF
from fairway.data.folder import beginnings
from fairway.pipeline.context import Run
from fairway.pipeline.proving import prove_run
from fairway.pipeline.scoring import scored
from fairway.score import baselines
from fairway.score.costs import document_costs
from fairway.score.experts.evaluate import evaluate_published, published_facts
from fairway.score.experts.published import LABEL, described
from fairway.score.ledger import Score
from fairway.score.lora import evaluate_unlearned
from fairway.score.trail import Trail
from fairway.score.ways import gains_told

Facts = dict[str, Any]

# The number of validation documents in the report, and of tokens of each: 400 bytes of page per
# token.
_SHOWN_DOCUMENTS, _SHOWN_TOKENS = 3, 120


def documents(run: Run) -> Facts:
    """Score the artifact without learning, in the same windows as test-time training by
    documents."""

    def work(trail: Trail) -> tuple[Score, Facts]:
        asked = run.evaluation("documents", trail)
        return evaluate_unlearned(run.model("artifact"), asked), {}

    found = scored(run, "documents", ARTIFACT, run.ranks, work)
    if run.ranks.first:
        stages = {"documents": found, "ttt": run.facts()["score.ttt"]}
        run.say(f"test-time training gains {gains_told(stages)}")
    return found


def published(run: Run) -> Facts:
    """Compute the cost by the published mixture, which is no distribution, so the result is no
    score."""
    start_s, mixture = time.perf_counter(), run.config.mixture
    asked = run.evaluation("published mixture", Trail(), alone=True)
    found = evaluate_published(run.model("artifact"), asked, mixture, run.source.tokenizer)
    assert found.sums is not None
    run.say(
        f"published: {found.bpb:.4f} on {found.coverage:.1%} of the tokens, {LABEL}: prices of the "
        f"vocabulary sum to {found.sums.mean:.3f}; the gate was on for {found.gate_share:.1%} of "
        f"the bytes; mixed {described(mixture.base)}"
    )
    seconds = time.perf_counter() - start_s
    facts = {**published_facts(found), "label": LABEL, "base": mixture.base, "seconds": seconds}
    return {**facts, "file_digest": digest_file(run.file(ARTIFACT))}


def count_text(run: Run) -> Facts:
    """Count the validation text."""
    text = run.validation
    return {
        "bytes": text.bytes,
        "tokens": len(text.ids) - 1,
        "documents": len(text.documents),
        "digest": digest_bytes("".join(text.documents).encode()),
        **run.source.facts(),
    }


def compress(run: Run) -> Facts:
    """Compress the validation text with the usual tools."""
    for title in baselines.missing():
        run.say(f"{title} is not measured: `pip install pyppmd` for the strongest comparison")
    return baselines.measure(run.validation.documents, run.source.last_train_documents())


def sample(run: Run) -> Facts:
    """Continue the openings of a few validation documents."""
    model = language_model(run.artifact(), run.file(ARTIFACT), plan=run.plan)
    return {"samples": openings(model, run.validation.documents)}


def show_costs(run: Run) -> Facts:
    """Write the cost of each token of a few validation documents, each scored alone."""
    model = language_model(run.artifact(), run.file(ARTIFACT), plan=run.plan)
    text = run.validation
    size_bytes = max(1, _SHOWN_TOKENS * text.bytes // len(text.ids))
    texts = beginnings(text.documents, _SHOWN_DOCUMENTS, size_bytes)
    costs = [document_costs(text, model.costs(text), model.tokenizer) for text in texts]
    write_atomic(run.file(COSTS), canonical_json(costs))
    return {"documents": len(texts)}


def prove(run: Run) -> Facts:
    """Code the beginning of the validation text, and restore it in a fresh process."""
    give_back()
    config, plan = run.config, run.plan
    runtime = replace(config.runtime, device=plan.device, threads=plan.threads)
    artifact, out = run.file(ARTIFACT), run.file(PROOF)
    facts = prove_run(config, runtime, artifact, run.validation.documents, out)
    # Coding uses other arithmetic than scoring.
    plan.apply()
    run.say(
        f"{'proof':>9}: {facts['bytes']:,} bytes coded in {facts['coded_bytes']:,} "
        f"({facts['difference_share']:+.2%} against the ledger) and restored by a fresh process"
    )
    return facts


def audit(run: Run) -> Facts:
    """Check the ledgers and budgets of this run, and probe the scorer of its artifact."""
    give_back()
    stages = {name: facts for name, facts in run.facts().items() if audited(name)}
    told, ids = RunFacts(run.folder, stages, run.code_bytes), run.validation.ids
    facts = audit_run(
        *(told, run.config, run.model("artifact"), np.asarray(ids, np.int64)),
        run.source.tokenizer,
    )
    run.say(f"{'audit':>9}: {summary(facts)}")
    return facts
