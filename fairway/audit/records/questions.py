"""What every finding means to a person: a title, why it matters, what to ask the author.

One entry for every code that the audit knows, the most important first; tests demand it. `kind` is
the class of fault in the benchmark of records (docs/records.md), "" for what is none.
"""

from dataclasses import dataclass

# The classes of fault, as labels name them.
KINDS = {
    "trained-on-text": "training on validation text before scoring",
    "scored-twice": "last of several epochs scored, or a second scoring pass",
    "fitted-on-target": "SLOT or logit bias fitted on the window's own targets",
    "hashed-target": "hashed n-gram whose key holds the target",
    "uniform-spread": "token probability spread evenly over bytes",
    "remainder-mixture": "first byte and remainder mixture",
    "target-gate": "gate that reads the target",
    "subset": "subset as headline",
    "denominator": "wrong denominator",
    "split": "validation documents in training data",
    "warm-up": "warm-up on validation tokens",
    "smear": "SmearGate without its mask",
    "over-bytes": "bytes over the limit",
    "over-time": "time over budget",
    "outside-clock": "work outside the clock",
    "mixed-seeds": "settings or files that differ among claimed seeds",
    "claim": "claim that logs do not bear out",
    "not-contained": "needs what it does not contain",
}


@dataclass(frozen=True, slots=True)
class Question:
    """What a finding is called, why it matters, and what a reviewer asks about it."""

    title: str
    matters: str
    ask: str
    kind: str = ""


_PROMISE = "a score counts only if the artifact alone gives it"
_LEARNED = "the text is learned before it is scored (C3)"
_SUMS = "its probabilities over all candidates sum to more than one (C2)"
_RUN = "three seeds count as repetitions only of one script with one configuration"
_SPLIT = "documents that were trained on are no test"
_WARM = "a step on validation tokens before they are scored is what #677 forbids"
_BYTES = "artifact and code together have 16,000,000 bytes at most"
_TIME = "training has 600 s, evaluation another 600 s on eight GPUs"
_UNIT = "bits per byte divide by the bytes of the text; fewer tokens or more bytes look like a gain"
_STATED = "a reader takes the numbers of README and submission.json as those of the runs"
_UNREAD = "what could not be read was not checked"
_SHOW = "Which lines of the log show it?"

