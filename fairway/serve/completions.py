"""POST /v1/completions: continues prompts, as a whole or as a stream, in OpenAI's form."""

import asyncio
import codecs
import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Send

from fairway.api import LanguageModel
from fairway.data.spans import token_ends
from fairway.data.tokens import Tokenizer
from fairway.model.writing import BLANK, MAX_SEED, Row, before
from fairway.serve.asked import Asked, asked_of, body_of, model_of
from fairway.serve.errors import STOPPED, error_body, gone
from fairway.serve.models import Desk, Served
from fairway.serve.watching import GoneError, Watching

# A token, its place in the text, its log-probability, and the likeliest tokens with theirs.
Entry = tuple[int, int, float, list[tuple[int, float]]]


class Choice:
    """One continuation as it grows, and how much of it was sent."""

    def __init__(self, row: Row, prompt: str, heads: list[Entry], tokenizer: Tokenizer) -> None:
        self.row, self._tokenizer = row, tokenizer
        # The prompt and its tokens, which an echo sends before the first new token.
        self._prompt, self._heads = prompt, heads
        self._told, self._count, self._echoed = 0, 0, False

    def part(self, with_logprobs: bool) -> tuple[str, dict[str, Any] | None]:
        """Return the text that became certain since the last call, and its tokens."""
        text = self._certain()
        new, entries = text[self._told :], list(self._entries(text)) if with_logprobs else []
        if not self._echoed:
            new, entries = self._prompt + new, [*self._heads, *entries]
        self._told, self._echoed = len(text), True
        return new, _logprobs(self._tokenizer, entries) if with_logprobs else None

    def _certain(self) -> str:
        """Return the text without half characters, and without a possible start of a stop text."""
        row = self.row
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        text = decoder.decode(row.text, final=row.ended)
        if row.ended:
            return row.said()
        stops = [stop.decode() for stop in row.stops]
        text = before(text, stops)
        held = (
            size for stop in stops for size in range(len(stop) - 1, 0, -1)
            if text.endswith(stop[:size])
        )  # fmt: skip
        return text[: len(text) - max(held, default=0)]

    def _entries(self, text: str) -> Iterator[Entry]:
        """Yield the unsent tokens that begin inside a text."""
        while self._count < len(self.row.drawn):
            drawn = self.row.drawn[self._count]
            place = len(self.row.text[: drawn.start].decode(errors="ignore"))
            if place >= len(text):
                return
            # A blank at the prompt's end belongs to the first token.
            owed = not self._count and self._prompt.endswith(BLANK)
            self._count += 1
            offset = place + len(self._prompt) - owed
            yield drawn.token, offset, drawn.nats, list(drawn.likeliest)


def _logprobs(tokenizer: Tokenizer, entries: Sequence[Entry]) -> dict[str, Any]:
    return {
        "tokens": [token_text(tokenizer, token) for token, _, _, _ in entries],
        "token_logprobs": [nats for _, _, nats, _ in entries],
        "top_logprobs": [
            {token_text(tokenizer, token): nats for token, nats in likeliest}
            for _, _, _, likeliest in entries
        ],
        "text_offset": [offset for _, offset, _, _ in entries],
    }


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """Return the text of a token in OpenAI's form: `bytes:\\xf0` if it is not valid text alone."""
    if token == tokenizer.bos_id:
        return "<|endoftext|>"
    data = tokenizer.piece_bytes[token]
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


