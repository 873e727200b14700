"""Checks the fields of a request: size, names and bounds.

A known but unsupported field is refused, unless its value changes nothing.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from fairway.base.errors import UserError
from fairway.base.files import parse_json
from fairway.data.pieces import encoded
from fairway.model.writing import MAX_SEED, Manner, described, require_number, require_whole
from fairway.serve.errors import RequestError

MAX_BODY_BYTES = 1 << 20
MAX_PROMPT_BYTES = 1 << 17
MAX_TOKENS = 4096
# The most continuations of one request; they are written together.
MAX_ROWS = 16
MAX_STOPS, MAX_STOP_BYTES = 16, 1000
MAX_LOGPROBS = 20
# The longest text whose tokens are shown: some thousand cells with their tips.
MAX_TEXT_BYTES = 20_000
_MAX_TEMPERATURE = 100.0

# Values of unsupported fields that change nothing, besides null.
_NEUTRAL: dict[str, Sequence[Any]] = {
    "best_of": (1,), "frequency_penalty": (0,), "presence_penalty": (0,), "logit_bias": ({},),
    "suffix": ("",),
}  # fmt: skip
_FIELDS = (
    *("model", "prompt", "max_tokens", "temperature", "top_p", "top_k", "seed", "n", "stop"),
    *("stream", "stream_options", "logprobs", "echo", "user", *_NEUTRAL),
)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request for completions: each of `prompts` is continued `n` times."""

    model: str | None
    prompts: tuple[str, ...]
    most: int
    manner: Manner
    seed: int
    n: int
    stops: tuple[bytes, ...]
    stream: bool
    usage: bool
    logprobs: int | None
    echo: bool