QUESTIONS: dict[str, Question] = {
    code: Question(*entry)
    for code, entry in {
        # The score is none.
        "val-training": (
            "training on validation text", _LEARNED,
            "Is this call made before scoring in the claimed runs, and on which tokens?",
            "trained-on-text",
        ),
        "ttt-before-score": (
            "a log that learns the text before it scores", _LEARNED,
            "Which tokens are these epochs of, and which score is from before them?",
            "trained-on-text",
        ),
        "trained-before-scored": (
            "a piece of the text is learned before it is scored", _LEARNED,
            "Which line scores this piece before the step?", "trained-on-text",
        ),
        "last-epoch": (
            "the last of several epochs is scored", _LEARNED,
            "What is the score of the first epoch?", "scored-twice",
        ),
        "adaptation-gain": (
            "adaptation gains more than it can", _LEARNED,
            "Is every token scored once, before the model learns it?", "scored-twice",
        ),
        "unusual-gain": (
            "a score far below that of the model alone", _SUMS,
            "What do the probabilities of all candidates at one place sum to?",
        ),
        "second-pass": (
            "a second scoring pass", "every token is scored once, before anything learns it (C4)",
            "What is the score of the first pass?", "scored-twice",
        ),
        "told-training": (
            "the README tells of training on validation text", _LEARNED,
            "Is the score claimed from after this training?", "trained-on-text",
        ),
        "told-second-pass": (
            "the README tells of a second scoring pass",
            "every token is scored once, before anything learns it (C4)",
            "What is the score of the first pass?", "scored-twice",
        ),
        "slot": (
            "values fitted to a window's own targets", _LEARNED,
            "What is the score of every window before its fit?", "fitted-on-target",
        ),
        "slot-score": (
            "the score claimed is one after a fit in every window", _LEARNED,
            "Which tokens is the fit on, and which are scored after it?", "fitted-on-target",
        ),
        "slot-context": (
            "values fitted to the scored part of a window", "whether it is allowed was never ruled",
            "Does the fit see a token that is scored after it?", "fitted-on-target",
        ),
        "hashed-target": (
            "a hash key holds the target", _SUMS,
            "What do the scores of all candidates at one place sum to?", "hashed-target",
        ),
        "uniform-spread": (
            "a token's cost is spread evenly over its bytes", _SUMS,
            "What do the byte probabilities at one place sum to, over all tokens?",
            "uniform-spread",
        ),
        "oracle": (
            "the better of several costs is taken", _SUMS,
            "Can the choice be made before the token is known?", "target-gate",
        ),
        "first-byte-mix": (
            "first byte and remainder are mixed apart", _SUMS,
            "What do the byte probabilities at one place sum to, over all tokens?",
            "remainder-mixture",
        ),
        "target-expert": (
            "an expert asks about the token to predict", _SUMS,
            "Can the hint be computed before the token is known?", "target-gate",
        ),
        "target-gate": (
            "a gate reads the token to predict", _SUMS,
            "Can the weight be computed before the token is known?", "target-gate",
        ),
        "subset": (
            "a part of the text was scored", _UNIT,
            "What is the score on all 50,000 documents?", "subset",
        ),
        "part-of-text": (
            "the bytes are those of a part of the text", _UNIT,
            "Which documents were scored, and what is the score on all?", "subset",
        ),
        "denominator": (
            "the bytes are not those of the text", _UNIT,
            "How are the bytes of a token counted, and what do they sum to?", "denominator",
        ),
        "space-twice": (
            "leading spaces are counted twice", _UNIT,
            "What do the bytes of all tokens sum to?", "denominator",
        ),
        "marker-bytes": (
            "the marker of a space counts as bytes", _UNIT,
            "What do the bytes of all tokens sum to?", "denominator",
        ),
        "byte-pieces": (
            "pieces of single bytes may count as several", _UNIT,
            "Has the tokenizer such pieces, and how many bytes do they count?", "denominator",
        ),
        "val-in-train": (
            "validation documents among the training text", _SPLIT,
            "Which documents do the training files hold?", "split",
        ),
        "val-docs-default": (
            "a preparation that leaves validation documents to training", _SPLIT,
            "With which number of validation documents was the data made?", "split",
        ),
        "train-glob": (
            "training files by a pattern that the validation files fit", _SPLIT,
            "Which files does the pattern find where the run was made?", "split",
        ),
        "smoothed-eval": (
            "a smoothed loss that evaluations use as well",
            "A smoothed loss is no cost of the text, so it is no score.",
            "Is the smoothing off where the model is scored?", "denominator",
        ),
        "warm-up": (
            "a warm-up on validation tokens", _WARM, "Would random tokens do?", "warm-up",
        ),
        "val-calibration": (
            "a quantiser calibrated on validation text", _LEARNED,
            "Would training text do as well, and what is the score with it?", "trained-on-text",
        ),
        "val-warm-up": (
            "steps on validation tokens that no score seems to depend on", _WARM,
            "Would random tokens do?", "warm-up",
        ),
        "smear": (
            "a gate that reads the token before, across documents",
            "documents that were said to be apart are not",
            "Is the term zero at the first token of a document?", "smear",
        ),
        # Budgets.
        "bytes": ("more bytes than the limit", _BYTES, "Which bytes can go?", "over-bytes"),
        "over-cap": (
            "more bytes than the limit", _BYTES,
            "Which file is submitted, and how many bytes has it with the code?", "over-bytes",
        ),
        "train-time": (
            "training over its budget", _TIME, "When did the last step end?", "over-time",
        ),
        "eval-time": (
            "evaluation over its budget", _TIME,
            "How long did the evaluation that counts take?", "over-time",
        ),
        "calibration-time": (
            "calibration ends after the budget of training",
            "what reads training text is training (ruling in #677)",
            "When did the reading of training text end?", "over-time",
        ),
        "outside-clock": (
            "work of the evaluation outside its clock", _TIME,
            "How long does the evaluation take with this work?", "outside-clock",
        ),
        # The claim.
        "claim": (
            "a score better than the logs bear out", _STATED, _SHOW, "claim",
        ),
        "seed-score": (
            "a seed's score is not that of its log", _STATED, _SHOW, "claim",
        ),
        "mixed-config": (
            "seeds with different configurations", _RUN,
            "Which configuration is claimed, and which seeds ran it?", "mixed-seeds",
        ),
        "mixed-parameters": (
            "seeds with different numbers of parameters", _RUN,
            "Which model is claimed, and which seeds trained it?", "mixed-seeds",
        ),
        "mixed-code": (
            "seeds with different sizes of code", _RUN,
            "Did all seeds run the script shipped?", "mixed-seeds",
        ),
        "mixed-source": (
            "seeds with different scripts", _RUN, "Which script ran for each seed?", "mixed-seeds",
        ),
        "mixed-shards": (
            "seeds with different training text", _RUN,
            "Which training files did each seed read?", "mixed-seeds",
        ),
        "one-seed-claimed": (
            "the score of one seed is claimed", "the mean of all seeds counts, not the best",
            "Why is this seed the claim?", "claim",
        ),
        "claim-unproven": (
            "a score that no log shows", _STATED, _SHOW, "claim",
        ),
        "no-log-of-seed": (
            "a seed without a log", _STATED, "Can the log of this seed be added?", "claim",
        ),
        "steps": (
            "steps that no log shows", _STATED, _SHOW, "claim",
        ),
        "seed-steps": ("steps of a seed that its log does not show", _STATED, _SHOW, "claim"),
        "seed-bytes": ("bytes of a seed that its log does not show", _STATED, _SHOW, "claim"),
        "seed-time": ("seconds of a seed that its log does not show", _STATED, _SHOW, "claim"),
        "bytes-claimed": (
            "fewer bytes claimed than logged", _STATED, _SHOW, "claim",
        ),
        "bytes-not-largest": (
            "the bytes of one seed are claimed", "the largest artifact of all seeds must fit",
            "Can the largest be stated?", "claim",
        ),
        "sd": (
            "a spread that is not that of the seeds", _STATED,
            "From which values was it computed?", "claim",
        ),
        "readme-epochs": (
            "README and logs state different epochs", _STATED,
            "Which number of epochs ran?", "claim",
        ),
        "readme-score": (
            "README and submission.json state different scores", _STATED,
            "Which score is claimed?", "claim",
        ),
        # The script and what was run.
        "network": (
            "the script reaches for the network", _PROMISE,
            "Does it run without a network?", "not-contained",
        ),
        "installs": (
            "the script installs packages", _PROMISE,
            "Does it run where nothing can be installed?", "not-contained",
        ),
        "foreign-log": (
            "a log with settings that the script does not have",
            "the log may be that of another script", "Which script wrote this log?",
            "mixed-seeds",
        ),
        "other-settings": (
            "settings that one log has and another has not", _RUN,
            "Did all seeds run the same script?", "mixed-seeds",
        ),
        "code-size": (
            "the code counted is not the code shipped", _BYTES,
            "Which file was counted?", "mixed-seeds",
        ),
        "artifact-size": (
            "an artifact of a size that no log says", _BYTES,
            "Which run wrote this artifact?", "claim",
        ),
        "step-time": (
            "steps and seconds contradict each other", "one of the numbers was not measured",
            "How was the time of a step measured?", "claim",
        ),
        "unread-variable": (
            "a variable that the script does not read",
            "the command in the README does not repeat the run",
            "Which command ran?", "claim",
        ),
        "runs-unknown": (
            "none of the runs has the score claimed", _STATED,
            "Which logs are those of the claimed runs?", "claim",
        ),
        "seed-twice": (
            "several logs with one seed", "a seed counts once",
            "Which of the logs is claimed?",
        ),
        "order": (
            "an order that reads lengths of text not yet scored",
            "what is not scored yet must not be known (C1)", "Is the order needed?",
        ),
        "other-source": (
            "a log that begins with another script than the one shipped",
            "the script shipped may not be the one that ran", "Which script ran?", "mixed-seeds",
        ),
        # What could not be found or read.
        "not-audited": ("it could not be audited", _UNREAD, "Can it be read by others?"),
        "work-ended": (
            "it was not read to its end", _UNREAD, "Can it be shipped in a form that is shorter?",
        ),
        "unreadable": ("a file could not be read", _UNREAD, "Can it be shipped again?"),
        "json": (
            "submission.json could not be read", _UNREAD, "Can it be written as valid JSON?",
        ),
        "unpack": (
            "the script could not be unpacked for reading", _UNREAD,
            "Can the source be shipped beside it?",
        ),
        "syntax": (
            "the script could not be read as Python", _UNREAD,
            "Can the source be shipped in a form that is shorter or plainer?",
        ),
        "log-unread": (
            "a log that was not read in full", _UNREAD, "Which lines state the rest?",
        ),
        "no-log": ("no log of a run", _STATED, "Can the logs of all seeds be added?"),
        "no-claim": ("no score in submission.json", _STATED, "Which score is claimed?"),
        "no-submission": ("no submission.json", _STATED, "Which score is claimed?"),
        "no-readme": ("no README.md", _STATED, "How is the run repeated?"),
        "no-script": ("no train_gpt.py", _PROMISE, "Which script ran?"),
        "no-bytes": ("no bytes in the logs", _BYTES, "How many bytes has the submission?"),
        "no-denominator": (
            "tokens, loss and score could not all be found", _UNREAD,
            "How many tokens and bytes were scored?",
        ),
        "long-log": ("a log longer than is read", _UNREAD, "Can the log be shortened?"),
        "long-line": (
            "a line longer than is read", _UNREAD, "Can the log be written in lines?",
        ),
        "many-logs": ("more logs than are read", _UNREAD, "Which logs are claimed?"),
        "many-files": ("more files than are read", _UNREAD, "Which files are needed?"),
        "skipped": ("not a regular file", _UNREAD, "Is it needed?"),
        "archive": ("an archive that is not opened", _UNREAD, "Can it be shipped unpacked?"),
        # Worth knowing.
        "runs-aside": (
            "runs that are not claimed", "nothing of them is held against the record",
            "Are they re-runs or ablations?",
        ),
        "few-seeds": (
            "fewer than three seeds", "a test against another record needs repetitions",
            "Are there logs of more seeds?",
        ),
        "val-training-off": (
            "a routine that trains on validation text is off", "it is no part of the claimed runs",
            "Can it be removed?",
        ),
        "eval-sum": (
            "all evaluations together over the budget", "only the one that counts must fit",
            "Which evaluation counts?", "over-time",
        ),
        "declared-code": (
            "the bytes of code are declared", _BYTES, "What has the script shipped?",
        ),
        "no-probes": ("no scorer was probed", _UNREAD, "Can the audit be run with a budget?"),
        "more-of-it": ("findings left out", "there are too many of one kind", "What is this?"),
    }.items()
}  # fmt: skip


def question(code: str) -> Question:
    """Return what a finding's code means; of one that is not known, its name alone."""
    return QUESTIONS.get(code) or Question(code.replace("-", " "), "", "")


def importance(code: str) -> int:
    """Return the place of a code in the order of importance."""
    return _ORDER.get(code, len(_ORDER))


_ORDER = {code: place for place, code in enumerate(QUESTIONS)}
