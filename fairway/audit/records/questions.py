"""The meaning of every finding: a title, why it matters, and what to ask the author.

One entry for every code of the audit, in order of importance; a test checks this. `kind` is the
class of error in the benchmark of records (docs/records.md), "" if it has none.
"""

from dataclasses import dataclass

# The classes of errors, with the names that the labels use.
KINDS = {
    "trained-on-text": "training on validation text before scoring",
    "scored-twice": "last of several epochs scored, or a second scoring pass",
    "fitted-on-target": "SLOT or logit bias fitted on the window's own targets",
    "hashed-target": "hashed n-gram whose key contains the target",
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
    "claim": "claim that the logs do not support",
    "not-contained": "needs something that it does not contain",
}


@dataclass(frozen=True, slots=True)
class Question:
    """The title of a finding, why it matters, and what a reviewer asks about it."""

    title: str
    matters: str
    ask: str
    kind: str = ""


# Reasons that several findings share.
_MATTERS = {
    "promise": "a score counts only if the artifact alone gives it",
    "learned": "the text is learned before it is scored (C3)",
    "sums": "its probabilities over all candidates sum to more than one (C2)",
    "run": "three seeds count as repetitions only with one script and one configuration",
    "split": "documents from the training text are not a test",
    "warm": "a step on validation tokens before they are scored is what #677 forbids",
    "bytes": "artifact and code together have 16,000,000 bytes at most",
    "time": "training has 600 s, evaluation another 600 s on eight GPUs",
    "unit": "bits per byte divide by the bytes of the text; fewer tokens or more bytes look like "
    "a gain",
    "stated": "readers take the numbers of README and submission.json as those of the runs",
    "unread": "the unread part was not checked",
    "once": "every token is scored once, before anything learns it (C4)",
    "smoothed": "A smoothed loss is not the cost of the text, so it is not a score.",
}

