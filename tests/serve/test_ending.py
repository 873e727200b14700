"""What a client is told that asks for the wrong thing, or asks while the server ends."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from fairway.serve import completions
from fairway.serve.models import Desk


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "The", "max_tokens": 3}),
        ("/v1/completions", {"prompt": "The", "max_tokens": 3, "stream": True}),
        ("/costs", {"text": "The"}),
    ],
)
def test_a_server_that_ends_says_so(
    client: TestClient, desk: Desk, path: str, body: dict[str, object]
) -> None:
    body = {**body, "model": desk.first.name}
    desk.ending.set()
    try:
        answer = client.post(path, json=body)
    finally:
        desk.ending.clear()
    assert answer.status_code == 503
    assert answer.json()["error"]["message"].startswith("the server has been stopped")
    assert client.post(path, json=body).status_code == 200


def test_a_stream_that_the_server_ends_says_so(
    client: TestClient, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last event says that the text is not whole."""
    steps = completions._steps

    async def ending(*given: Any) -> AsyncIterator[None]:
        count = 0
        async for each in steps(*given):
            count += 1
            if count == 6:
                desk.ending.set()
            yield each

    monkeypatch.setattr(completions, "_steps", ending)
    body = {"model": desk.first.name, "prompt": "The", "max_tokens": 40, "stream": True}
    try:
        events = client.post("/v1/completions", json=body).text.strip().split("\n\n")
    finally:
        desk.ending.clear()
    *texts, last = (json.loads(event.removeprefix("data: ")) for event in events)
    assert texts and all(text["choices"] for text in texts)
    assert last["error"]["message"].startswith("the server has been stopped")


def test_a_chat_is_sent_to_completions(client: TestClient) -> None:
    answer = client.post("/v1/chat/completions", json={"messages": []})
    assert answer.status_code == 404
    assert "this model continues texts: use /v1/completions" in answer.json()["error"]["message"]
