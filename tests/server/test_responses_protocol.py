"""The Responses API's requests: what becomes of each field, and what is refused in which words."""

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses.response_create_params import ResponseCreateParamsNonStreaming

from nexa_runtime.chat.grammar import GrammarKind
from nexa_runtime.chat.messages import Message, Role, ToolCall, ToolChoice, ToolMode
from nexa_runtime.errors import InvalidRequestError, UnsupportedParameterError
from nexa_runtime.server.protocol.responses import FIELDS, read_request
from tests.server.bodies import SCHEMA, responses, responses_wire

F: dict[str, Any] = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}
CALL: dict[str, Any] = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
OUTPUT: dict[str, Any] = {"type": "function_call_output", "call_id": "c1", "output": "18"}
TOOL_RESULT = Message(Role.TOOL, "18", tool_call_id="c1")


def said(role: str, content: Any, **fields: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **fields}


def text(value: str, kind: str = "output_text") -> dict[str, Any]:
    return {"type": kind, "text": value}


def thought(*texts: str, summary: tuple[str, ...] = ()) -> dict[str, Any]:
    content = [text(one, "reasoning_text") for one in texts]
    return {"type": "reasoning", "id": "rs_1", "content": content,
            "summary": [text(one, "summary_text") for one in summary]}  # fmt: skip


def assistant(content: str | None, *ids: str, reasoning: str | None = None) -> Message:
    calls = tuple(ToolCall(one, "f", "{}") for one in ids)
    return Message(Role.ASSISTANT, content, tool_calls=calls, reasoning=reasoning)


