"""The wire types: what a body becomes. No server; real values in and out."""

import json
from typing import Any

import orjson
import pytest
from pydantic import ValidationError

from nexa_runtime.chat.grammar import GrammarKind, GrammarSource
from nexa_runtime.chat.messages import Conversation, Message, Role, Tool, ToolCall, ToolChoice, ToolMode
from nexa_runtime.chat.schema import MAX_DEPTH
from nexa_runtime.errors import InvalidRequestError, UnsupportedParameterError
from nexa_runtime.llama import SamplingParams
from nexa_runtime.server.protocol.anthropic import MessagesRequest
from nexa_runtime.server.protocol.chat import ChatRequest
from nexa_runtime.server.protocol.parameters import CHAT, COMPLETION, Support
from nexa_runtime.server.protocol.rerank import RerankRequest
from nexa_runtime.server.protocol.responses import ResponsesRequest
from nexa_runtime.server.protocol.wire import WireModel, json_text, parse, unknown_fields
from nexa_runtime.serving.generation_service import GenerationOptions
from tests.server.bodies import FORMAT, HI, SCHEMA, chat, completion, tool


def test_what_a_client_does_not_say_is_not_said() -> None:
    conversation, options = chat()
    assert conversation == Conversation((Message(Role.USER, "hi"),))
    assert options == completion() == GenerationOptions()


SAMPLING: dict[str, Any] = {
    "temperature": 0, "top_p": 0.5, "top_k": -1, "min_p": 0.1, "typical_p": 1, "top_n_sigma": -1.0,
    "xtc_probability": 1, "xtc_threshold": 0.1, "dynatemp_range": 0.5, "dynatemp_exponent": 1.5,
    "dry_multiplier": 0.8, "dry_base": 1.75, "dry_allowed_length": 2, "dry_penalty_last_n": -1,
    "mirostat": 2, "mirostat_tau": 5, "mirostat_eta": 0.1, "repeat_penalty": 1.1, "presence_penalty": -2,
    "frequency_penalty": 2, "min_tokens": 3, "seed": -5,
}  # fmt: skip


def test_sampling_fields_are_named_as_the_sampler_names_them() -> None:
    others = {
        "repeat_last_n": -1,
        "dry_sequence_breakers": ["\n", "é"],
        "samplers": ["top_k", "typ_p", "temperature"],
        "logit_bias": {"5": -100, "7": 0.5},
    }
    expected = SAMPLING | {
        "penalty_last_n": -1,
        "dry_sequence_breakers": ("\n", "é"),
        "samplers": ("top_k", "typ_p", "temperature"),
        "logit_bias": ((5, -100), (7, 0.5)),
    }
    _, options = chat(**SAMPLING, **others)
    assert dict(options.sampling) == expected
    assert dict(completion(**SAMPLING, **others).sampling) == expected
    assert SamplingParams(**options.sampling).dry_sequence_breakers == ("\n", "é")


def test_options_that_both_endpoints_have() -> None:
    fields: dict[str, Any] = {
        "model": "m", "max_tokens": 9, "n": 3, "stop": ["a", ""], "stop_token_ids": [0, 7], "ignore_eos": True
    }  # fmt: skip
    expected = GenerationOptions(
        model="m", max_tokens=9, num_choices=3, stops=("a",), stop_token_ids=(0, 7), ignore_eos=True
    )
    assert chat(**fields)[1] == completion(**fields) == expected
    assert chat(max_tokens=9, max_completion_tokens=4)[1].max_tokens == 4
    assert chat(max_tokens=-1)[1].max_tokens is None


def test_completion_options() -> None:
    options = completion(best_of=4, n=2, echo=True, suffix=" end", stream=False)
    assert (options.best_of, options.num_choices, options.echo, options.suffix) == (4, 2, True, " end")
    assert completion(best_of=2, n=2, stream=True).best_of == 2
    assert completion(suffix="", echo=False, logprobs=False) == GenerationOptions()


def test_log_probabilities() -> None:
    assert chat(logprobs=True)[1].sampling == {"num_logprobs": 0}
    assert chat(logprobs=True, top_logprobs=20)[1].sampling == {"num_logprobs": 20}
    assert chat(logprobs=False, top_logprobs=0)[1].sampling == {}
    assert completion(logprobs=0).sampling == {"num_logprobs": 0}
    assert completion(logprobs=20).sampling == {"num_logprobs": 20}


