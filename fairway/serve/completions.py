"""POST /v1/completions: prompts continued, whole or as they are written, in OpenAI's form."""

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
from fairway.serve.models import Desk, Served
from fairway.serve.watching import CLIENT_GONE, GoneError, Watching

# A token with its place in the text, its log-probability, and the likeliest ones with theirs.
Entry = tuple[int, int, float, list[tuple[int, float]]]


class Choice:
    """One continuation as it grows, and what of it has been told."""

    def __init__(self, row: Row, prompt: str, heads: list[Entry], tokenizer: Tokenizer) -> None:
        self.row, self._tokenizer = row, tokenizer
        # What an echo tells before the first token is drawn.
        self._prompt, self._heads = prompt, heads
        self._told, self._count, self._echoed = 0, 0, False

    def part(self, with_logprobs: bool) -> tuple[str, dict[str, Any] | None]:
        """Return the text that is certain since the last time, and its tokens."""
        text = self._certain()
        new, entries = text[self._told :], list(self._entries(text)) if with_logprobs else []
        if not self._echoed:
            new, entries = self._prompt + new, [*self._heads, *entries]
        self._told, self._echoed = len(text), True
        return new, _logprobs(self._tokenizer, entries) if with_logprobs else None

    def _certain(self) -> str:
        """Return the text but for half characters, and for what may become a stop word."""
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
        """Yield the tokens that begin in a text and have not been told yet."""
        while self._count < len(self.row.drawn):
            drawn = self.row.drawn[self._count]
            place = len(self.row.text[: drawn.start].decode(errors="ignore"))
            if place >= len(text):
                return
            # The blank at a prompt's end is the first token's.
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
    """Return the text of a token in OpenAI's form: `bytes:\\xf0` if it is no text by itself."""
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
        """Return the choices; with an echo and logprobs prompts are scored for it."""
        asked, language = self.asked, self.served.language
        heads: dict[str, list[Entry]] = {}
        if asked.echo and asked.logprobs is not None:
            for prompt in dict.fromkeys(asked.prompts):
                # A blank at the end is not read before a continuation: its first token has it.
                read = prompt.removesuffix(BLANK) if asked.most else prompt
                heads[prompt] = prompt_entries(language, read, asked.logprobs, watching)
        return [
            Choice(row, prompt if asked.echo else "", heads.get(prompt, []), language.tokenizer)
            for prompt, row in rows
        ]

    def told(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """Return an answer, or a part of one."""
        head = {"id": self.id, "object": "text_completion", "created": self.created}
        names = {"model": self.served.name, "system_fingerprint": self.served.fingerprint}
        return {**head, **names, "choices": choices, **more}

    def choice(self, number: int, choice: Choice) -> dict[str, Any]:
        """Return what is new of a choice, in OpenAI's form."""
        text, logprobs = choice.part(self.asked.logprobs is not None)
        row = choice.row
        reason = ("stop" if row.stopped else "length") if row.ended else None
        return {"text": text, "index": number, "logprobs": logprobs, "finish_reason": reason}

    def usage(self, rows: list[tuple[str, Row]]) -> dict[str, int]:
        """Return how many tokens were read and written. BOS before a prompt is one."""
        read = sum(len(row.prompt) for _, row in rows[:: self.asked.n])
        wrote = sum(row.count for _, row in rows)
        total = read + wrote
        return {"prompt_tokens": read, "completion_tokens": wrote, "total_tokens": total}


def prompt_entries(
    language: LanguageModel, prompt: str, alternatives: int, watching: Watching
) -> list[Entry]:
    """Return the tokens of a prompt with what they cost under the windows of a score."""
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
        parts = _streamed(desk, completion, rows)
        # The first part first: what is refused then is still an answer of its own.
        first = await anext(parts, "")
        return _Events(_followed(first, parts), media_type="text/event-stream")
    watching = Watching(desk.ending)
    async with desk.turn(), watching.over(request):
        try:
            choices = await desk.run(completion.choices, rows, watching)
            async for _ in _steps(desk, completion, choices):
                if watching.gone:
                    return Response(status_code=CLIENT_GONE)
        except GoneError:
            return Response(status_code=CLIENT_GONE)
    whole = [completion.choice(number, choice) for number, choice in enumerate(choices)]
    return JSONResponse(completion.told(whole, usage=completion.usage(rows)))


class _Events(StreamingResponse):
    """Events; when the client goes away their source is closed at once, and others may go on."""

    async def stream_response(self, send: Send) -> None:
        """Send all events."""
        source = self.body_iterator
        assert isinstance(source, AsyncGenerator)
        try:
            await super().stream_response(send)
        finally:
            await source.aclose()


async def _steps(desk: Desk, completion: Completion, choices: list[Choice]) -> AsyncIterator[None]:
    """Let all choices grow by a token per step, each on the thread of the models."""
    rows = [choice.row for choice in choices]
    steps = completion.served.language.writing(rows, completion.asked.manner)
    while await desk.run(next, steps, True) is None:
        yield


async def _streamed(
    desk: Desk, completion: Completion, rows: list[tuple[str, Row]]
) -> AsyncGenerator[str, None]:
    """Yield what is new, as events, as soon as it is certain."""
    watching, ended = Watching(desk.ending), set[int]()
    async with desk.turn():
        try:
            choices = await desk.run(completion.choices, rows, watching)
            if new := _news(completion, choices, ended):
                yield _event(completion.told(new))
            async for _ in _steps(desk, completion, choices):
                if watching.gone:
                    return
                if new := _news(completion, choices, ended):
                    yield _event(completion.told(new))
        except GoneError:
            return
        finally:
            watching.left = True
    if completion.asked.usage:
        yield _event(completion.told([], usage=completion.usage(rows)))
    yield "data: [DONE]\n\n"


def _news(completion: Completion, choices: list[Choice], ended: set[int]) -> list[dict[str, Any]]:
    """Return the choices that have something new to tell, and note which of them have ended."""
    open_ = [(n, completion.choice(n, c)) for n, c in enumerate(choices) if n not in ended]
    ended.update(number for number, told in open_ if told["finish_reason"])
    return [told for _, told in open_ if told["text"] or told["finish_reason"]]


async def _followed(first: str, rest: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    try:
        yield first
        async for part in rest:
            yield part
    finally:
        await rest.aclose()


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"
