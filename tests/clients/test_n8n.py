"""What n8n's nodes send, replayed: the chat model, the embeddings and the OpenAI node, with the base URL, the
key and the one header of its credential.

Source: ``LMChatOpenAi``, ``EmbeddingsOpenAi`` and ``vendors/OpenAi`` of n8n's nodes. The first two
are LangChain JS inside, which ``scripts/clients`` runs itself.
"""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from nexa_runtime.tenancy.keys import create_key
from tests.clients.cases import ANSWER, PERSON_QUESTION, QUESTION, WEATHER, WEATHER_ANSWER, WEATHER_QUESTION
from tests.support import EventStream, LiveServer

CHAT_MODEL: dict[str, Any] = {
    "model": "demo",
    "temperature": 0,
    "top_p": 1,
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "n": 1,
    "max_tokens": -1,
    "stream": False,
}
"""The chat model node; -1 is how it says that there is no cap."""
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather of a city",
        "parameters": {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "type": "object",
            "properties": {"city": {"type": "string", "description": "The name of the city"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
"""A tool of an agent, as zod writes its schema."""


def post(server: LiveServer, path: str, body: Any, **headers: str) -> Any:
    response = server.http.post(f"/v1{path}", json=body, headers={"authorization": "Bearer none", **headers})
    assert response.status_code == 200, response.text
    return response.json()


def test_the_list_of_models_tests_the_credential(server: LiveServer) -> None:
    headers = {"authorization": "Bearer none", "x-custom": "anything"}
    body = server.http.get("/v1/models", headers=headers).json()
    assert [model["id"] for model in body["data"]] == ["demo"]


@pytest.mark.parametrize("cap", ["max_tokens", "max_completion_tokens"])
def test_the_chat_model_without_a_cap(server: LiveServer, cap: str) -> None:
    messages = [{"role": "user", "content": QUESTION}]
    fields = {name: value for name, value in CHAT_MODEL.items() if name != "max_tokens"}
    body = post(server, "/chat/completions", {**fields, cap: -1, "messages": messages})
    assert body["choices"][0]["message"]["content"] == ANSWER
    assert body["choices"][0]["finish_reason"] == "stop"


def test_the_chat_model_streamed(server: LiveServer) -> None:
    body = {
        **CHAT_MODEL,
        "messages": [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    with server.http.stream("POST", "/v1/chat/completions", json=body) as response:
        assert "x-nexa-ignored" not in response.headers
        text, reason, events = EventStream(response).read()
    assert (text, reason) == (ANSWER, "stop")
    assert events[-2]["usage"]["total_tokens"] > 0


def test_an_agent_calls_its_tool(server: LiveServer) -> None:
    messages: list[dict[str, Any]] = [{"role": "user", "content": WEATHER_QUESTION}]
    fields = {**CHAT_MODEL, "tools": [TOOL], "tool_choice": "auto"}
    first = post(server, "/chat/completions", {**fields, "messages": messages})["choices"][0]
    assert first["finish_reason"] == "tool_calls"
    (call,) = first["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}
    messages += [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": WEATHER, "tool_call_id": call["id"], "name": "get_weather"},
    ]
    second = post(server, "/chat/completions", {**fields, "messages": messages})["choices"][0]
    assert second["message"]["content"] == WEATHER_ANSWER


def test_a_message_with_json_as_its_answer(server: LiveServer) -> None:
    body = {
        "model": "demo",
        "messages": [
            {"role": "system", "content": "You are a helpful assistant designed to output JSON."},
            {"role": "user", "content": PERSON_QUESTION},
        ],
        "tools": None,
        "response_format": {"type": "json_object"},
        "max_tokens": 100,
        "temperature": 0,
    }
    (choice,) = post(server, "/chat/completions", body)["choices"]
    assert isinstance(json.loads(choice["message"]["content"]), dict)


def test_embeddings(server: LiveServer) -> None:
    body = {"model": "demo", "input": ["Hello", "World"], "encoding_format": "float"}
    vectors = post(server, "/embeddings", body)["data"]
    assert len(vectors) == 2


def test_the_header_of_the_credential_says_which_tenant_it_is(make_server: Any, tmp_path: Path) -> None:
    path = tmp_path / "tenants.yaml"
    path.write_text(json.dumps({"tenants": {"acme": {"NEXA_MAX_OUTPUT_TOKENS": 3}}}))
    key = create_key("acme")
    server: LiveServer = make_server(NEXA_TENANTS_FILE=str(path), NEXA_API_KEY=key)
    body = {**CHAT_MODEL, "messages": [{"role": "user", "content": QUESTION}]}

    def send(**headers: str) -> httpx.Response:
        return server.http.post(
            "/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}", **headers}
        )

    answer = send(**{"X-Tenant-Id": "acme"})
    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] == 3
    assert send().json()["error"]["code"] == "invalid_tenant_id"


def test_the_openai_node_sends_responses(server: LiveServer) -> None:
    body: dict[str, Any] = {
        "model": "demo",
        "input": [{"role": "user", "content": [{"type": "input_text", "text": WEATHER_QUESTION}]}],
        "parallel_tool_calls": True,
        "store": True,
        "max_output_tokens": 64,
        "temperature": 0,
        "top_p": 1,
        "tools": [{"type": "function", "strict": False, **TOOL["function"]}],
        "background": False,
    }
    first = post(server, "/responses", body)
    calls = [item for item in first["output"] if item["type"] in ("function_call", "reasoning")]
    (call,) = calls
    body["input"] += [
        *calls,
        {"type": "function_call_output", "call_id": call["call_id"], "output": WEATHER},
    ]
    second = post(server, "/responses", body)
    (message,) = [item for item in second["output"] if item["type"] == "message"]
    assert message["content"][0]["text"] == WEATHER_ANSWER
    assert second["usage"]["input_tokens"] > 0


def test_the_openai_node_reads_json_of_a_schema(server: LiveServer) -> None:
    schema = {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}}
    parts = [{"type": "input_text", "text": PERSON_QUESTION}]
    body = {
        "model": "demo",
        "input": [{"role": "user", "content": parts}],
        "parallel_tool_calls": True,
        "store": True,
        "temperature": 0,
        "background": False,
        "text": {
            "verbosity": "medium",
            "format": {"type": "json_schema", "name": "person", "schema": schema},
        },
    }
    (message,) = post(server, "/responses", body)["output"]
    assert json.loads(message["content"][0]["text"]) == {"name": "Ana", "age": 30}