# Two lines each: code, kind and title; the reason, and the question.
_TABLE = """
# The score is invalid.
val-training | trained-on-text | training on validation text
  learned | Is this call made before scoring in the claimed runs, and on which tokens?
ttt-before-score | trained-on-text | a log that learns the text before it scores
  learned | Which tokens are these epochs of, and which score is from before them?
trained-before-scored | trained-on-text | a piece of the text is learned before it is scored
  learned | Which line scores this piece before the step?
last-epoch | scored-twice | the last of several epochs is scored
  learned | What is the score of the first epoch?
adaptation-gain | scored-twice | adaptation gains more than is usual
  learned | Is every token scored once, before the model learns it?
unusual-gain | - | a score far below that of the model alone
  sums | What do the probabilities of all candidates at one place sum to?
second-pass | scored-twice | a second scoring pass
  once | What is the score of the first pass?
told-training | trained-on-text | the README mentions training on validation text
  learned | Is the score claimed from after this training?
told-second-pass | scored-twice | the README mentions a second scoring pass
  once | What is the score of the first pass?
slot | fitted-on-target | values fitted to a window's own targets
  learned | What is the score of every window before its fit?
slot-score | fitted-on-target | the claimed score is taken after a fit in every window
  learned | Which tokens is the fit on, and which are scored after it?
slot-context | fitted-on-target | values fitted to the scored part of a window
  no ruling says whether it is allowed | Does the fit see a token that is scored after it?
hashed-target | hashed-target | a hash key contains the target
  sums | What do the scores of all candidates at one place sum to?
uniform-spread | uniform-spread | a token's cost is spread evenly over its bytes
  sums | What do the byte probabilities at one place sum to, over all tokens?
oracle | target-gate | the better of several costs is taken
  sums | Can the choice be made before the token is known?
first-byte-mix | remainder-mixture | first byte and remainder are mixed separately
  sums | What do the byte probabilities at one place sum to, over all tokens?
target-expert | target-gate | an expert asks about the token to predict
  sums | Can the hint be computed before the token is known?
target-gate | target-gate | a gate reads the token to predict
  sums | Can the weight be computed before the token is known?
subset | subset | a part of the text was scored
  unit | What is the score on all 50,000 documents?
part-of-text | subset | the bytes are those of a part of the text
  unit | Which documents were scored, and what is the score on all?
denominator | denominator | the bytes are not those of the text
  unit | How are the bytes of a token counted, and what do they sum to?
score-numbers | denominator | the numbers of a score contradict each other or the text
  unit | Which program wrote these numbers?
space-twice | denominator | leading spaces are counted twice
  unit | What do the bytes of all tokens sum to?
marker-bytes | denominator | the marker of a space counts as bytes
  unit | What do the bytes of all tokens sum to?
byte-pieces | denominator | pieces of single bytes may count as several
  unit | Does the tokenizer have such pieces, and how many bytes do they count?
val-in-train | split | validation documents among the training text
  split | Which documents are in the training files?
val-docs-default | split | a preparation that puts validation documents into the training text
  split | How many validation documents did the preparation set aside?
train-glob | split | a pattern of training files that also matches validation files
  split | Which files did the pattern find on the machine of the run?
smoothed-eval | denominator | a smoothed loss that evaluations also use
  smoothed | Is smoothing off during scoring?
warm-up | warm-up | a warm-up on validation tokens
  warm | Would random tokens serve as well?
val-calibration | trained-on-text | a quantiser calibrated on validation text
  learned | Would training text serve as well, and what is the score with it?
val-warm-up | warm-up | steps on validation tokens that no score seems to depend on
  warm | Would random tokens serve as well?
smear | smear | a gate that reads the previous token across documents
  documents that should be separate are not | Is the term zero at the first token of a document?
# Budgets.
bytes | over-bytes | more bytes than the limit
  bytes | Which bytes can go?
over-cap | over-bytes | more bytes than the limit
  bytes | Which file is submitted, and how many bytes does it have with the code?
train-time | over-time | training over its budget
  time | When did the last step end?
eval-time | over-time | evaluation over its budget
  time | How long did the evaluation that counts take?
calibration-time | over-time | calibration ends after the budget of training
  reading training text is training (ruling in #677) | When did the reading of training text end?
outside-clock | outside-clock | work of the evaluation outside its clock
  time | How long does the evaluation take with this work?
# The claim.
claim | claim | a better score than the logs show
  stated | Which lines of the log show it?
seed-score | claim | a seed's score is not that of its log
  stated | Which lines of the log show it?
mixed-config | mixed-seeds | seeds with different configurations
  run | Which configuration is claimed, and which seeds ran it?
mixed-parameters | mixed-seeds | seeds with different numbers of parameters
  run | Which model is claimed, and which seeds trained it?
mixed-code | mixed-seeds | seeds with different sizes of code
  run | Did all seeds run the shipped script?
mixed-source | mixed-seeds | seeds with different scripts
  run | Which script ran for each seed?
mixed-shards | mixed-seeds | seeds with different training text
  run | Which training files did each seed read?
one-seed-claimed | claim | the score of one seed is claimed
  the mean of all seeds counts, not the best | Why is this seed the claim?
claim-unproven | claim | a score that no log shows
  stated | Which lines of the log show it?
no-log-of-seed | claim | a seed without a log
  stated | Can the log of this seed be added?
steps | claim | steps that no log shows
  stated | Which lines of the log show it?
seed-steps | claim | steps of a seed that its log does not show
  stated | Which lines of the log show it?
seed-bytes | claim | bytes of a seed that its log does not show
  stated | Which lines of the log show it?
seed-time | claim | seconds of a seed that its log does not show
  stated | Which lines of the log show it?
bytes-claimed | claim | fewer bytes claimed than logged
  stated | Which lines of the log show it?
bytes-differ | claim | the claim states different bytes of the submission
  bytes | Which of them has artifact and code?
bytes-not-largest | claim | the bytes of one seed are claimed
  the largest artifact of all seeds must fit | Can the largest be stated?
sd | claim | a standard deviation that differs from that of the seeds
  stated | From which values was it computed?
readme-epochs | claim | README and logs state different epochs
  stated | Which number of epochs ran?
readme-score | claim | README and submission.json state different scores
  stated | Which score is claimed?
# The script and the run.
network | not-contained | the script uses the network
  promise | Does it run without a network?
installs | not-contained | the script installs packages
  promise | Does it run on a machine where nothing can be installed?
foreign-log | mixed-seeds | a log with settings that the script does not have
  another script may have written the log | Which script wrote this log?
other-settings | mixed-seeds | settings that one log has and another has not
  run | Did all seeds run the same script?
code-size | mixed-seeds | the counted code is not the shipped code
  bytes | Which file was counted?
artifact-size | claim | an artifact of a size that no log says
  bytes | Which run wrote this artifact?
step-time | claim | steps and seconds contradict each other
  one of the numbers was not measured | How was the time of a step measured?
unread-variable | claim | a variable that the script does not read
  the command in the README does not repeat the run | Which command ran?
runs-unknown | claim | none of the runs has the claimed score
  stated | Which logs are those of the claimed runs?
seed-twice | - | several logs with one seed
  a seed counts once | Which of the logs is claimed?
order | - | an order that reads lengths of text not yet scored
  the lengths of unscored text must not be known (C1) | Is the order needed?
other-source | mixed-seeds | a log that begins with another script than the shipped one
  the shipped script may not be the one that ran | Which script ran?
# What could not be found or read.
not-audited | - | it could not be audited
  unread | Can others read it?
work-ended | - | it was not read to its end
  unread | Can a shorter form be shipped?
unreadable | - | a file could not be read
  unread | Can it be shipped again?
claim-unread | - | a value in submission.json that is no number
  unread | Which number is claimed?
json | - | submission.json could not be read
  unread | Can it be written as valid JSON?
unpack | - | the script could not be unpacked for reading
  unread | Can the source be shipped beside it?
syntax | - | the script could not be read as Python
  unread | Can the source be shipped in a shorter or plainer form?
log-unread | - | a log that was not read in full
  unread | Which lines state the rest?
no-log | - | no log of a run
  stated | Can the logs of all seeds be added?
no-claim | - | no score in submission.json
  stated | Which score is claimed?
no-submission | - | no submission.json
  stated | Which score is claimed?
no-readme | - | no README.md
  stated | How is the run repeated?
no-script | - | no train_gpt.py
  promise | Which script ran?
no-bytes | - | no bytes in the logs
  bytes | How many bytes does the submission have?
no-denominator | - | tokens, loss and score were not all found
  unread | How many tokens and bytes were scored?
long-log | - | a log beyond the size limit
  unread | Can the log be shortened?
long-line | - | a line beyond the length limit
  unread | Can the log be written in lines?
many-logs | - | more logs than the limit
  unread | Which logs are claimed?
many-files | - | more files than the limit
  unread | Which files are needed?
skipped | - | not a regular file
  unread | Is it needed?
archive | - | an archive that is not opened
  unread | Can it be shipped unpacked?
# Notes.
runs-aside | - | runs that are not claimed
  they do not count against the record | Are they re-runs or ablations?
few-seeds | - | fewer than three seeds
  a test against another record needs repetitions | Are there logs of more seeds?
val-training-off | - | a routine that trains on validation text is off
  the claimed runs do not use it | Can it be removed?
eval-sum | over-time | all evaluations together over the budget
  only the evaluation that counts must fit | Which evaluation counts?
declared-code | - | the bytes of code are declared
  bytes | How many bytes does the shipped script have?
no-probes | - | no scorer was probed
  unread | Can the audit be run with a budget?
more-of-it | - | findings left out
  there are too many of one kind | What is the common cause?
"""


def _read(table: str) -> dict[str, Question]:
    lines = [line.strip().split(" | ") for line in table.split("\n") if line and line[0] != "#"]
    return {
        code: Question(title, _MATTERS.get(matters, matters), ask, kind.strip("-"))
        for (code, kind, title), (matters, ask) in zip(lines[::2], lines[1::2], strict=True)
    }


QUESTIONS = _read(_TABLE)
_ORDER = {code: place for place, code in enumerate(QUESTIONS)}


def question(code: str) -> Question:
    """Return the question for a finding's code; for an unknown code, only its name."""
    return QUESTIONS.get(code) or Question(code.replace("-", " "), "", "")


def importance(code: str) -> int:
    """Return the place of a code in the order of importance."""
    return _ORDER.get(code, len(_ORDER))
