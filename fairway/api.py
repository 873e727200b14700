"""The Python interface: load an artifact, score a text with it, continue a prompt.

import fairway
model = fairway.load("runs/demo/artifact.fwy")
model.bits_per_byte("The quick brown fox jumps over the lazy dog.")
model.generate("The function returns")
"""

import codecs
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fairway.base import notebook
from fairway.base.errors import UserError, shown
from fairway.base.files import digest_file
from fairway.base.mistaken import artifact_at
from fairway.base.names import TOKENIZER_FILE
from fairway.base.progress import progress
from fairway.base.units import nats_to_bits
from fairway.config.settings import ModelConfig, RuntimeConfig, ScoreConfig
from fairway.config.written import from_dict
from fairway.data.pieces import Packer
from fairway.data.tokens import Tokenizer
from fairway.machine.plan import DTYPES, Plan, make_plan, unaffected
from fairway.model.gpt import GPT, build, num_parameters
from fairway.model.paths import place, prepare
from fairway.model.writing import Manner, Row, require_whole, write
from fairway.pack.artifact import Artifact, Label, load_artifact, read_label
from fairway.score.adapter_file import attach_adapter, read_adapter
from fairway.score.costs import Costs, costs_of
from fairway.score.evaluation import Evaluation
from fairway.score.ledger import Score, Text, Witness
from fairway.score.sliding import evaluate_frozen, text_of

OPENING_TOKENS = 80