MESSAGES: dict[str, tuple[Any, list[Message]]] = {
    "a text": ("hi", [Message(Role.USER, "hi")]),
    "easy messages": (
        [said("developer", "be kind"), said("user", "hi"), said("assistant", "ho"), said("system", "now")],
        [Message(Role.SYSTEM, "be kind"), Message(Role.USER, "hi"), assistant("ho"),
         Message(Role.SYSTEM, "now")],
    ),
    "parts": (
        [said("user", [text("a", "input_text"), text("b", "input_text")], type="message", status=None),
         said("assistant", [text("c"), {"type": "refusal", "refusal": "no"}], type="message", id="msg_1")],
        [Message(Role.USER, "ab"), assistant("cno")],
    ),
    "calls and their outputs": (
        [CALL, {**CALL, "call_id": "c2"}, OUTPUT,
         {**OUTPUT, "call_id": "c2", "output": [text("19", "input_text")]}],
        [assistant(None, "c1", "c2"), TOOL_RESULT, Message(Role.TOOL, "19", tool_call_id="c2")],
    ),
    "one turn of everything": (
        [thought("hm"), said("assistant", "So:"), CALL, OUTPUT],
        [assistant("So:", "c1", reasoning="hm"), TOOL_RESULT],
    ),
    "thoughts between calls": (
        [thought("a"), CALL, thought("b"), {**CALL, "call_id": "c2"}, OUTPUT],
        [assistant(None, "c1", "c2", reasoning="a\n\nb"), TOOL_RESULT],
    ),
    "words after a call": (
        [CALL, said("assistant", "Wait."), OUTPUT],
        [assistant("Wait.", "c1"), TOOL_RESULT],
    ),
    "two turns": (
        [said("assistant", "a"), said("assistant", "b"), thought("hm"), said("assistant", "c")],
        [assistant("a"), assistant("b"), assistant("c", reasoning="hm")],
    ),
    "a summary stands in": (
        [thought(summary=("s",)), said("assistant", "a")],
        [assistant("a", reasoning="s")],
    ),
    "a thought alone": (
        [thought("hm", summary=("s",)), said("user", "hi")],
        [assistant("", reasoning="hm"), Message(Role.USER, "hi")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MESSAGES)
def test_items_become_messages(name: str) -> None:
    items, expected = MESSAGES[name]
    assert responses(input=items)[0].messages == tuple(expected)


def test_instructions_and_the_system_messages_behind_them_are_one() -> None:
    assert responses(instructions="Be brief.")[0].messages == (
        Message(Role.SYSTEM, "Be brief."),
        Message(Role.USER, "hi"),
    )
    items = [said("system", "a"), said("developer", ""), said("user", "hi"), said("system", "b")]
    assert responses(instructions="I", input=items)[0].messages == (
        Message(Role.SYSTEM, "I\n\na"),
        Message(Role.USER, "hi"),
        Message(Role.SYSTEM, "b"),
    )


def test_tools_and_their_choice() -> None:
    conversation, _ = responses(tools=[{**F, "strict": True}], parallel_tool_calls=False)
    assert (conversation.tools[0].name, conversation.tools[0].is_strict) == ("f", True)
    assert not conversation.is_parallel
    for value, expected in [
        (None, ToolChoice()),
        ("none", ToolChoice(ToolMode.NONE)),
        ("required", ToolChoice(ToolMode.REQUIRED)),
        ({"type": "function", "name": "f"}, ToolChoice(ToolMode.NAMED, "f")),
    ]:
        assert responses(tools=[F], tool_choice=value)[0].tool_choice == expected


def test_settings_become_options() -> None:
    conversation, options = responses(
        model="m", max_output_tokens=5, temperature=0.5, top_p=0.9, top_k=3, seed=1, stop="x",
        reasoning={"effort": "none", "summary": "auto"}, reasoning_budget_tokens=7,
    )  # fmt: skip
    assert (options.model, options.max_tokens, options.stops) == ("m", 5, ("x",))
    assert options.sampling == {"temperature": 0.5, "top_p": 0.9, "top_k": 3, "seed": 1}
    assert conversation.template_options["enable_thinking"] is False
    assert conversation.reasoning_budget == 7
    assert responses(max_output_tokens=-1)[1].max_tokens is None
    assert responses(top_logprobs=2)[1].sampling == {"num_logprobs": 2}
    assert responses(include=["message.output_text.logprobs"])[1].sampling == {"num_logprobs": 0}
    assert responses(include=["reasoning.encrypted_content"], top_logprobs=0)[1].sampling == {}


def test_forms() -> None:
    def grammar(**config: Any) -> Any:
        return responses(text={"format": config})[1].grammar

    assert grammar(type="text") is None
    assert grammar(type="json_object").kind is GrammarKind.JSON_OBJECT
    strict = grammar(type="json_schema", name="x", schema=SCHEMA, strict=True)
    assert (strict.kind, strict.param, strict.is_strict) == (
        GrammarKind.JSON_SCHEMA, "text.format.schema", True,
    )  # fmt: skip
    assert responses(regex="a+")[1].grammar.kind is GrammarKind.REGEX  # type: ignore[union-attr]


def test_null_counts_as_absent() -> None:
    nothing = dict.fromkeys(FIELDS)
    conversation, options = responses(**{**nothing, "input": "hi"})
    assert (conversation, options) == responses()
    items: list[Any] = [
        said("user", "hi", type=None, id=None, status=None, phase=None),
        {**CALL, "id": None, "status": None},
        {"type": "reasoning", "summary": None, "content": None, "id": None, "status": None},
    ]
    inner: dict[str, Any] = {
        "text": {"format": None, "verbosity": None},
        "reasoning": dict.fromkeys(("effort", "summary", "generate_summary", "context", "mode")),
        "tools": [{**F, "description": None, "parameters": None, "strict": None}],
        "stream_options": {"include_usage": None, "include_obfuscation": None},
    }
    _, ignored = read_request({"input": items, **inner})
    assert ignored == []


def test_what_asks_for_nothing_is_taken() -> None:
    _, ignored = read_request(
        {
            "input": "hi", "store": False, "background": False, "truncation": "disabled",
            "previous_response_id": "", "text": {"verbosity": "medium"}, "service_tier": "auto",
            "max_tool_calls": 3, "stream_options": {"include_obfuscation": False}, "metadata": {"a": "b"},
            "reasoning": {"mode": "standard", "context": "auto"}, "prompt_cache_retention": "24h",
        }
    )  # fmt: skip
    assert ignored == []


def test_what_nobody_reads_is_named() -> None:
    _, ignored = read_request(
        {
            "input": [{**thought("hm"), "encrypted_content": "x"}, said("user", "hi", mood="good")],
            "colour": "red",
            "store": True,
            "stream_options": {"include_obfuscation": True},
            "tools": [{**F, "defer_loading": True}],
        }
    )
    assert sorted(ignored) == [
        "colour", "input[0].encrypted_content", "input[1].mood", "store",
        "stream_options.include_obfuscation", "tools[0].defer_loading",
    ]  # fmt: skip


@pytest.mark.parametrize(("asked", "clamped", "holds"), [(9, None, 9), (9, 5, 5), (-1, None, None)])
def test_a_cap_is_repeated_as_it_holds(asked: int, clamped: int | None, holds: int | None) -> None:
    wire = responses_wire(max_output_tokens=asked)
    assert wire.settings(wire.to_conversation(), clamped)["max_output_tokens"] == holds


UNSUPPORTED: list[tuple[dict[str, Any], str, str]] = [
    ({"previous_response_id": "resp_1"}, "previous_response_id", "keeps no responses"),
    ({"conversation": "conv_1"}, "conversation", "keeps no responses"),
    ({"conversation": {"id": "conv_1"}}, "conversation", "keeps no responses"),
    ({"prompt": {"id": "pmpt_1"}}, "prompt", "keeps no responses"),
    ({"background": True}, "background", "keeps no responses"),
    ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]", "keeps no responses"),
    ({"input": [{"id": "msg_1"}]}, "input[0]", "keeps no responses"),
    ({"input": [{"type": "web_search_call", "id": "w"}]}, "input[0].type", "web_search_call"),
    *[
        ({"input": [said("user", [{"type": kind}])]}, "input[0].content[0].type", f"text, not '{kind}'")
        for kind in ("input_image", "input_file", "input_audio")
    ],
    ({"input": [CALL, {**OUTPUT, "output": [{"type": "input_image"}]}]}, "input[1].output[0].type", "text"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type", "web_search"),
    ({"tools": [F, {"type": "custom", "name": "x"}]}, "tools[1].type", "custom"),
    ({"tools": [F], "tool_choice": {"type": "allowed_tools", "tools": [F]}}, "tool_choice", "allowed_tools"),
    ({"tools": [F], "tool_choice": {"type": "file_search"}}, "tool_choice", "file_search"),
    ({"truncation": "auto"}, "truncation", "truncated"),
    ({"text": {"verbosity": "low"}}, "text.verbosity", "medium"),
    ({"reasoning": {"context": "all_turns"}}, "reasoning.context", "auto"),
    ({"reasoning": {"mode": "pro"}}, "reasoning.mode", "standard"),
    ({"moderation": {"model": "m"}}, "moderation", ""),
    ({"context_management": [{"type": "compaction"}]}, "context_management", ""),
    ({"messages": []}, "messages", "use input"),
    ({"max_tokens": 5}, "max_tokens", "use max_output_tokens"),
    ({"n": 2}, "n", "one answer"),
    ({"response_format": {"type": "json_object"}}, "response_format", "use text.format"),
    ({"reasoning_effort": "low"}, "reasoning_effort", "use reasoning.effort"),
]


@pytest.mark.parametrize(("fields", "param", "words"), UNSUPPORTED)
def test_what_is_not_supported_is_refused_by_name(fields: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(UnsupportedParameterError) as caught:
        responses(**fields)
    assert caught.value.param == param
    assert words in caught.value.message


INVALID: list[tuple[dict[str, Any], str, str]] = [
    ({"input": None}, "input", "required"),
    ({"input": []}, "input", "empty"),
    ({"input": ""}, "input", "empty"),
    ({"input": 5}, "input", "a text or a list"),
    ({"input": [5]}, "input[0]", "object"),
    ({"input": [said("user", "x")] * 5000}, "input", "at most"),
    ({"input": [{"content": "x"}]}, "input[0].role", "required"),
    ({"input": [said("tool", "x")]}, "input[0].role", "assistant"),
    ({"input": [said("user", None)]}, "input[0].content", ""),
    ({"input": [said("user", [{"text": "x"}])]}, "input[0].content[0].type", "required"),
    ({"input": [said("user", [{"type": "input_text"}])]}, "input[0].content[0].text", "required"),
    ({"input": [said("assistant", [{"type": "refusal"}])]}, "input[0].content[0].refusal", "required"),
    ({"input": [{"type": "function_call", "name": "f", "arguments": ""}]}, "input[0].call_id", "required"),
    ({"input": [{**CALL, "arguments": {}}]}, "input[0].arguments", "text"),
    ({"input": [OUTPUT]}, "input[0].call_id", "keeps no responses"),
    ({"input": [OUTPUT, CALL]}, "input[0].call_id", "in front of it"),
    ({"input": [{"type": "reasoning", "summary": [{}]}]}, "input[0].summary[0].text", "required"),
    ({"instructions": ["x"]}, "instructions", "text"),
    ({"max_output_tokens": 0}, "max_output_tokens", "at least 1"),
    ({"max_output_tokens": True}, "max_output_tokens", ""),
    ({"min_tokens": 9, "max_output_tokens": 5}, "min_tokens", ""),
    ({"temperature": 3}, "temperature", ""),
    ({"top_logprobs": 21}, "top_logprobs", ""),
    ({"include": ["everything"]}, "include[0]", "reasoning.encrypted_content"),
    ({"metadata": {"a": 1}}, "metadata.a", "text"),
    ({"metadata": {str(n): "" for n in range(17)}}, "metadata", "at most 16"),
    ({"reasoning": {"effort": "lots"}}, "reasoning.effort", "high"),
    ({"reasoning": {"summary": "long"}}, "reasoning.summary", "concise"),
    ({"text": "json"}, "text", "object"),
    ({"text": {"verbosity": "loud"}}, "text.verbosity", ""),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type", "json_schema"),
    ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format.name", "required"),
    ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema", "required"),
    ({"text": {"format": {"type": "json_object"}}, "regex": "a"}, "regex", "text and regex"),
    ({"text": {"format": {"type": "json_object"}}, "tools": [F]}, "text", "tools"),
    ({"tools": [{"name": "f"}]}, "tools[0].type", ""),
    ({"tools": [{"type": "function"}]}, "tools[0].name", "required"),
    ({"tools": [{**F, "name": "a b"}]}, "tools[0].name", "letters"),
    ({"tools": [F, F]}, "tools[1].name", "earlier"),
    ({"tools": [{**F, "parameters": {"type": "array"}}]}, "tools[0].parameters.type", "object"),
    ({"tools": [F] * 200}, "tools", "at most"),
    ({"tool_choice": "required"}, "tool_choice", "needs tools"),
    ({"tools": [F], "tool_choice": "always"}, "tool_choice", ""),
    ({"tools": [F], "tool_choice": 5}, "tool_choice", "text or an object"),
    ({"tools": [F], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice.name", "no tool"),
    ({"tools": [F], "tool_choice": {"type": "function"}}, "tool_choice", "must be like"),
    ({"tools": [F], "tool_choice": {"type": 5, "name": "f"}}, "tool_choice", "must be like"),
    ({"tool_choice": {"type": "function", "name": "f"}}, "tool_choice", "needs tools"),
    ({"truncation": "some"}, "truncation", "disabled"),
    ({"stream": "yes"}, "stream", ""),
    ({"stream_options": {"include_obfuscation": 1}}, "stream_options.include_obfuscation", ""),
    ({"chat_template_kwargs": {"messages": "x"}}, "chat_template_kwargs", ""),
]


@pytest.mark.parametrize(("fields", "param", "words"), INVALID)
def test_what_is_wrong_is_one_sentence(fields: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        responses(**fields)
    assert caught.value.param == param
    assert words in caught.value.message
    assert caught.value.message.endswith(".")
    assert "\n" not in caught.value.message


def test_every_field_of_openais_client_is_known() -> None:
    body = ResponseCreateParamsNonStreaming
    assert body.__required_keys__ | body.__optional_keys__ <= set(FIELDS)
    assert body.__optional_keys__ >= {"input", "tools", "stream"}


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 30) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=5,
)
some_parts = st.lists(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["input_text", "output_text", "refusal", "input_image"]) | anything},
        optional={"text": st.text(max_size=3), "refusal": anything},
    ),
    max_size=2,
)
some_items = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["message", "function_call", "function_call_output", "reasoning"]) | anything,
        "role": st.sampled_from(["user", "assistant", "system"]) | anything,
        "content": st.text(max_size=3) | some_parts | anything,
        "output": st.text(max_size=3) | some_parts,
        "summary": some_parts | anything,
        "call_id": st.sampled_from(["a", "b"]),
        "name": st.just("f") | anything,
        "arguments": st.text(max_size=3),
        "id": anything,
    },
)
some_fields = st.dictionaries(
    st.sampled_from(sorted(set(FIELDS) - {"input"})), st.just(F) | st.just([F]) | anything, max_size=3
)


@settings(max_examples=200, deadline=None)
@given(items=st.lists(some_items, max_size=4) | anything, fields=some_fields)
def test_any_body_is_refused_in_a_sentence_or_can_be_relied_on(items: Any, fields: dict[str, Any]) -> None:
    try:
        wire, _ = read_request({"input": items, **fields})
        conversation, _ = wire.to_conversation(), wire.to_options()
    except InvalidRequestError as error:
        is_a_sentence = bool(error.param) and "\n" not in error.message
    else:
        is_a_sentence = True
        assert conversation.messages
        orjson.dumps(wire.settings(conversation, None))
    assert is_a_sentence
