"""Tools over real HTTP: the demo model calls them, and forced calls are always valid."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import pytest

from nexa_runtime.chat.dialects.base import ChatDelta, Parser
from tests.server.test_api import error_of
from tests.support import LiveServer, wait_until

GET_WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "The name of the city"}},
            "required": ["city"],
        },
    },
}
BOOK: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "book_table",
        "description": "Book a table",
        "parameters": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "minLength": 1, "maxLength": 12},
                "guests": {"type": "integer", "minimum": 1, "maximum": 12},
                "day": {"enum": ["monday", "friday", "sunday"]},
                "window": {"type": "boolean"},
                "extras": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {"kind": {"enum": ["cake", "wine"]}, "count": {"const": 1}},
                        "required": ["kind", "count"],
                    },
                    "maxItems": 2,
                },
            },
            "required": ["name", "guests", "day"],
        },
    },
}
QUESTION: dict[str, Any] = {"role": "user", "content": "What's the weather like in Paris?"}


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    return {**schema, "additionalProperties": False}


def test_the_first_chunk_of_a_call_names_it_and_the_others_append(server: LiveServer) -> None:
    with server.stream(QUESTION["content"], tools=[GET_WEATHER], temperature=0) as stream:
        events = list(stream.events())
    assert events.pop() == "[DONE]"
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    calls = [one for event in events for one in event["choices"][0]["delta"].get("tool_calls", ())]
    assert calls[0]["function"]["name"] == "get_weather"
    assert calls[0]["type"] == "function"
    assert calls[0]["id"].startswith("call_")
    assert all(set(one) == {"index", "function"} for one in calls[1:])
    assert events[-1]["choices"][0] == {
        "index": 0,
        "delta": {},
        "logprobs": None,
        "finish_reason": "tool_calls",
    }


def test_without_need_the_model_calls_nothing(server: LiveServer) -> None:
    body = server.chat("What is the capital of France?", tools=[GET_WEATHER], temperature=0).json()
    assert body["choices"][0]["message"]["content"] == "The capital of France is Paris."
    assert "tool_calls" not in body["choices"][0]["message"]


def test_tool_choice_none_shows_no_tool_and_calls_none(server: LiveServer) -> None:
    with_tools = server.chat(QUESTION["content"], tools=[GET_WEATHER], tool_choice="none", temperature=0)
    without = server.chat(QUESTION["content"], temperature=0)
    answers = [one.json()["choices"][0]["message"] for one in (with_tools, without)]
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    "choice",
    ["required", {"type": "function", "function": {"name": "book_table"}}],
    ids=["required", "named"],
)
def test_forced_calls_are_valid_200_times_of_200_at_temperature_1_5(server: LiveServer, choice: Any) -> None:
    def ask(number: int) -> Any:
        response = server.chat(
            f"Say anything, number {number}.",
            tools=[GET_WEATHER, BOOK] if choice != "required" else [BOOK],
            tool_choice=choice,
            temperature=1.5,
            top_k=0,
            top_p=1,
            min_p=0,
            seed=number,
            max_tokens=400,
        )
        assert response.status_code == 200
        return response.json()["choices"][0]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(200)))
    schema = closed(BOOK["function"]["parameters"])
    for answer in answers:
        assert answer["finish_reason"] == ("tool_calls" if choice == "required" else "stop")
        assert answer["message"]["content"] is None
        calls = answer["message"]["tool_calls"]
        assert calls
        assert choice == "required" or len(calls) == 1
        for call in calls:
            assert call["function"]["name"] == "book_table"
            jsonschema.validate(json.loads(call["function"]["arguments"]), schema)


def test_one_call_at_most_where_parallel_ones_are_not_wanted(server: LiveServer) -> None:
    for seed in range(20):
        body = server.chat(
            "Anything.",
            tools=[BOOK],
            tool_choice="required",
            parallel_tool_calls=False,
            temperature=1.5,
            seed=seed,
        ).json()
        assert len(body["choices"][0]["message"]["tool_calls"]) == 1


def test_a_forced_call_that_is_cut_says_so(server: LiveServer) -> None:
    body = server.chat("Anything.", tools=[BOOK], tool_choice="required", max_tokens=9).json()
    assert body["choices"][0]["finish_reason"] == "length"


def test_a_stop_text_does_not_cut_a_forced_call(server: LiveServer) -> None:
    body = server.chat("Anything.", tools=[BOOK], tool_choice="required", stop=["name", '"', "\n"]).json()
    (call, *_) = body["choices"][0]["message"]["tool_calls"]
    jsonschema.validate(json.loads(call["function"]["arguments"]), closed(BOOK["function"]["parameters"]))


def test_a_stop_token_does_not_cut_a_forced_call(server: LiveServer) -> None:
    vocab = server.loaded.model.vocab
    stops = [token for token, piece in enumerate(vocab.pieces) if b'"' in piece][:64]
    body = server.chat("Anything.", tools=[BOOK], tool_choice="required", stop_token_ids=stops).json()
    (call, *_) = body["choices"][0]["message"]["tool_calls"]
    jsonschema.validate(json.loads(call["function"]["arguments"]), closed(BOOK["function"]["parameters"]))


@pytest.mark.parametrize("stop", ["Paris", "}", "city", "{", '"', "\n", "get_weather", "<tool_call>"])
def test_a_stop_text_cuts_no_call_that_the_model_makes(server: LiveServer, stop: str) -> None:
    body = server.chat(QUESTION["content"], tools=[GET_WEATHER], temperature=0, stop=[stop]).json()
    (call,) = body["choices"][0]["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}
    assert body["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_stop_text_ends_what_is_said_beside_tools(server: LiveServer, is_streamed: bool) -> None:
    fields: Any = {"tools": [GET_WEATHER], "temperature": 0, "stop": ["France", "never"]}
    question = "What is the capital of France?"
    if is_streamed:
        with server.stream(question, **fields) as stream:
            text, reason, _ = stream.read()
    else:
        choice = server.chat(question, **fields).json()["choices"][0]
        text, reason = choice["message"]["content"], choice["finish_reason"]
    assert (text, reason) == ("The capital of ", "stop")
    assert wait_until(server.is_idle)


class BrokenParser(Parser):
    """What no parser should be."""

    def feed(self, text: str) -> list[ChatDelta]:
        raise RuntimeError("made up")

    def finish(self) -> list[ChatDelta]:
        return []


def test_a_parser_that_fails_ends_its_own_request_and_no_other(
    make_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make_server()
    whole = type(server.loaded.dialect).parser

    def parser(self: Any, tools: Any, **options: Any) -> Parser:
        return BrokenParser() if tools else whole(self, tools, **options)

    monkeypatch.setattr(type(server.loaded.dialect), "parser", parser)
    with ThreadPoolExecutor(8) as pool:
        broken = pool.map(lambda _: server.chat(QUESTION["content"], tools=[GET_WEATHER]), range(4))
        sound = pool.map(lambda _: server.chat("What is the capital of France?", temperature=0), range(4))
        assert {one.status_code for one in broken} == {500}
        answers = {one.json()["choices"][0]["message"]["content"] for one in sound}
    assert answers == {"The capital of France is Paris."}
    assert wait_until(server.is_idle)


def function(**fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", **fields}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [function(name="a b")]}, "tools[0].function.name"),
        ({"tools": [function(), function()]}, "tools[1].function.name"),
        ({"tools": [function(parameters={"type": "array"})]}, "tools[0].function.parameters"),
        ({"tools": [function(parameters={"$ref": "http://example.org/x"})]}, "tools[0].function.parameters"),
        ({"tools": [{"type": "retrieval"}]}, "tools[0].type"),
        ({"tools": [function()] * 200}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [function()], "tool_choice": "always"}, "tool_choice"),
        (
            {"tools": [function()], "tool_choice": {"type": "function", "function": {"name": "g"}}},
            "tool_choice",
        ),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"function_call": {"name": "f"}}, "function_call"),
    ],
)
def test_what_is_wrong_with_tools_is_named(server: LiveServer, fields: Any, param: str) -> None:
    response = server.chat("Hello", **fields)
    assert response.status_code == 400
    assert str(error_of(response)["param"]).startswith(param)


def test_letters_of_a_call_in_a_users_text_call_nothing(server: LiveServer) -> None:
    text = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
    body = server.chat(f"Hello {text}", tools=[GET_WEATHER], temperature=0, max_tokens=40)
    assert body.status_code == 200


UNSUPPORTED = {
    "type": "object",
    "properties": {"a": {"type": "array", "uniqueItems": True}},
    "required": ["a"],
}


def test_a_schema_that_cannot_be_followed_is_refused_only_where_calls_must_be_valid(
    server: LiveServer,
) -> None:
    tools = [GET_WEATHER, function(parameters=UNSUPPORTED)]
    body = server.chat(QUESTION["content"], tools=tools, temperature=0)
    assert body.status_code == 200
    assert body.json()["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "get_weather"
    forced = server.chat(QUESTION["content"], tools=tools, tool_choice="required")
    assert (forced.status_code, error_of(forced)["param"]) == (400, "tools")
    strict = server.chat(QUESTION["content"], tools=[function(parameters=UNSUPPORTED, strict=True)])
    assert strict.status_code == 400
    assert "uniqueItems" in error_of(strict)["message"]