def model_from(state: dict[str, Tensor], config: ModelConfig, plan: Plan, looping: bool) -> GPT:
    """Return a model with these weights, ready to run under a plan."""
    model = build(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(state[name])
    place(model, plan.device)
    prepare(model, DTYPES[plan.dtype], plan.attention, plan.kernels)
    model.set_looping(looping)
    return model.eval()


def model_of(artifact: Artifact, plan: Plan) -> GPT:
    """Return the model of an artifact, ready to run under a plan."""
    # The model draws initial weights; the caller's random state must not change.
    with torch.random.fork_rng(devices=()):
        looping = bool(artifact.header["provenance"]["looping"])
        return model_from(artifact.state, artifact.config, plan, looping)


def model_shapes(config: ModelConfig) -> dict[str, torch.Size]:
    """Return the shape of every weight of a model, by name; none is allocated."""
    with torch.device("meta"):
        return {name: weight.shape for name, weight in GPT(config).named_parameters()}


def tokenizer_of(path: Path) -> Tokenizer:
    """Return the tokenizer in an artifact or in its folder; UserError if it is another one's."""
    return _tokenizer_of(path, read_label(path), None)


class TextScore(Score):
    """A score that a notebook shows as a table."""

    def _repr_html_(self) -> str:
        pairs = [
            ("text", f"{self.bytes:,} bytes, {self.tokens:,} tokens"),
            (
                "cost",
                f"{nats_to_bits(self.nats):,.1f} bits, {self.nats_per_token:.4f} nats a token",
            ),
        ]
        return notebook.page(f"{self.bpb:.4f} bits per byte", notebook.facts(pairs))


class LanguageModel:
    """A loaded artifact with its tokenizer: scores and continues text.

    It uses the threads and the precision of its plan, and does not change those of the process.
    """

    def __init__(self, model: GPT, tokenizer: Tokenizer, score: ScoreConfig, plan: Plan) -> None:
        self.model, self.tokenizer, self.score_config = model, tokenizer, score
        self.plan = plan

    def _repr_html_(self) -> str:
        config, count = self.model.config, num_parameters(self.model.config)
        extra = config.loop_extra if self.model.looping else 0
        loop = f", blocks {config.loop_first} to {config.loop_last} {1 + extra} times" * bool(extra)
        pairs = [
            ("blocks", f"{config.num_layers} of width {config.dim}{loop}"),
            ("vocabulary", f"{config.vocab_size:,} tokens"),
            ("window", f"{self.score_config.seq_len:,} tokens"),
            ("computes on", self.plan.describe()),
        ]
        return notebook.page(f"A model of {count:,} parameters", notebook.facts(pairs))

    def score(self, text: str | Sequence[str], *, sliding: bool = True) -> TextScore:
        """Return the score of a text, or of several documents, with the ledger's account.

        Every byte of a document counts. Bytes that the tokenizer normally drops, such as blanks at
        the ends, are scored as tokens of single bytes. Raises UserError for an empty text and for
        half a character.
        """
        asked = self._asked(_documents(text))
        with self.plan.applied():
            return TextScore(**asdict(evaluate_frozen(self.model, asked, sliding=sliding)))

    def bits_per_byte(self, text: str | Sequence[str]) -> float:
        """Return the bits per byte of a text under a sliding window."""
        return self.score(text).bpb

    def logprobs(self, text: str) -> npt.NDArray[np.float64]:
        """Return the natural log-probability of every token of one document, in order.

        The windows are those of `bits_per_byte`, so minus their sum is the text's cost in nats.
        """
        return -self.costs(text, alternatives=0).nats

    def costs(self, text: str, *, alternatives: int = 5, witness: Witness | None = None) -> Costs:
        """Return the cost of every token of one document, and the likeliest tokens at its place.

        The costs add up to the score of the text, to the bit. A `witness` receives everything that
        is scored.
        """
        if not isinstance(text, str):
            raise UserError(f"the text is {_kind(text)}; give one document as str")
        require_whole("alternatives", alternatives, 0)
        with self.plan.applied():
            return costs_of(self.model, self._asked([text], witness), int(alternatives))

    def generate(
        self,
        prompt: str,
        *,
        max_tokens: int = 100,
        temperature: float = 0.8,
        top_k: int = 50,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> str:
        """Return a continuation of the prompt (without it), up to `max_tokens` tokens.

        The prompt is continued as it stands, with its blanks and line ends. Temperature 0 always
        takes the likeliest token. The text ends early if the model ends the document.
        """
        row = Row(self.packer, prompt, max_tokens, seed)
        self.write([row], Manner(temperature, top_k, top_p))
        return row.said()

    def stream(
        self,
        prompt: str,
        *,
        max_tokens: int = 100,
        temperature: float = 0.8,
        top_k: int = 50,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Iterator[str]:
        """Yield the text of `generate` in parts, each as soon as it is complete."""
        row = Row(self.packer, prompt, max_tokens, seed)
        # A character of several byte tokens is complete with the last of them.
        decoder, told = codecs.getincrementaldecoder("utf-8")("replace"), 0
        for _ in self.writing([row], Manner(temperature, top_k, top_p)):
            yield decoder.decode(row.text[told:])
            told = len(row.text)
        yield decoder.decode(b"", final=True)

    def write(self, rows: Sequence[Row], manner: Manner) -> None:
        """Extend several rows side by side until all have ended."""
        with progress("writing", max((row.most for row in rows), default=0)) as advance:
            for _ in self.writing(rows, manner):
                advance(1)

    def writing(
        self, rows: Sequence[Row], manner: Manner, length: int | None = None
    ) -> Iterator[None]:
        """Extend rows by a token per step, with `length` tokens of context or the window's."""
        config = self.score_config
        steps = write(self.model, rows, manner, length or config.seq_len, config.stride)
        going = True
        while going:
            with self.plan.applied():
                going = next(steps, True) is None
            if going:
                yield

    @cached_property
    def packer(self) -> Packer:
        """The conversion of any text into tokens, and of tokens into text."""
        return Packer(self.tokenizer)

    def proven(self, documents: Sequence[str]) -> Text:
        """Return the tokens of documents, each after a BOS; they represent all bytes."""
        ids = self.packer.stream(documents)
        # The ledger gives no score if the bytes of the tokens differ from those of the text.
        return text_of(ids, self.tokenizer.table, sum(len(text.encode()) for text in documents))

    def _asked(self, documents: Sequence[str], witness: Witness | None = None) -> Evaluation:
        """Return the inputs of a scorer for some documents."""
        config, text = replace(self.score_config, truncate=False), self.proven(documents)
        return Evaluation(text, config, description="scoring", witness=witness or Witness())


def _kind(value: object) -> str:
    return f"of the type {type(value).__name__}"


def _documents(text: str | Sequence[str]) -> list[str]:
    """Return the documents of a text; UserError for what is neither str nor a sequence of str."""
    # Where there is no order, as in a set, the score would be another one each time.
    if isinstance(text, str):
        return [text]
    if isinstance(text, bytes | bytearray | memoryview | Mapping | Set) or not isinstance(
        text, Iterable
    ):
        hint = "; decode it first, as with .decode()" * isinstance(text, bytes | bytearray)
        raise UserError(f"the text is {_kind(text)}; give str, or a list of str{hint}")
    documents = list(text)
    for number, document in enumerate(documents):
        if not isinstance(document, str):
            raise UserError(f"document {number} is {_kind(document)}; give str")
    return documents


def path_of(value: str | Path, what: str) -> Path:
    """Return a path; UserError for a value of another type, and for an empty one."""
    if not isinstance(value, str | Path) or not str(value):
        raise UserError(f"{what} is {shown(value)}; give the path of a file as str or Path")
    return Path(value)


def openings(model: LanguageModel, documents: Sequence[str]) -> list[dict[str, str]]:
    """Return continuations of the first 16 tokens of up to four documents."""
    tokenizer, length = model.tokenizer, 16
    encoded = [tokenizer.encode(text)[:length] for text in documents]
    chosen = [ids for ids in encoded if len(ids) == length][:4]
    if not chosen:
        return []
    rows = [
        Row(model.packer, np.array([tokenizer.bos_id, *ids]), OPENING_TOKENS, seed=number)
        for number, ids in enumerate(chosen)
    ]
    model.write(rows, Manner())
    return [
        {"prompt": tokenizer.decode(ids), "text": row.said()}
        for ids, row in zip(chosen, rows, strict=True)
    ]


def load(
    path: str | Path,
    *,
    tokenizer: str | Path | None = None,
    adapter: str | Path | None = None,
    runtime: RuntimeConfig | None = None,
    plan: Plan | None = None,
) -> LanguageModel:
    """Return the model of an artifact file or of a run folder; nothing in it is executed.

    The tokenizer is the one inside the artifact, or the given file, or `tokenizer.model` beside the
    artifact. A tokenizer with another digest is refused. `adapter` is a file of `fairway tune` for
    this artifact. `plan` sets device, precision and threads; without it they are chosen as for
    training. The settings of the process do not change. Raises UserError for a damaged file.
    """
    if not isinstance(runtime, RuntimeConfig | None) or not isinstance(plan, Plan | None):
        raise UserError("runtime must be a RuntimeConfig, and plan the plan of a loaded model")
    with unaffected():
        return _loaded(path_of(path, "the artifact"), tokenizer, adapter, runtime, plan)


def _loaded(
    path: Path,
    tokenizer: str | Path | None,
    adapter: str | Path | None,
    runtime: RuntimeConfig | None,
    plan: Plan | None,
) -> LanguageModel:
    path = artifact_at(path)
    words = fitting_tokenizer(path, tokenizer, adapter)
    return language_model(load_artifact(path), path, words, adapter, runtime, plan)


def fitting_tokenizer(
    path: Path, tokenizer: str | Path | None, adapter: str | Path | None = None
) -> Tokenizer:
    """Return the tokenizer of an artifact, as `load` takes it; no weights are decoded.

    Raises UserError for a tokenizer or an adapter that is missing or belongs to another artifact.
    """
    words = _tokenizer_of(path, read_label(path), tokenizer)
    if adapter is not None:
        read_adapter(path_of(adapter, "the adapter"), digest_file(path), words.digest)
    return words


def language_model(
    artifact: Artifact,
    path: Path,
    words: Tokenizer | None = None,
    adapter: str | Path | None = None,
    runtime: RuntimeConfig | None = None,
    plan: Plan | None = None,
) -> LanguageModel:
    """Return what `load` does for an artifact that was read from a path; without a tokenizer it
    takes that of the artifact."""
    words = words or _tokenizer_of(path, Label(artifact.header, artifact.tokenizer), None)
    # The measurement of a CPU draws numbers; the caller's random state must not change.
    with torch.random.fork_rng(devices=()):
        plan = plan or make_plan(runtime or RuntimeConfig())
    with plan.applied():
        model = model_of(artifact, plan)
    if adapter is not None:
        attach_adapter(path_of(adapter, "the adapter"), model, digest_file(path), words.digest)
    score: ScoreConfig = from_dict(artifact.header["provenance"]["score"], ScoreConfig, "score.")
    return LanguageModel(model, words, score, plan)


def _tokenizer_of(path: Path, label: Label, given: str | Path | None) -> Tokenizer:
    beside = path.parent / TOKENIZER_FILE
    if given is None and label.tokenizer is not None:
        tokenizer = Tokenizer.from_bytes(label.tokenizer)
    elif given is None and not beside.is_file():
        raise UserError(
            f"{path} carries no tokenizer and {beside} does not exist; name one with --tokenizer"
        )
    else:
        tokenizer = Tokenizer.load(beside if given is None else path_of(given, "the tokenizer"))
    wanted, pieces = str(label.header["tokenizer_digest"]), label.header["model"]["vocab_size"]
    if tokenizer.digest != wanted:
        raise UserError(
            f"{path} was made with the tokenizer {wanted[:12]}, but this tokenizer is "
            f"{tokenizer.digest[:12]}"
        )
    if tokenizer.vocab_size != pieces:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} pieces, but the model has {pieces}; name "
            "the tokenizer of its training"
        )
    return tokenizer