class Completion:
    """A request for completions that one model answers."""

    def __init__(self, asked: Asked, served: Served) -> None:
        self.asked, self.served = asked, served
        self.id, self.created = f"cmpl-{uuid.uuid4().hex}", int(time.time())

    def rows(self) -> list[tuple[str, Row]]:
        """Return every prompt with its row, `n` times each; UserError for half a character."""
        asked, language = self.asked, self.served.language
        prompts = [prompt for prompt in asked.prompts for _ in range(asked.n)]
        return [
            (prompt, Row(language.packer, prompt, asked.most, (asked.seed + number) % MAX_SEED,
                         asked.stops, asked.logprobs))
            for number, prompt in enumerate(prompts)
        ]  # fmt: skip

    def choices(self, rows: list[tuple[str, Row]], watching: Watching) -> list[Choice]:
        """Return the choices; for an echo with logprobs, prompts are scored."""
        asked, language = self.asked, self.served.language
        heads: dict[str, list[Entry]] = {}
        if asked.echo and asked.logprobs is not None:
            for prompt in dict.fromkeys(asked.prompts):
                # A blank at the end is not read before a continuation: the first token has it.
                read = prompt.removesuffix(BLANK) if asked.most else prompt
                heads[prompt] = prompt_entries(language, read, asked.logprobs, watching)
        return [
            Choice(row, prompt if asked.echo else "", heads.get(prompt, []), language.tokenizer)
            for prompt, row in rows
        ]

    def response(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """Return an answer, or a part of one."""
        head = {"id": self.id, "object": "text_completion", "created": self.created}
        names = {"model": self.served.name, "system_fingerprint": self.served.fingerprint}
        return {**head, **names, "choices": choices, **more}

    def choice(self, number: int, choice: Choice) -> dict[str, Any]:
        """Return the new part of a choice, in OpenAI's form."""
        text, logprobs = choice.part(self.asked.logprobs is not None)
        row = choice.row
        reason = ("stop" if row.stopped else "length") if row.ended else None
        return {"text": text, "index": number, "logprobs": logprobs, "finish_reason": reason}

    def usage(self, rows: list[tuple[str, Row]]) -> dict[str, int]:
        """Return how many tokens were read and written. BOS before a prompt counts as one."""
        read = sum(len(row.prompt) for _, row in rows[:: self.asked.n])
        wrote = sum(row.count for _, row in rows)
        total = read + wrote
        return {"prompt_tokens": read, "completion_tokens": wrote, "total_tokens": total}


def prompt_entries(
    language: LanguageModel, prompt: str, alternatives: int, watching: Watching
) -> list[Entry]:
    """Return the tokens of a prompt with their costs under the windows of a score."""
    if not prompt:
        return []
    costs = language.costs(prompt, alternatives=alternatives, witness=watching)
    starts = [0, *token_ends(costs.ids, language.tokenizer).tolist()[:-1]]
    data, ids, nats = prompt.encode(), costs.ids[1:].tolist(), (-costs.nats).tolist()
    offsets = [len(data[:start].decode(errors="ignore")) for start in starts]
    likeliest = [
        list(zip(tokens, (-row).tolist(), strict=True))
        for tokens, row in zip(costs.likeliest.tolist(), costs.likeliest_nats, strict=True)
    ] or [[] for _ in ids]
    return list(zip(ids, offsets, nats, likeliest, strict=True))


async def completions(request: Request) -> Response:
    """Answer POST /v1/completions."""
    desk: Desk = request.app.state.desk
    body = await body_of(request)
    served = desk.find(model_of(body))
    completion = Completion(asked_of(body, served.artifact.tokenizer.vocab_size), served)
    rows = await desk.run(completion.rows)
    if completion.asked.stream:
        parts = _ahead(_streamed(desk, completion, rows))
        # The first part is computed first, so that a refusal is still an ordinary answer.
        first = await anext(parts, "")
        if not first:
            return gone(desk.ending.is_set())
        return _Events(_followed(first, parts), media_type="text/event-stream")
    watching = Watching(desk.ending)
    async with desk.turn(), watching.over(request):
        try:
            choices = await desk.run(completion.choices, rows, watching)
            async for _ in _steps(desk, completion, choices):
                if watching.gone:
                    return gone(desk.ending.is_set())
        except GoneError:
            return gone(desk.ending.is_set())
    whole = [completion.choice(number, choice) for number, choice in enumerate(choices)]
    return JSONResponse(completion.response(whole, usage=completion.usage(rows)))


class _Events(StreamingResponse):
    """Events; when the client leaves, their source is closed at once, and others may continue."""

    async def stream_response(self, send: Send) -> None:
        """Send all events."""
        source = self.body_iterator
        assert isinstance(source, AsyncGenerator)
        try:
            await super().stream_response(send)
        finally:
            await source.aclose()


async def _steps(desk: Desk, completion: Completion, choices: list[Choice]) -> AsyncIterator[None]:
    """Add a token to all choices per step, each on the thread of the models."""
    rows = [choice.row for choice in choices]
    steps = completion.served.language.writing(rows, completion.asked.manner)
    while await desk.run(next, steps, True) is None:
        yield


async def _streamed(
    desk: Desk, completion: Completion, rows: list[tuple[str, Row]]
) -> AsyncGenerator[str, None]:
    """Yield new text as events, as soon as it is certain.

    If the server ends before the text does, the last event is an error instead of [DONE]; if it
    ends before the first event, there is none.
    """
    watching, ended, began = Watching(desk.ending), set[int](), False
    async with desk.turn():
        try:
            choices = await desk.run(completion.choices, rows, watching)
            if new := _news(completion, choices, ended):
                began = True
                yield _event(completion.response(new))
            async for _ in _steps(desk, completion, choices):
                if watching.gone:
                    raise GoneError
                if new := _news(completion, choices, ended):
                    began = True
                    yield _event(completion.response(new))
        except GoneError:
            if began:
                yield _event(error_body(*STOPPED))
            return
        finally:
            watching.left = True
    if completion.asked.usage:
        yield _event(completion.response([], usage=completion.usage(rows)))
    yield "data: [DONE]\n\n"


async def _ahead(parts: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    """Yield all parts of a source, which continues while they are read.

    So a client that reads slowly or stops does not block the models for others. The waiting parts
    have the same bounds as an answer in one piece.
    """
    waiting = asyncio.Queue[str | None]()

    async def fill() -> None:
        try:
            async for part in parts:
                waiting.put_nowait(part)
        finally:
            waiting.put_nowait(None)

    filling = asyncio.create_task(fill())
    try:
        while (part := await waiting.get()) is not None:
            yield part
        await filling
    finally:
        filling.cancel()
        await asyncio.gather(filling, return_exceptions=True)
        await parts.aclose()


def _news(completion: Completion, choices: list[Choice], ended: set[int]) -> list[dict[str, Any]]:
    """Return the choices with something new, and record which of them have ended."""
    open_ = [(n, completion.choice(n, c)) for n, c in enumerate(choices) if n not in ended]
    ended.update(number for number, choice in open_ if choice["finish_reason"])
    return [choice for _, choice in open_ if choice["text"] or choice["finish_reason"]]


async def _followed(first: str, rest: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    try:
        yield first
        async for part in rest:
            yield part
    finally:
        await rest.aclose()


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"
