"""What a client is told that asks for the wrong thing, or asks while the server ends."""

import pytest
from starlette.testclient import TestClient

from fairway.serve.models import Desk


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/completions", {"prompt": "The", "max_tokens": 3}), ("/costs", {"text": "The"})],
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


def test_a_chat_is_sent_to_completions(client: TestClient) -> None:
    answer = client.post("/v1/chat/completions", json={"messages": []})
    assert answer.status_code == 404
    assert "this model continues texts: use /v1/completions" in answer.json()["error"]["message"]
