import json
import math
from typing import Any

import pytest
from starlette.testclient import TestClient

from fairway.serve.asked import MAX_BODY_BYTES, MAX_PROMPT_BYTES, MAX_ROWS, MAX_TOKENS
from fairway.serve.models import MOST_WAITING, Desk

URL = "/v1/completions"


def post(client: TestClient, **fields: Any) -> dict[str, Any]:
    answer = client.post(URL, json=fields)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def streamed(client: TestClient, **fields: Any) -> list[dict[str, Any]]:
    answer = client.post(URL, json={**fields, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = answer.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]


def text_of(events: list[dict[str, Any]], index: int = 0) -> str:
    choices = [choice for event in events for choice in event["choices"]]
    return "".join(choice["text"] for choice in choices if choice["index"] == index)


def test_models_are_named(client: TestClient) -> None:
    found = client.get("/v1/models").json()
    assert [one["id"] for one in found["data"]] == ["smoke", "smoke:raw", "smoke:average"]
    assert client.get("/v1/models/smoke:raw").json()["id"] == "smoke:raw"
    assert client.get("/v1/models/none").json()["error"]["code"] == "model_not_found"


def test_a_completion_is_what_the_model_generates(client: TestClient, desk: Desk) -> None:
    options: dict[str, Any] = {"max_tokens": 12, "temperature": 0.7, "top_p": 0.9, "seed": 5}
    wanted = desk.first.language.generate("The model", top_k=300, **options)
    found = post(client, prompt="The model", model="smoke", **options)
    (choice,) = found["choices"]
    assert choice["text"] == wanted and choice["index"] == 0 and choice["logprobs"] is None
    assert (found["object"], found["model"]) == ("text_completion", "smoke")
    assert found["usage"]["completion_tokens"] <= 12
    assert found["usage"]["total_tokens"] == sum(
        found["usage"][f"{name}_tokens"] for name in ("prompt", "completion")
    )
    # Another seed, another text; no seed, another text each time; no temperature, always one.
    assert post(client, prompt="The", seed=1, max_tokens=30) != post(client, prompt="The", seed=2)
    texts = {post(client, prompt="The", max_tokens=30)["choices"][0]["text"] for _ in range(4)}
    assert len(texts) > 1
    greedy = {post(client, prompt="The", temperature=0)["choices"][0]["text"] for _ in range(2)}
    assert len(greedy) == 1


@pytest.mark.parametrize("prompt", ["", " ", "The \U0001f389", "a" * 2000, "\x00\r\n"])
def test_any_text_may_be_a_prompt(client: TestClient, prompt: str) -> None:
    (choice,) = post(client, prompt=prompt, max_tokens=3, echo=True, seed=1)["choices"]
    assert choice["text"].startswith(prompt) and choice["finish_reason"] == "length"


def test_stages_of_a_run_are_models_of_their_own(client: TestClient, desk: Desk) -> None:
    raw = desk.find("smoke:raw").language
    wanted = raw.generate("The", max_tokens=8, temperature=0, top_k=300)
    found = post(client, prompt="The", model="smoke:raw", max_tokens=8, temperature=0)
    assert found["choices"][0]["text"] == wanted
    prints = {one.fingerprint for one in desk.served.values()}
    assert len(prints) == 3 and found["system_fingerprint"] in prints


def test_a_stream_is_the_whole_text_in_parts(client: TestClient) -> None:
    options: dict[str, Any] = {"prompt": "The", "max_tokens": 20, "seed": 3, "n": 2, "logprobs": 1}
    whole = post(client, **options)
    events = streamed(client, **options, stream_options={"include_usage": True}, echo=True)
    assert events[-1]["choices"] == [] and events[-1]["usage"] == whole["usage"]
    for choice in whole["choices"]:
        assert text_of(events, choice["index"]) == "The" + choice["text"]
        parts = [part for event in events for part in event["choices"]]
        tokens = [
            token
            for part in parts if part["index"] == choice["index"]
            for token in part["logprobs"]["tokens"]
        ]  # fmt: skip
        assert "".join(choice["logprobs"]["tokens"]) == "".join(tokens)[3:]
    assert len(events) > 10


def test_a_stop_word_is_never_told_even_in_part(client: TestClient) -> None:
    whole = post(client, prompt="The", max_tokens=40, seed=3)["choices"][0]["text"]
    for stop in (whole[5:8], whole[10], whole[7:20]):
        options: dict[str, Any] = {"prompt": "The", "max_tokens": 40, "seed": 3}
        options["stop"] = ["never there", stop]
        (choice,) = post(client, **options)["choices"]
        assert choice["text"] == whole.partition(stop)[0] and choice["finish_reason"] == "stop"
        events = streamed(client, **options)
        assert text_of(events) == choice["text"]
        assert events[-1]["choices"][0]["finish_reason"] == "stop"
    assert post(client, **{**options, "stop": ""})["choices"][0]["text"] == whole


def test_log_probabilities_of_an_echo_are_the_score(client: TestClient, desk: Desk) -> None:
    text = "The model learns \U0001f389 small tokens."
    found = post(client, prompt=text, max_tokens=0, echo=True, logprobs=3)["choices"][0]
    assert found["text"] == text and found["finish_reason"] == "length"
    told = found["logprobs"]
    score = desk.first.language.score(text)
    assert -math.fsum(told["token_logprobs"]) == pytest.approx(score.nats)
    assert len(told["tokens"]) == len(told["top_logprobs"]) == score.tokens
    assert all(len(top) == 3 for top in told["top_logprobs"])
    assert told["text_offset"] == sorted(told["text_offset"]) and told["text_offset"][0] == 0
    assert "bytes:\\xf0" in told["tokens"]


def test_log_probabilities_of_what_is_written_are_the_models(
    client: TestClient, desk: Desk
) -> None:
    options: dict[str, Any] = {"max_tokens": 6, "seed": 4, "temperature": 1.7, "logprobs": 0}
    found = post(client, prompt="The ", echo=True, **options)["choices"][0]
    told = found["logprobs"]
    whole = desk.first.language.costs(found["text"])
    pieces = desk.first.language.tokenizer.piece_bytes
    # The text is read again as it was written here, so its tokens cost what was told of them.
    assert told["tokens"] == [pieces[token].decode() for token in whole.ids[1:].tolist()]
    assert told["token_logprobs"] == pytest.approx((-whole.nats).tolist(), abs=1e-3)
    offsets = told["text_offset"]
    for token, start, end in zip(told["tokens"], offsets, [*offsets[1:], None], strict=True):
        assert found["text"][start:end] in (token, token.removeprefix(" ")) or "bytes" in token


def test_several_prompts_and_choices_go_side_by_side(client: TestClient) -> None:
    both = post(client, prompt=["The", "A token"], n=2, max_tokens=5, seed=9)["choices"]
    assert [choice["index"] for choice in both] == [0, 1, 2, 3]
    alone = post(client, prompt="The", max_tokens=5, seed=9)["choices"][0]
    assert both[0]["text"] == alone["text"]


LONG = "a" * (MAX_PROMPT_BYTES + 1)


@pytest.mark.parametrize(
    ("fields", "param", "told"),
    [
        ({"prompt": 3}, "prompt", "prompt is 3; it must be a text"),
        ({"prompt": []}, "prompt", "must be a text or a list of texts"),
        ({"prompt": [1, 2]}, "prompt", "token ids are not accepted"),
        ({"prompt": LONG}, "prompt", "at most 131,072 are accepted"),
        ({"prompt": "\ud800"}, "prompt", "half a character"),
        ({"prompt": ["a"] * (MAX_ROWS + 1)}, "prompt", "17 prompts are more than 16"),
        ({"prompt": ["a"] * 4, "n": 5}, "n", "more than 16 completions"),
        ({"max_tokens": MAX_TOKENS + 1}, "max_tokens", "from 0 to 4,096"),
        ({"max_tokens": -1}, "max_tokens", "max_tokens is -1"),
        ({"max_tokens": True}, "max_tokens", "max_tokens is True"),
        ({"max_tokens": 1.5}, "max_tokens", "whole number"),
        ({"temperature": "hot"}, "temperature", "temperature is 'hot'"),
        ({"temperature": -0.1}, "temperature", "from 0 to"),
        ({"top_p": 1.01}, "top_p", "from 0 to 1"),
        ({"top_k": 0}, "top_k", "top_k is 0"),
        ({"seed": -1}, "seed", "seed is -1"),
        ({"seed": 2**63}, "seed", "whole number from 0"),
        ({"n": 0}, "n", "n is 0"),
        ({"stop": 4}, "stop", "stop is 4"),
        ({"stop": ["a"] * 17}, "stop", "at most 16 texts"),
        ({"stop": "x" * 1001}, "stop", "at most 1,000"),
        ({"stream": "yes"}, "stream", "true or false"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "needs stream"),
        ({"logprobs": 21}, "logprobs", "from 0 to 20"),
        ({"echo": 1}, "echo", "true or false"),
        ({"presence_penalty": 0.5}, "presence_penalty", "not supported"),
        ({"best_of": 3}, "best_of", "not supported"),
        ({"suffix": "x"}, "suffix", "not supported"),
        ({"messages": []}, "messages", "is not a field"),
        ({"model": 7}, "model", "must be a name"),
    ],
)
def test_a_wrong_field_is_named_in_one_sentence(
    client: TestClient, fields: dict[str, Any], param: str, told: str
) -> None:
    answer = client.post(
        URL, content=json.dumps(fields), headers={"content-type": "application/json"}
    )
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["type"] == "invalid_request_error"
    assert error["param"] == param and told in error["message"], error


def test_fields_that_ask_for_nothing_are_taken(client: TestClient) -> None:
    neutral = {"best_of": 1, "frequency_penalty": 0, "logit_bias": {}, "suffix": None, "user": "a"}
    assert post(client, prompt="The", max_tokens=1, **neutral)["choices"]


def test_requests_of_other_kinds_are_refused(client: TestClient) -> None:
    def refused(status: int, told: str, **how: Any) -> None:
        how.setdefault("headers", {"content-type": "application/json"})
        answer = client.request(how.pop("method", "POST"), how.pop("url", URL), **how)
        assert answer.status_code == status and told in answer.json()["error"]["message"]

    refused(400, "the body is not JSON", content=b"{")
    refused(400, "the body is not JSON", content=b"\xff\xfe")
    refused(400, "the body is not JSON", content=b"[" * 100_000)
    refused(400, "must be an object", content=b"[1]")
    refused(400, "Content-Type", content=b"{}", headers={"content-type": "text/plain"})
    refused(413, "1,048,576 bytes", content=b" " * (MAX_BODY_BYTES + 1))
    refused(404, "there is no model 'gpt-4'; there are smoke", json={"model": "gpt-4"})
    refused(404, "nothing at /v1/chat/completions", json={}, url="/v1/chat/completions")
    refused(405, "another method: POST", method="GET")
    refused(400, "it has the number NaN, which is not finite", content=b'{"temperature": NaN}')
    refused(400, "it has the key 'n' twice", content=b'{"n": 1, "n": 2}')
    refused(400, "a number of 5,000 digits", content=b'{"seed": ' + b"9" * 5000 + b"}")


def test_a_name_turned_to_this_machine_is_not_served(client: TestClient) -> None:
    own = ("localhost:8000", "LocalHost", "localhost.:80", "[::1]:80")
    for host, status in (*((name, 200) for name in own), ("evil.example", 400)):
        answer = client.get("/v1/models", headers={"host": host})
        assert answer.status_code == status, host
    assert "evil.example" in answer.json()["error"]["message"]


def test_too_many_waiting_requests_are_turned_away(client: TestClient, desk: Desk) -> None:
    desk._waiting = MOST_WAITING
    try:
        answer = client.post(URL, json={"prompt": "The"})
    finally:
        desk._waiting = 0
    assert answer.status_code == 503 and answer.json()["error"]["code"] == "busy"