@pytest.mark.parametrize(
    ("fields", "kind", "text", "param", "is_strict"),
    [
        ({"response_format": {"type": "json_object"}}, "JSON_OBJECT", None, "response_format", False),
        (
            {"response_format": {"type": "json_object", "schema": SCHEMA}},
            "JSON_SCHEMA",
            SCHEMA,
            "response_format.schema",
            False,
        ),
        ({"response_format": FORMAT}, "JSON_SCHEMA", SCHEMA, "response_format.json_schema.schema", False),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}, "strict": True}}},
            "JSON_SCHEMA",
            {},
            "response_format.json_schema.schema",
            True,
        ),
        ({"json_schema": SCHEMA}, "JSON_SCHEMA", SCHEMA, "json_schema", False),
        ({"guided_choice": ["yes", "né"]}, "CHOICE", ["yes", "né"], "guided_choice", False),
    ],
)
def test_constraints_of_json(
    fields: dict[str, Any], kind: str, text: object, param: str, is_strict: bool
) -> None:
    for options in (chat(**fields)[1], completion(**fields)):
        source = options.grammar
        assert source is not None
        assert (source.kind, source.param, source.is_strict) == (GrammarKind[kind], param, is_strict)
        assert source.text == "" if text is None else json.loads(source.text) == text


def test_constraints_of_text() -> None:
    assert chat(grammar="root ::= x")[1].grammar == GrammarSource(
        GrammarKind.GRAMMAR, "root ::= x", "grammar"
    )
    assert chat(regex="a+")[1].grammar == GrammarSource(GrammarKind.REGEX, "a+", "regex")
    for fields in ({"grammar": ""}, {"response_format": {"type": "text"}}, {"response_format": None}):
        assert chat(**fields)[1].grammar is None


def test_tools() -> None:
    conversation, _ = chat(
        tools=[
            tool(description="The time.", parameters=SCHEMA, strict=True),
            tool("ping", parameters=None),
            tool("pong", parameters={"properties": {}}),
        ],
        tool_choice={"type": "function", "function": {"name": "ping"}},
        parallel_tool_calls=False,
    )
    assert conversation.tools == (
        Tool("get_time", "The time.", SCHEMA, is_strict=True),
        Tool("ping"),
        Tool("pong", None, {"type": "object", "properties": {}}),
    )
    assert conversation.tool_choice == ToolChoice(ToolMode.NAMED, "ping")
    assert not conversation.is_parallel


@pytest.mark.parametrize(
    ("value", "mode"),
    [(None, "AUTO"), ("auto", "AUTO"), ("none", "NONE"), ("required", "REQUIRED")],
)
def test_tool_choices(value: str | None, mode: str) -> None:
    assert chat(tools=[tool()], tool_choice=value)[0].tool_choice == ToolChoice(ToolMode[mode])
    if value != "required":
        assert chat(tool_choice=value, tools=[])[0].tools == ()


def test_a_constraint_and_tools_that_are_not_called() -> None:
    conversation, options = chat(tools=[tool()], tool_choice="none", response_format=FORMAT)
    assert conversation.tools
    assert options.grammar is not None


def test_earlier_turns() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{]"}}
    messages = [
        {"role": "developer", "content": "Be brief.", "name": "boss"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm"},
        {"role": "tool", "tool_call_id": "c1", "content": "14:05"},
        {"role": "assistant", "content": None, "refusal": "No.", "reasoning": "well"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "Never."}], "tool_calls": []},
        {"role": "assistant", "content": ""},
    ]
    assert chat(messages=messages)[0].messages == (
        Message(Role.SYSTEM, "Be brief.", name="boss"),
        Message(Role.USER, "ab"),
        Message(Role.ASSISTANT, None, tool_calls=(ToolCall("c1", "f", "{]"),), reasoning="hm"),
        Message(Role.TOOL, "14:05", tool_call_id="c1"),
        Message(Role.ASSISTANT, "No.", reasoning="well"),
        Message(Role.ASSISTANT, "Never."),
        Message(Role.ASSISTANT, ""),
    )


