"""Whatever a client sends becomes a sentence, or what everything further down can rely on."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nexa_runtime.chat.template import CHATML, ChatTemplate
from nexa_runtime.errors import RequestError
from nexa_runtime.llama import SAMPLER_NAMES, SamplingParams
from nexa_runtime.server.errors import is_anthropic
from nexa_runtime.server.protocol.parameters import CHAT, Support
from nexa_runtime.server.protocol.sampling import SamplingFields
from tests.server.bodies import chat
from tests.support import LiveServer, wait_until

values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**64),
        st.floats(allow_nan=False),
        st.text(max_size=8),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
roles = st.sampled_from(["system", "developer", "user", "assistant", "tool", "king"])
calls = st.fixed_dictionaries(
    {
        "id": st.text(max_size=4),
        "function": st.fixed_dictionaries({"name": st.text(), "arguments": st.text()}),
    },
    optional={"type": st.just("function") | values},
)
parts = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "refusal", "image_url"])},
    optional={"text": st.text(), "refusal": values},
)
wire_messages = st.fixed_dictionaries(
    {"role": roles, "content": st.text(max_size=9) | st.none() | st.lists(parts, max_size=2) | values},
    optional={
        "tool_calls": st.lists(calls, max_size=2) | values,
        "tool_call_id": st.text(max_size=4),
        "reasoning_content": st.text(max_size=4) | values,
        "refusal": st.text(max_size=4),
        "name": values,
    },
)
wire_tools = st.fixed_dictionaries(
    {
        "type": st.just("function") | values,
        "function": st.fixed_dictionaries(
            {"name": st.sampled_from(["f", "g", "a b"])},
            optional={"parameters": st.dictionaries(st.text(max_size=4), values) | values, "strict": values},
        )
        | values,
    }
)
choices = st.sampled_from(["auto", "none", "required", {"type": "function", "function": {"name": "f"}}])
formats = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "json_object", "json_schema"])},
    optional={
        "json_schema": st.fixed_dictionaries({}, optional={"schema": values, "strict": values}) | values
    },
)
numbers = st.integers(-2, 20) | st.floats(-1, 3) | values
bodies = st.fixed_dictionaries(
    {"messages": st.lists(wire_messages, min_size=1, max_size=4)},
    optional={
        **dict.fromkeys(sorted(set(CHAT) - {"messages"}), values),
        **dict.fromkeys(sorted(SamplingFields.model_fields), numbers),
        "tools": st.lists(wire_tools, max_size=3) | values,
        "tool_choice": choices | values,
        "response_format": formats | values,
        "samplers": st.lists(st.sampled_from(sorted(SAMPLER_NAMES)), max_size=4) | values,
        "n": numbers,
        "logprobs": st.booleans(),
        "continue_final_message": st.booleans(),
        "chat_template_kwargs": st.dictionaries(st.sampled_from(["thinking", "messages", "x"]), values),
    },
)
few = st.sets(st.sampled_from(sorted(CHAT)), max_size=6)
TEMPLATE = ChatTemplate(
    "{{ tools | tojson }}{% for m in messages %}{{ m.content }}{{ m.tool_calls }}{% endfor %}",
    control_texts=["<end>", "f"],
)


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(body=bodies, kept=few)
def test_any_chat_is_refused_in_a_sentence_or_can_be_relied_on(body: dict[str, Any], kept: set[str]) -> None:
    body = {name: value for name, value in body.items() if name in kept or name == "messages"}
    try:
        conversation, options = chat(**body)
        hash(SamplingParams(**options.sampling))
        for template in (TEMPLATE, ChatTemplate(CHATML)):
            template.render(conversation)
    except RequestError as error:
        is_a_sentence = bool(error.param) and ("\n" not in error.message or "template" in error.message)
    else:
        is_a_sentence = True
        assert 1 <= options.num_choices <= 16
        assert options.grammar is None or len(options.grammar.text.encode()) <= 128 * 1024
        assert len({tool.name for tool in conversation.tools}) == len(conversation.tools)
        assert conversation.tools or not conversation.tool_choice.is_forced
    assert is_a_sentence


# The same over a socket: bodies that are good, with some of their values replaced by what is not.

Path = tuple[str | int, ...]

HI_THERE = {"role": "user", "content": "Hi"}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
FUNCTION = {"name": "f", "description": "Does it", "parameters": SCHEMA, "strict": False}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
TALK = [
    {"role": "system", "content": [{"type": "text", "text": "Be brief."}], "name": "s"},
    {"role": "user", "content": "Hi"},
    {
        "role": "assistant",
        "content": None,
        "refusal": "No",
        "reasoning_content": "Hm",
        "reasoning": "Hm",
        "tool_calls": [CALL],
    },
    {"role": "tool", "tool_call_id": "c", "content": "1"},
    HI_THERE,
]
SAMPLED: dict[str, Any] = {
    "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "typical_p": 0.9, "top_n_sigma": 1.0,
    "xtc_probability": 0.1, "xtc_threshold": 0.1, "dynatemp_range": 0.1, "dynatemp_exponent": 1.0,
    "dry_multiplier": 0.8, "dry_base": 1.75, "dry_allowed_length": 2, "dry_penalty_last_n": 64,
    "dry_sequence_breakers": ["\n"], "mirostat": 0, "mirostat_tau": 5.0, "mirostat_eta": 0.1,
    "repeat_penalty": 1.1, "repeat_last_n": 64, "presence_penalty": 0.1, "frequency_penalty": 0.1,
    "logit_bias": {"5": 1.0}, "min_tokens": 1, "samplers": ["top_k", "temperature"], "seed": 1,
}  # fmt: skip
FORM = {
    "type": "json_schema",
    "json_schema": {"name": "n", "description": "d", "schema": SCHEMA, "strict": True},
}
GOOD: list[dict[str, Any]] = [
    {
        "messages": TALK,
        "tools": [{"type": "function", "function": FUNCTION}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "parallel_tool_calls": True,
        "reasoning_effort": "low",
        "reasoning_budget_tokens": 2,
        "thinking_budget_tokens": 2,
        "chat_template_kwargs": {"enable_thinking": True, "date_string": "today"},
    },
    {
        "messages": [HI_THERE],
        **SAMPLED,
        "model": "demo",
        "n": 2,
        "max_tokens": 4,
        "max_completion_tokens": 4,
        "stop": ["x"],
        "stop_token_ids": [7],
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        "timings": True,
        "return_tokens_as_token_ids": True,
        "lora": [],
        "logprobs": True,
        "top_logprobs": 2,
    },
    {
        "messages": [HI_THERE, {"role": "assistant", "content": "Hel"}],
        "continue_final_message": True,
        "add_generation_prompt": False,
        **dict.fromkeys([name for name, support in CHAT.items() if support is not Support.HONOURED]),
    },
    {"messages": [HI_THERE], "response_format": FORM},
    {"messages": [HI_THERE], "response_format": {"type": "json_object", "schema": SCHEMA}},
    {"messages": [HI_THERE], "json_schema": SCHEMA},
    {"messages": [HI_THERE], "grammar": 'start: "a" | "b"'},
    {"messages": [HI_THERE], "regex": "[ab]+"},
    {"messages": [HI_THERE], "guided_choice": ["a", "b"]},
]
ITEMS = [
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
    {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "Hm"}], "content": None},
    {"type": "function_call", "id": "f", "call_id": "c", "name": "f", "arguments": '{"a": 1}'},
    {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "1"}]},
    HI_THERE,
]
BLOCKS = [
    {"role": "user", "content": [{"type": "text", "text": "Hi", "cache_control": None}]},
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "Hm", "signature": "s"},
            {"type": "redacted_thinking", "data": "x"},
            {"type": "tool_use", "id": "c", "name": "f", "input": {"a": 1}},
        ],
    },
    {
        "role": "user",
        "content": [
            {
                "type": "tool_result",
                "tool_use_id": "c",
                "content": [{"type": "text", "text": "1"}],
                "is_error": True,
            }
        ],
    },
]
FLAT = {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}
OTHERS: list[tuple[str, dict[str, Any]]] = [
    (
        "/v1/responses",
        {
            "input": ITEMS,
            "instructions": "Be brief.",
            "tools": [{"type": "function", **FUNCTION}],
            "tool_choice": {"type": "function", "name": "f"},
            "reasoning": {"effort": "low", "summary": "auto", "context": "auto", "mode": "standard"},
            "metadata": {"a": "b"},
            "stream": True,
        },
    ),
    (
        "/v1/responses",
        {
            "input": "Hi",
            "max_output_tokens": 4,
            "text": {"format": FLAT, "verbosity": "medium"},
            "include": ["message.output_text.logprobs"],
            "top_logprobs": 1,
            "store": True,
            "background": False,
            "previous_response_id": "",
            "user": "me",
        },
    ),
    (
        "/v1/messages",
        {
            "messages": BLOCKS,
            "system": [{"type": "text", "text": "Be brief."}],
            "tools": [{"name": "f", "description": "Does it", "input_schema": SCHEMA}],
            "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
            "thinking": {"type": "enabled", "budget_tokens": 2, "display": "summarized"},
            "stream": True,
        },
    ),
    (
        "/v1/messages",
        {
            "messages": [HI_THERE],
            "max_tokens": 4,
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 5,
            "stop_sequences": ["x"],
            "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": SCHEMA}},
        },
    ),
    ("/v1/rerank", {"query": "a", "documents": ["b", {"text": "c"}], "top_n": 1, "return_documents": True}),
    ("/tokenize", {"content": "Hi", "add_special": True, "parse_special": True, "with_pieces": True}),
    ("/detokenize", {"tokens": [1, 2], "model": "demo"}),
]
"""The same for other endpoints; no model of the server ranks, so that the good body is refused, too."""
EXTREMES = [
    "null", "true", "0", "-1", "1.5", "1e308", "1e999", "-1e-999", str(10**40), str(-(2**63)), str(2**64),
    "NaN", "-Infinity", '"NaN"', '""', '"\\ud800"', '"\\u0000"', '"' + "é" * 70_000 + '"', "[]", "{}",
    "[null]", "[[]]", "[{}]", '{"": null}', "[" * 500 + "]" * 500, '{"a":' * 500 + "1" + "}" * 500,
    "[" * 5000 + "]" * 5000, f"[{','.join(['0'] * 40_000)}]", f"[{','.join(['{}'] * 3000)}]",
]  # fmt: skip
"""JSON, or nearly so, in place of a value."""


def places(value: object, path: Path = ()) -> Iterator[Path]:
    """Where the values of a body are, outer ones too."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield (*path, key)
        yield from places(one, (*path, key))