async def body_of(request: Request) -> dict[str, Any]:
    """Return the JSON object of a request; RequestError if it is too large, or not an object."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # With any other kind, a page of another site could make a browser send this.
        raise RequestError("the body must be JSON, with the header Content-Type: application/json")
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BODY_BYTES:
            bound = f"the body has more than {MAX_BODY_BYTES:,} bytes; send a shorter text"
            raise RequestError(bound, 413)
        parts.append(part)
    try:
        value = parse_json(b"".join(parts))
    except ValueError as error:
        raise RequestError(f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise RequestError(
            f"the body is {described(value)}; it must be an object with named fields"
        )
    return value


def asked_of(body: dict[str, Any], vocab_size: int) -> Asked:
    """Return a request for completions; RequestError names the wrong field."""
    fields = {name: value for name, value in body.items() if value is not None}
    _require_known(fields)
    prompts = _prompts(fields.get("prompt", ""))
    n = _whole(fields, "n", 1, 1, MAX_ROWS)
    if len(prompts) * n > MAX_ROWS:
        raise RequestError(
            f"{len(prompts)} prompts times n = {n} are more than {MAX_ROWS} completions", param="n"
        )
    stream = _flag(fields, "stream")
    seed = fields.get("seed")
    return Asked(
        model=model_of(fields),
        prompts=prompts,
        most=_whole(fields, "max_tokens", 16, 0, MAX_TOKENS),
        manner=_manner(fields, vocab_size),
        # Without a requested seed, the text differs each time.
        seed=secrets.randbelow(MAX_SEED // 2) if seed is None else _whole(fields, "seed", 0, 0),
        n=n,
        stops=_stops(fields.get("stop", [])),
        stream=stream,
        usage=_usage(fields, stream),
        logprobs=_whole(fields, "logprobs", 0, 0, MAX_LOGPROBS) if "logprobs" in fields else None,
        echo=_flag(fields, "echo"),
    )


def text_of(fields: dict[str, Any]) -> tuple[str, str | None, str | None]:
    """Return the text whose costs are requested, the model, and a second model or None."""
    for name in fields:
        if name not in ("text", "model", "beside"):
            raise RequestError(f"'{name[:60]}' is not a field of this request", param=name[:60])
    text, beside = fields.get("text", ""), fields.get("beside")
    if not isinstance(text, str):
        raise RequestError(f"text is {described(text)}; it must be a text", param="text")
    if not text:
        raise RequestError("the text is empty; give at least one character", param="text")
    _require_size(text, "text", MAX_TEXT_BYTES)
    if beside is not None and not isinstance(beside, str):
        raise RequestError(f"beside is {described(beside)}; it must be a name", param="beside")
    return text, model_of(fields), beside


def model_of(fields: dict[str, Any]) -> str | None:
    """Return the name of the requested model, or None."""
    name = fields.get("model")
    if name is not None and not isinstance(name, str):
        raise RequestError(f"model is {described(name)}; it must be a name", param="model")
    return name


def _require_known(fields: dict[str, Any]) -> None:
    for name, value in fields.items():
        if name not in _FIELDS:
            raise RequestError(f"'{name[:60]}' is not a field of this request", param=name[:60])
        if name in _NEUTRAL and value not in _NEUTRAL[name]:
            raise RequestError(f"{name} is not supported; leave it out", param=name)


def _prompts(value: Any) -> tuple[str, ...]:
    prompts = value if isinstance(value, list) else [value]
    if not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        words = "it must be a text or a list of texts; token ids are not accepted"
        raise RequestError(f"prompt is {described(value)}; {words}", param="prompt")
    if len(prompts) > MAX_ROWS:
        raise RequestError(f"{len(prompts)} prompts are more than {MAX_ROWS}", param="prompt")
    for prompt in prompts:
        _require_size(prompt, "prompt", MAX_PROMPT_BYTES)
    return tuple(prompts)


def _require_size(text: str, name: str, most_bytes: int) -> None:
    try:
        size = len(encoded(text, f"the {name}"))
    except UserError as error:
        raise RequestError(str(error), param=name) from None
    if size > most_bytes:
        raise RequestError(
            f"the {name} has {size:,} bytes; at most {most_bytes:,} are accepted", param=name,
            code="context_length_exceeded",
        )  # fmt: skip


def _whole(fields: dict[str, Any], name: str, usual: int, lo: int, hi: int = MAX_SEED) -> int:
    value = fields.get(name, usual)
    try:
        require_whole(name, value, lo, hi)
    except UserError as error:
        raise RequestError(str(error), param=name) from None
    return int(value)


def _flag(fields: dict[str, Any], name: str) -> bool:
    value = fields.get(name, False)
    if not isinstance(value, bool):
        raise RequestError(f"{name} is {described(value)}; it must be true or false", param=name)
    return value


def _manner(fields: dict[str, Any], vocab_size: int) -> Manner:
    numbers = {}
    for name, usual, most in (("temperature", 1.0, _MAX_TEMPERATURE), ("top_p", 1.0, 1.0)):
        numbers[name] = fields.get(name, usual)
        try:
            require_number(name, numbers[name], 0, most)
        except UserError as error:
            raise RequestError(str(error), param=name) from None
    top_k = _whole(fields, "top_k", vocab_size, 1)
    return Manner(numbers["temperature"], top_k, numbers["top_p"])


def _stops(value: Any) -> tuple[bytes, ...]:
    stops = value if isinstance(value, list) else [value]
    if not all(isinstance(stop, str) for stop in stops) or len(stops) > MAX_STOPS:
        words = f"it must be a text or a list of at most {MAX_STOPS} texts"
        raise RequestError(f"stop is {described(value)}; {words}", param="stop")
    for stop in stops:
        _require_size(stop, "stop", MAX_STOP_BYTES)
    # An empty stop text would stop nothing.
    return tuple(stop.encode() for stop in stops if stop)


def _usage(fields: dict[str, Any], stream: bool) -> bool:
    options = fields.get("stream_options", {})
    if (
        not isinstance(options, dict)
        or (options and not stream)
        or options.keys() - {"include_usage"}
    ):
        words = "it may be an object with include_usage, and needs stream"
        raise RequestError(
            f"stream_options is {described(options)}; {words}", param="stream_options"
        )
    return _flag(options, "include_usage")