def test_reasoning() -> None:
    off = {"reasoning_effort": "none", "enable_thinking": False, "thinking": False}
    high = {"reasoning_effort": "high", "enable_thinking": True, "thinking": True}
    assert chat(reasoning_effort="none")[0].template_options == off
    assert chat(reasoning_effort="high")[0].template_options == high
    named = {"enable_thinking": False, "date_string": "1 May", "thinking": None}
    assert chat(chat_template_kwargs=named)[0].template_options == {
        "enable_thinking": False,
        "date_string": "1 May",
    }
    both = chat(reasoning_effort="high", chat_template_kwargs={"reasoning_effort": "max"})[0]
    assert both.template_options == high | {"reasoning_effort": "max"}
    for name in ("reasoning_budget_tokens", "thinking_budget_tokens"):
        assert chat(**{name: 0})[0].reasoning_budget == 0
        assert chat(**{name: -1})[0].reasoning_budget is None
    assert (
        chat(reasoning_budget_tokens=1, thinking_budget_tokens=2)[0].reasoning_budget
        == chat(reasoning_budget_tokens=1)[0].reasoning_budget
        == 1
    )


def test_continuing_the_last_message() -> None:
    messages = [*HI, {"role": "assistant", "content": "It is"}]
    assert chat(messages=messages, continue_final_message=True)[0].continues
    assert chat(messages=messages, continue_final_message=True, add_generation_prompt=False)[0].continues
    assert not chat(messages=messages, add_generation_prompt=True)[0].continues
    assert not chat(messages=messages)[0].continues


@pytest.mark.parametrize(
    "fields",
    [
        {"functions": []}, {"function_call": "auto"}, {"modalities": ["text"]}, {"verbosity": "medium"},
        {"prediction": {}}, {"store": 5},
    ],
)  # fmt: skip
def test_what_asks_for_nothing_changes_nothing(fields: dict[str, Any]) -> None:
    assert chat(**fields) == chat()


def test_what_nobody_reads_is_named() -> None:
    body = {
        "messages": [{"role": "user", "content": "hi", "function_call": {}}],
        "tools": [{"type": "function", "function": {"name": "f", "mood": 1}}],
        "response_format": {"type": "json_schema", "json_schema": {"schema": {"mood": 1}, "mood": 1}},
    }
    assert unknown_fields(parse(ChatRequest, body)) == [
        "response_format.json_schema.mood",
        "messages[0].function_call",
        "tools[0].function.mood",
    ]


def nested(depth: int) -> Any:
    value: Any = 1
    for level in range(depth):
        value = {"a": value} if level % 2 else [0, value]
    return value


def test_a_part_that_is_kept_as_text_has_a_size_and_a_depth() -> None:
    text = json_text(nested(MAX_DEPTH), max_bytes=10_000, param="p")
    assert orjson.loads(text) == nested(MAX_DEPTH)
    for depth in (MAX_DEPTH + 1, 300):  # orjson writes nothing that is nested as deep as the second
        with pytest.raises(InvalidRequestError, match="p: must not be nested more than"):
            json_text(nested(depth), max_bytes=10_000, param="p")
    with pytest.raises(InvalidRequestError, match="p: must have at most 1000 bytes"):
        json_text([1] * 1000, max_bytes=1000, param="p")


@pytest.mark.parametrize(
    ("cls", "body", "param"),
    [
        (ChatRequest, {"messages": [*HI, *[{"role": 7}] * 999]}, "messages[1].role"),
        (ChatRequest, {"messages": [{"role": "user", "content": [7] * 999}]}, "messages[0].content[0]"),
        (MessagesRequest, {"messages": [*HI, *[{"role": 7}] * 999]}, "messages[1].role"),
        (ResponsesRequest, {"input": [*HI, *[{"role": 7}] * 999]}, "input[1].role"),
        (RerankRequest, {"query": "x", "documents": ["a", *[7] * 999]}, "documents[1]"),
    ],
)
def test_a_list_is_read_up_to_its_first_bad_item(
    cls: type[WireModel], body: dict[str, Any], param: str
) -> None:
    with pytest.raises(ValidationError) as found:
        cls.model_validate(body)
    assert found.value.error_count() <= 3
    with pytest.raises(InvalidRequestError) as told:
        parse(cls, body)
    assert told.value.param == param


@pytest.mark.parametrize(("table", "parser"), [(CHAT, chat), (COMPLETION, completion)])
def test_each_field_does_what_its_table_says(table: dict[str, Support], parser: Any) -> None:
    for name, support in table.items():
        odd = {name: {"wrong": ["type"]}}
        if support is Support.HARMLESS:
            parser(**odd)
        elif support is Support.REFUSED:
            with pytest.raises(UnsupportedParameterError):
                parser(**odd)
        elif name not in ("stream_options", "json_schema"):
            with pytest.raises(InvalidRequestError) as caught:
                parser(**odd)
            assert str(caught.value.param).partition(".")[0] == name
        parser(**{name: None if name not in ("messages", "prompt") else [*HI] if name == "messages" else "x"})