def changed(value: object, changes: Mapping[Path, str], path: Path = ()) -> str:
    """The JSON of a body, with other JSON at some places."""
    if path in changes:
        return changes[path]
    if isinstance(value, dict):
        fields = (f"{json.dumps(key)}:{changed(one, changes, (*path, key))}" for key, one in value.items())
        return f"{{{','.join(fields)}}}"
    if isinstance(value, list):
        items = (changed(one, changes, (*path, index)) for index, one in enumerate(value))
        return f"[{','.join(items)}]"
    return json.dumps(value)


def test_the_good_bodies_have_every_field() -> None:
    assert {name for body in GOOD for name in body} == set(CHAT)


ALL = [*(("/v1/chat/completions", body) for body in GOOD), *OTHERS]


@pytest.mark.parametrize(("path", "body"), ALL)
def test_the_good_bodies_are_good(bounded: LiveServer, path: str, body: dict[str, Any]) -> None:
    response = bounded.http.post(path, json=body)
    assert response.status_code == 200 or "model_kind_mismatch" in response.text, response.text


@pytest.mark.parametrize(("path", "body"), ALL)
def test_no_value_anywhere_in_a_body_breaks_the_server(
    bounded: LiveServer, path: str, body: dict[str, Any]
) -> None:
    where = list(places(body))
    changes = st.dictionaries(st.sampled_from(where), st.sampled_from(EXTREMES), min_size=1, max_size=3)

    @settings(max_examples=3 * len(where), deadline=None, suppress_health_check=list(HealthCheck))
    @given(changes=changes)
    def ask(changes: dict[Path, str]) -> None:
        response = bounded.http.post(path, content=changed(body, changes).encode())
        if response.status_code == 200:
            assert "internal_error" not in response.text
        else:
            assert_refused(response)

    ask()
    assert bounded.chat("Hi").status_code == 200
    assert wait_until(bounded.is_idle)
    assert bounded.has_clean_books()


def assert_refused(response: httpx.Response) -> None:
    """In one sentence, in the path's shape, and as the client's fault."""
    assert 400 <= response.status_code < 500
    assert response.headers["content-type"] == "application/json"
    if is_anthropic(response.request.url.path):
        body = response.json()
        assert (body["type"], set(body)) == ("error", {"type", "error", "request_id"})
        assert body["error"]["type"] in ("invalid_request_error", "not_found_error")
        assert body["error"]["message"].endswith(".")
        return
    ((name, error),) = response.json().items()
    assert (name, set(error)) == ("error", {"message", "type", "param", "code"})
    assert error["type"] == "invalid_request_error"
    assert error["code"] in (
        "invalid_request",
        "unsupported_parameter",
        "model_not_found",
        "context_length_exceeded",
        "model_kind_mismatch",
    )
    assert error["message"].endswith(".")
    assert isinstance(error["param"], str | None)
