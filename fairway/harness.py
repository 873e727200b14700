"""An artifact as a model of lm-evaluation-harness: `python -m fairway.harness --model fairway ...`.

Needs the package lm_eval (the extra `harness`), which nothing else imports. The arguments are those
of lm_eval's own command; `--model_args path=runs/demo` names an artifact or a run, and docs/api.md
has the other arguments, and the rules for costs and continuations of texts.
"""

import hashlib
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from tqdm import tqdm

from fairway.api import LanguageModel, load
from fairway.base.errors import UserError
from fairway.base.terminal import put, sentence
from fairway.config.overrides import override
from fairway.config.settings import Config, RuntimeConfig, unknown_name
from fairway.costing import Continuation, Coster, continuation
from fairway.data.pieces import encoded
from fairway.model.writing import Manner, Row, described, require_number, require_whole

# The default of lm_eval's models if a task does not set it.
MOST_TOKENS = 256
# Names of the same bound in the programs that lm_eval uses.
_BOUNDS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_WISHES = ("until", "do_sample", "temperature", "top_k", "top_p", *_BOUNDS)


@dataclass(frozen=True, slots=True)
class Wish:
    """The settings of a continuation: how tokens are drawn, how many, and the stop words."""

    manner: Manner
    most: int
    stops: tuple[bytes, ...]


