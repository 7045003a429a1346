"""What Open WebUI sends through an OpenAI connection, replayed: chats, titles, tools, embeddings, and what it
looks for on a server that might be something else.

Source: Open WebUI's ``routers/openai.py``, ``routers/tasks.py`` and ``utils/payload.py``.
"""

import json
from typing import Any

import pytest

from tests.clients.cases import ANSWER, QUESTION, WEATHER, WEATHER_ANSWER, WEATHER_QUESTION
from tests.server.test_tools import GET_WEATHER
from tests.support import EventStream, LiveServer

HEADERS = {
    "authorization": "Bearer none",
    "x-openwebui-user-name": "Jos%C3%A9",
    "x-openwebui-user-id": "3f0f",
    "x-openwebui-user-email": "jose@example.org",
    "x-openwebui-user-role": "user",
    "x-openwebui-chat-id": "7c1e",
}


def stream(server: LiveServer, messages: Any, **fields: Any) -> tuple[list[Any], str]:
    """The events of a chat, and what was ignored."""
    body = {
        "stream": True, "model": "demo", "messages": messages, "temperature": 0,
        "stream_options": {"include_usage": True}, **fields,
    }  # fmt: skip
    with server.http.stream("POST", "/v1/chat/completions", json=body, headers=HEADERS) as response:
        assert response.status_code == 200, response.read()
        events = list(EventStream(response).events())
    assert events.pop() == "[DONE]"
    return events, response.headers.get("x-nexa-ignored", "")


def text_of(events: list[Any]) -> str:
    return "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"])


def test_a_chat_ends_with_its_usage(server: LiveServer) -> None:
    events, ignored = stream(server, [{"role": "user", "content": QUESTION}])
    assert text_of(events) == ANSWER
    assert events[-1]["usage"]["prompt_tokens"] > 0
    assert ignored == ""


def test_parameters_of_a_chat_and_those_made_up_by_its_user(server: LiveServer) -> None:
    messages = [
        {"role": "system", "content": "You are helpful."},
        {"role": "user", "content": [{"type": "text", "text": "Hello!"}]},
        {"role": "assistant", "content": "Hello! How can I help you?", "reasoning_content": "A greeting."},
        {"role": "user", "content": QUESTION},
    ]
    events, ignored = stream(
        server,
        messages,
        top_p=0.9,
        min_p=0.0,
        seed=0,
        stop=["<|never|>"],
        max_tokens=128,
        frequency_penalty=0,
        presence_penalty=0,
        repeat_penalty=1.1,
        logit_bias={},
        reasoning_effort="medium",
        reasoning={"effort": "medium", "summary": "auto"},
        num_ctx=2048,
        response_format=None,
    )
    assert text_of(events) == ANSWER
    assert ignored == "reasoning, num_ctx"


@pytest.mark.parametrize("cap", ["max_tokens", "max_completion_tokens"])
def test_a_title(server: LiveServer, cap: str) -> None:
    body = {
        "model": "demo",
        "messages": [{"role": "user", "content": f"### Task:\nGenerate a title.\n{QUESTION}"}],
        "stream": False,
        cap: 1000,
    }
    answer = server.http.post("/v1/chat/completions", json=body, headers=HEADERS).json()
    assert isinstance(answer["choices"][0]["message"]["content"], str)


def test_native_tool_calls_put_together_from_their_deltas(server: LiveServer) -> None:
    messages: list[dict[str, Any]] = [{"role": "user", "content": WEATHER_QUESTION}]
    events, _ = stream(server, messages, tools=[GET_WEATHER])
    calls: dict[int, dict[str, Any]] = {}
    for event in events:
        for choice in event["choices"]:
            for delta in choice["delta"].get("tool_calls", ()):
                if delta["index"] not in calls:
                    calls[delta["index"]] = delta
                else:
                    function = calls[delta["index"]]["function"]
                    function["arguments"] += delta["function"]["arguments"]
    assert json.loads(calls[0]["function"]["arguments"]) == {"city": "Paris"}
    messages += [
        {"role": "assistant", "content": "", "tool_calls": list(calls.values())},
        {"role": "tool", "tool_call_id": calls[0]["id"], "content": WEATHER},
    ]
    events, _ = stream(server, messages, tools=[GET_WEATHER])
    assert text_of(events) == WEATHER_ANSWER


def test_a_picture_is_refused_with_a_sentence(server: LiveServer) -> None:
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
    ]
    body = {"model": "demo", "stream": True, "messages": [{"role": "user", "content": parts}]}
    response = server.http.post("/v1/chat/completions", json=body, headers=HEADERS)
    assert response.status_code == 400
    assert "messages[0].content[1].type" in response.json()["error"]["message"]


def test_embeddings_of_a_batch(server: LiveServer) -> None:
    body = {"input": ["Hello", "World"], "model": "demo"}
    response = server.http.post("/v1/embeddings", json=body, headers=HEADERS)
    assert [len(one["embedding"]) for one in response.json()["data"]] == [
        server.loaded.model.embedding_size
    ] * 2


def test_what_it_looks_for_elsewhere_has_an_answer_in_json(server: LiveServer) -> None:
    assert server.http.get("/v1/models", headers=HEADERS).json()["data"][0]["id"] == "demo"
    for path in ("/api/version", "/api/tags", "/api/ps", "/v1/api/version", "/v1/audio/models"):
        response = server.http.get(path, headers=HEADERS)
        assert response.status_code in (200, 404), path
        assert isinstance(response.json(), dict)
