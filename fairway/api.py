"""The Python interface: load an artifact, score a text with it, continue a prompt.

    import fairway
    model = fairway.load("runs/demo/artifact.fwy")
    model.bits_per_byte("The quick brown fox jumps over the lazy dog.")
    model.generate("The function returns")

Shapes: B prompts, T time, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fairway.config import ModelConfig, RuntimeConfig, ScoreConfig, from_dict
from fairway.data.tokens import Tokenizer, encode_documents, prove_bytes
from fairway.errors import UserError
from fairway.model.cache import Cache
from fairway.model.gpt import GPT, build
from fairway.model.paths import prepare
from fairway.pack.artifact import load_artifact
from fairway.progress import progress
from fairway.runtime import DTYPES, Plan, make_plan
from fairway.score.ledger import Ledger, Receipt, Score, Text, score_events
from fairway.score.sliding import FrozenPredictor, evaluate, text_of
from fairway.score.windows import events, sliding_windows

ARTIFACT_FILE, TOKENIZER_FILE = "artifact.fwy", "tokenizer.model"


def model_from(state: dict[str, Tensor], config: ModelConfig, plan: Plan, looping: bool) -> GPT:
    """Return a model with these weights, ready to run under a plan."""
    model = build(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(state[name])
    model.to(plan.device)
    prepare(model, DTYPES[plan.dtype], plan.attention, plan.kernels)
    model.set_looping(looping)
    return model.eval()


class _Recorder(FrozenPredictor):
    """A frozen model that keeps what the ledger's receipts say of every token."""

    def __init__(self, model: GPT, seq_len: int) -> None:
        super().__init__(model, seq_len)
        self.nats: list[npt.NDArray[np.float64]] = []

    def adapt(self, receipt: Receipt) -> None:
        """Keep the costs; learn nothing."""
        self.nats.append(receipt.nats)