@register_model("fairway")
class FairwayLM(LM):  # type: ignore[misc]
    """The three kinds of requests of the harness, computed with an artifact, many in one pass."""

    def __init__(
        self,
        path: str | int | Path = "",
        *,
        tokenizer: str | Path | None = None,
        device: str | None = None,
        dtype: str = "auto",
        matmul: str = "auto",
        attention: str = "auto",
        kernels: str = "auto",
        threads: int = 0,
        batch_size: int | str = "auto",
        max_batch_size: int | None = None,
        max_length: int | None = None,
        max_gen_toks: int = MOST_TOKENS,
        seed: int | None = None,
        **unknown: object,
    ) -> None:
        super().__init__()
        _refuse_unknown("model argument", unknown, _ARGUMENTS)
        if not path:
            raise UserError("there is no model; name an artifact or a run: --model_args path=PATH")
        # lm_eval parses digits as a number.
        name = str(path) if isinstance(path, int) else path
        _require_name("path", name)
        if tokenizer is not None:
            _require_name("tokenizer", tokenizer)
        runtime = {"device": _device(device), "dtype": str(dtype).removeprefix("torch.")}
        runtime |= {"matmul": matmul, "attention": attention, "kernels": kernels}
        self.model: LanguageModel = load(
            name, tokenizer=tokenizer, runtime=_runtime({**runtime, "threads": threads})
        )
        self._device = self.model.model.tok_emb.weight.device
        self.batch_size = _rows(batch_size, max_batch_size)
        longest = self.model.score_config.seq_len
        self.max_length = longest if max_length is None else max_length
        require_whole("max_length", self.max_length, 1, longest)
        require_whole("max_gen_toks", max_gen_toks, 0)
        self.max_gen_toks = max_gen_toks
        # lm_eval's own --seed sets the seed of torch before a model is built.
        self._seed = torch.initial_seed() if seed is None else seed
        require_whole("seed", self._seed, 0)
        self._coster = Coster(self.model, self.max_length, self.batch_size)

    @property
    def tokenizer_name(self) -> str:
        """Return an identifier of this tokenizer, for lm_eval's cache of requests."""
        return f"fairway-{self.model.tokenizer.digest}"

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Return '', since there is no chat template; UserError if one is requested."""
        return self.apply_chat_template([]) if chat_template else ""

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Raise UserError: an artifact was trained on plain text."""
        raise UserError("an artifact has no chat template; leave out --apply_chat_template")

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Return (nats, whether greedy decoding gives it) of each (context, continuation)."""
        asked = [self._asked(*request.args) for request in requests]
        return self._answers("loglikelihood", requests, self._costed(asked), disable_tqdm)

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Return the log-probability in nats of every byte of each text, its blanks included.

        A text of only blanks costs 0.0, like an empty one.
        """
        asked = [self._asked("", *map(_unless_blank, request.args)) for request in requests]
        answers = ((number, nats) for number, (nats, _) in self._costed(asked))
        return self._answers("loglikelihood_rolling", requests, answers, disable_tqdm)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return continuations, each up to the first of its stop words."""
        answers = self._written([request.args for request in requests])
        return self._answers("generate_until", requests, answers, disable_tqdm)

    def _asked(self, context: str, text: str) -> Continuation:
        _require_text("a context", context)
        _require_text("a continuation", text)
        return continuation(self.model.packer, context, text)

    def _costed(self, asked: list[Continuation]) -> Iterator[tuple[int, tuple[float, bool]]]:
        for number, cost in self._coster.costs(asked):
            yield number, (cost.nats, cost.greedy)

    def _written(self, asked: Sequence[tuple[str, Any]]) -> Iterator[tuple[int, str]]:
        """Yield the number and continuation of every request; equal settings run side by side."""
        alike: dict[Wish, list[tuple[int, Row]]] = {}
        seen: Counter[str] = Counter()
        for number, (context, options) in enumerate(asked):
            _require_text("a context", context)
            wish = self._wish(options)
            # A repeated request gets other draws, independent of the other requests.
            drawn = hashlib.blake2b(f"{self._seed} {seen[context]} ".encode(), digest_size=8)
            drawn.update(encoded(context, "a context"))
            seen[context] += 1
            seed = int.from_bytes(drawn.digest()) >> 1
            row = Row(self.model.packer, context, wish.most, seed, wish.stops)
            alike.setdefault(wish, []).append((number, row))
        count = self.batch_size or self.model.score_config.batch_windows
        for wish, rows in alike.items():
            rows.sort(key=lambda item: -len(item[1].prompt))
            for first in range(0, len(rows), count):
                part = rows[first : first + count]
                side_by_side = [row for _, row in part]
                for _ in self.model.writing(side_by_side, wish.manner, self.max_length):
                    pass
                yield from ((number, row.said()) for number, row in part)

    def _answers(
        self, kind: str, requests: Sequence[Any], answers: Iterator[tuple[int, Any]], quiet: bool
    ) -> list[Any]:
        """Return answers in the order of their requests, and store each in the cache at once."""
        found: dict[int, Any] = {}
        with tqdm(total=len(requests), disable=quiet, desc=f"Running {kind} requests") as bar:
            for number, answer in answers:
                found[number] = answer
                self.cache_hook.add_partial(kind, requests[number].args, answer)
                bar.update()
        return [found[number] for number in range(len(requests))]

    def _wish(self, options: Any) -> Wish:
        if not isinstance(options, dict):
            raise UserError(
                f"generation settings are {described(options)}; they must be names = values"
            )
        _refuse_unknown("generation setting", options, _WISHES)
        given = {name: value for name, value in options.items() if value is not None}
        bounds = {name: given[name] for name in _BOUNDS if name in given}
        if len(set(map(repr, bounds.values()))) > 1:
            raise UserError(f"{' and '.join(bounds)} name one bound and differ; leave one of them")
        most = next(iter(bounds.values()), self.max_gen_toks)
        require_whole(next(iter(bounds), "max_gen_toks"), most, 0)
        everything = self.model.tokenizer.vocab_size
        # In other programs 0 means that all tokens may be drawn.
        top_k = given["top_k"] if given.get("top_k", 0) != 0 else everything
        manner = Manner(_temperature(given), top_k, given.get("top_p", 1.0))
        return Wish(manner, most, tuple(_stops(given.get("until", []))))


_ARGUMENTS = ("path", *(FairwayLM.__init__.__kwdefaults__ or {}))


def _refuse_unknown(what: str, given: dict[str, Any], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            raise UserError(unknown_name(what, described(name).strip("'"), known))


def _unless_blank(text: Any) -> Any:
    """Return a text, or '' if it is blank."""
    return "" if isinstance(text, str) and not text.strip() else text


def _require_text(what: str, value: Any) -> None:
    if not isinstance(value, str):
        raise UserError(f"{what} is {described(value)}; it must be text")


def _require_name(what: str, value: Any) -> None:
    """Raise UserError unless a value can be the name of a file."""
    try:
        named = isinstance(value, str | Path) and b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        named = False
    if not named:
        raise UserError(f"{what} is {described(value)}; it must be the name of a file")


def _device(device: Any) -> str:
    """Return Fairway's name of a device that lm_eval names.

    Its command has the default cuda:0, so this means the first GPU if there is one.
    """
    name = "auto" if str(device) in ("None", "cuda:0") else str(device)
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(
            f"device is {described(device)}; it must be cpu or cuda; choose the GPU with "
            "CUDA_VISIBLE_DEVICES"
        )
    return name


def _runtime(values: dict[str, Any]) -> RuntimeConfig:
    settings = [f"runtime.{name}={value}" for name, value in values.items()]
    return override(Config(), settings).runtime


def _rows(batch_size: int | str, max_batch_size: int | None) -> int | None:
    """Return the most rows of a pass; None if the length decides."""
    if max_batch_size is not None:
        require_whole("max_batch_size", max_batch_size, 1)
    if batch_size == "auto":
        return max_batch_size
    if isinstance(batch_size, str) and batch_size.isdecimal():
        batch_size = int(batch_size)
    if isinstance(batch_size, str):
        raise UserError(
            f"batch_size is {described(batch_size)}; it must be a whole number, or auto"
        )
    require_whole("batch_size", batch_size, 1)
    return min(batch_size, max_batch_size or batch_size)


def _temperature(given: dict[str, Any]) -> float:
    """Return the temperature of lm_eval's settings for greedy or random decoding; 0 is greedy."""
    sampled = given.get("do_sample")
    if not isinstance(sampled, bool | None):
        raise UserError(f"do_sample is {described(sampled)}; it must be true or false")
    temperature = given.get("temperature", 1.0 if sampled else 0.0)
    require_number("temperature", temperature, 0, sys.float_info.max)
    return 0.0 if sampled is False else float(temperature)


def _stops(until: Any) -> Iterator[bytes]:
    """Yield stop words as UTF-8, without empty ones."""
    for stop in until if isinstance(until, list | tuple) else [until]:
        _require_text("until", stop)
        if stop:
            yield encoded(stop, "until")


def main() -> None:
    """Run lm_eval's command; bad input ends it with one sentence and exit code 2."""
    try:
        cli_evaluate()
    except UserError as error:
        put(sentence(f"fairway: {error}"), sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