class LanguageModel:
    """A loaded artifact with its tokenizer: scores and continues text."""

    def __init__(self, model: GPT, tokenizer: Tokenizer, score: ScoreConfig) -> None:
        self.model, self.tokenizer, self.score_config = model, tokenizer, score

    def score(self, text: str | Sequence[str], *, sliding: bool = True) -> Score:
        """Return the score of a text, or of several documents, with the ledger's account.

        Blanks at the ends of a document are not counted: no token stands for them. Raises
        UserError for a text that the tokenizer cannot give back exactly.
        """
        config = replace(self.score_config, truncate=False)
        proven = self._proven([text] if isinstance(text, str) else list(text))
        return evaluate(self.model, proven, config, sliding=sliding, seed=0, description="scoring")

    def bits_per_byte(self, text: str | Sequence[str]) -> float:
        """Return the bits per byte of a text under a sliding window."""
        return self.score(text).bpb

    def logprobs(self, text: str) -> npt.NDArray[np.float64]:
        """Return the natural log-probability of every token of one document, in order.

        The windows are those of `bits_per_byte`, so minus their sum is the text's cost in nats.
        """
        proven, config = self._proven([text]), self.score_config
        targets = len(proven.ids) - 1
        recorder = _Recorder(self.model, config.seq_len)
        windows = sliding_windows(targets, config.seq_len, config.stride)
        grouped = events(windows, config.batch_windows)
        score_events(Ledger(proven, targets), recorder, grouped, "scoring")
        return -np.concatenate(recorder.nats)

    def generate(
        self,
        prompt: str,
        *,
        max_tokens: int = 100,
        temperature: float = 0.8,
        top_k: int = 50,
        seed: int = 0,
    ) -> str:
        """Return a continuation of the prompt (without it), up to `max_tokens` tokens.

        Temperature 0 always takes the likeliest token. Stops early where the model ends the
        document.
        """
        ids_1T = self._prompt(prompt)
        return self.generate_batch(ids_1T, max_tokens, temperature, top_k, seed)[0]

    def stream(
        self,
        prompt: str,
        *,
        max_tokens: int = 100,
        temperature: float = 0.8,
        top_k: int = 50,
        seed: int = 0,
    ) -> Iterator[str]:
        """Yield what `generate` returns in parts, as soon as they are written."""
        ids_1T = self._prompt(prompt)
        start, told, text = ids_1T.shape[1], "", ""
        for longer_1T in self._writing(ids_1T, max_tokens, temperature, top_k, seed):
            text = self._continuation(longer_1T[0], start)
            # A character of several byte tokens is whole with the last of them.
            whole = text.rstrip("\ufffd")
            yield whole[len(told) :]
            told = max(told, whole, key=len)
        yield text[len(told) :]

    def generate_batch(
        self,
        ids_BT: npt.NDArray[np.int64],
        max_tokens: int,
        temperature: float,
        top_k: int,
        seed: int,
    ) -> list[str]:
        """Return continuations of prompts of equal length, given as token ids [B, T]."""
        longest_BT = ids_BT
        with progress("writing", max_tokens) as advance:
            for longer_BT in self._writing(ids_BT, max_tokens, temperature, top_k, seed):
                longest_BT = longer_BT
                advance(1)
        return [self._continuation(row, ids_BT.shape[1]) for row in longest_BT]

    def _writing(
        self,
        ids_BT: npt.NDArray[np.int64],
        max_tokens: int,
        temperature: float,
        top_k: int,
        seed: int,
    ) -> Iterator[npt.NDArray[np.int64]]:
        """Yield the tokens with one more each, until all documents have ended."""
        # Written so that a temperature that is not a number fails too.
        if not (max_tokens >= 0 and temperature >= 0 and top_k >= 1 and 0 <= seed < 2**63):
            raise UserError(
                "generate needs max_tokens >= 0, temperature >= 0, top_k >= 1 and a seed from 0 to "
                f"2^63 - 1, got {max_tokens}, {temperature:g}, {top_k} and {seed}"
            )
        generator = torch.Generator().manual_seed(seed)
        cache = Cache(self.model, len(ids_BT), self.score_config.seq_len, steady=True)
        start = ids_BT.shape[1]
        for _ in range(max_tokens):
            logits_BV = self._next_logits(cache, ids_BT)
            chosen_B1 = _draw(logits_BV, temperature, top_k, generator).numpy()
            ids_BT = np.concatenate((ids_BT, chosen_B1), axis=1)
            yield ids_BT
            if (ids_BT[:, start:] == self.tokenizer.bos_id).any(1).all():
                return

    @torch.no_grad()
    def _next_logits(self, cache: Cache, ids_BT: npt.NDArray[np.int64]) -> Tensor:
        """Return the logits [B, V] after these tokens, all but the last of which were read.

        A full window moves on by the scorer's stride, at most half its length, and is read anew; a
        prompt, of which nothing was read, fills as much of it as it can.
        """
        length = self.score_config.seq_len
        if not cache.filled:
            unread_BT = ids_BT[:, -length:]
        elif cache.filled < length:
            unread_BT = ids_BT[:, -1:]
        else:
            unread_BT = ids_BT[:, min(self.score_config.stride, length // 2) - length :]
            cache.clear()
        states_BTD = cache.read(torch.from_numpy(np.ascontiguousarray(unread_BT)))
        return self.model.logits(states_BTD[:, -1]).cpu()

    def _prompt(self, prompt: str) -> npt.NDArray[np.int64]:
        ids = self.encode([prompt]) if prompt.strip() else np.array([self.tokenizer.bos_id])
        return ids.astype(np.int64)[None]

    def _continuation(self, ids_T: npt.NDArray[np.int64], start: int) -> str:
        ends = np.flatnonzero(ids_T[start:] == self.tokenizer.bos_id)
        end = start + int(ends[0]) if len(ends) else len(ids_T)
        # Decoding the prompt too keeps a leading space that decoding the rest alone would drop.
        return self.tokenizer.decode(ids_T[:end])[len(self.tokenizer.decode(ids_T[:start])) :]

    def _proven(self, documents: list[str]) -> Text:
        ids = self.encode(documents)
        return text_of(ids, self.tokenizer.table, prove_bytes(self.tokenizer, ids))

    def encode(self, documents: list[str]) -> npt.NDArray[np.uint16]:
        """Return documents as token ids, each behind a BOS, in the tokenizer's canonical form.

        Raises UserError for one that it cannot represent exactly, and where there is no text.
        """
        for number, document in enumerate(documents):
            _check_characters(document, number)
        documents = [self.tokenizer.canonical(document) for document in documents]
        if not any(documents):
            raise UserError("the text is empty (0 bytes); give at least one character")
        for number, document in enumerate(documents):
            if not self.tokenizer.represents(document):
                raise UserError(
                    f"document {number} cannot be represented exactly by this tokenizer (does it "
                    "contain the character U+2581?); leave it out"
                )
        return encode_documents(self.tokenizer, documents)


def _check_characters(document: str, number: int) -> None:
    try:
        document.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"document {number} has half a character (a lone surrogate); was it read as UTF-8?"
        ) from None


def _draw(logits_BV: Tensor, temperature: float, top_k: int, generator: torch.Generator) -> Tensor:
    if temperature == 0.0:
        return logits_BV.argmax(1, keepdim=True)
    values_BK, choices_BK = logits_BV.topk(min(top_k, logits_BV.shape[1]), dim=1)
    shares_BK = (values_BK / temperature).softmax(1)
    return choices_BK.gather(1, torch.multinomial(shares_BK, 1, generator=generator))


def openings(model: LanguageModel, documents: Sequence[str]) -> list[dict[str, str]]:
    """Return continuations of the first 16 tokens of up to four documents."""
    tokenizer, length = model.tokenizer, 16
    encoded = [tokenizer.encode(text)[:length] for text in documents]
    chosen = [ids for ids in encoded if len(ids) == length][:4]
    if not chosen:
        return []
    ids_BT = np.array([[tokenizer.bos_id, *ids] for ids in chosen], dtype=np.int64)
    texts = model.generate_batch(ids_BT, 80, temperature=0.8, top_k=50, seed=0)
    return [
        {"prompt": tokenizer.decode(ids), "text": text}
        for ids, text in zip(chosen, texts, strict=True)
    ]


def load(
    path: str | Path,
    *,
    tokenizer: str | Path | None = None,
    runtime: RuntimeConfig | None = None,
    plan: Plan | None = None,
) -> LanguageModel:
    """Return the model of an artifact file, or of a run folder's; nothing in it is ever executed.

    The tokenizer is the one inside the artifact, else the given file, else `tokenizer.model`
    beside it; a tokenizer of another digest is refused. `plan` fixes device, precision and
    threads; without it they are found as for training. Raises UserError for anything damaged.
    """
    path = Path(path)
    if path.is_dir():
        path /= ARTIFACT_FILE
    artifact = load_artifact(path)
    words = _tokenizer_of(path, artifact.tokenizer, tokenizer, artifact.header)
    if words.vocab_size != artifact.config.vocab_size:
        raise UserError(
            f"the tokenizer has {words.vocab_size} pieces but the model "
            f"{artifact.config.vocab_size}"
        )
    plan = plan or make_plan(runtime or RuntimeConfig())
    plan.apply()
    provenance = artifact.header["provenance"]
    model = model_from(artifact.state, artifact.config, plan, bool(provenance["looping"]))
    score: ScoreConfig = from_dict(provenance["score"], ScoreConfig, "score.")
    return LanguageModel(model, words, score)


def _tokenizer_of(
    path: Path, inside: bytes | None, given: str | Path | None, header: dict[str, object]
) -> Tokenizer:
    beside = path.parent / TOKENIZER_FILE
    if given is None and inside is not None:
        tokenizer = Tokenizer.from_bytes(inside)
    elif given is None and not beside.is_file():
        raise UserError(
            f"{path} carries no tokenizer and {beside} does not exist; name one with --tokenizer"
        )
    else:
        tokenizer = Tokenizer.load(Path(given or beside))
    if tokenizer.digest != header["tokenizer_digest"]:
        raise UserError(
            f"the tokenizer's digest {tokenizer.digest[:12]} is not the one {path} was made with, "
            f"{str(header['tokenizer_digest'])[:12]}"
        )
    return tokenizer
