"""What a body of ``/v1/messages`` becomes. No server; real values in and out."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nexa_runtime.chat.grammar import GrammarKind, GrammarSource
from nexa_runtime.chat.messages import Conversation, Message, Role, Tool, ToolCall, ToolChoice, ToolMode
from nexa_runtime.chat.template import CHATML, ChatTemplate
from nexa_runtime.errors import InvalidRequestError, RequestError, UnsupportedParameterError
from nexa_runtime.llama import SamplingParams
from nexa_runtime.server.protocol.anthropic import FIELDS, MessagesRequest
from nexa_runtime.server.protocol.anthropic_messages import MAX_INPUT_BYTES
from nexa_runtime.server.protocol.parameters import Support, split_fields
from nexa_runtime.server.protocol.wire import parse, unknown_fields
from nexa_runtime.serving.generation_service import GenerationOptions
from tests.server.bodies import SCHEMA

HI = [{"role": "user", "content": "hi"}]
CALL = {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": "é"}}
RESULT = {"type": "tool_result", "tool_use_id": "c1"}
IMAGE = {"type": "image", "source": {}}
FORMAT = {"type": "json_schema", "schema": SCHEMA}


def text(value: str, **fields: object) -> dict[str, Any]:
    return {"type": "text", "text": value, **fields}


def read(**fields: object) -> tuple[Conversation, GenerationOptions]:
    """What a body becomes."""
    known, _ = split_fields({"messages": HI, **fields}, FIELDS)
    wire = parse(MessagesRequest, known)
    return wire.to_conversation(), wire.to_options()


def turns(*wires: tuple[str, object], **fields: object) -> tuple[Message, ...]:
    """What messages of these roles and contents become."""
    messages = [{"role": role, "content": content} for role, content in wires]
    return read(messages=messages, **fields)[0].messages


def test_what_a_client_does_not_say_is_not_said() -> None:
    nulls = dict.fromkeys(set(FIELDS) - {"messages"})
    for fields in ({}, nulls):
        conversation, options = read(**fields)
        assert conversation == Conversation((Message(Role.USER, "hi"),))
        assert options == GenerationOptions()


def test_nulls_inside_count_as_absent_too() -> None:
    block = text("hi", citations=None, cache_control=None)
    conversation, options = read(
        messages=[{"role": "user", "content": [block]}],
        tools=[{"name": "f", "input_schema": {}, "type": None, "description": None, "strict": None}],
        tool_choice={"type": "auto", "name": None, "disable_parallel_tool_use": None},
        thinking={"type": "enabled", "budget_tokens": None, "display": None},
        output_config={"effort": None, "format": None},
    )
    assert conversation.messages == (Message(Role.USER, "hi"),)
    assert conversation.tools == (Tool("f"),)
    assert (conversation.tool_choice, conversation.is_parallel) == (ToolChoice(), True)
    assert conversation.reasoning_budget is None
    assert options == GenerationOptions()


def test_options() -> None:
    _, options = read(
        model="m", max_tokens=9, temperature=1.5, top_p=0.5, top_k=3, stop_sequences=["a", "\n\n"]
    )
    assert options == GenerationOptions(
        model="m",
        max_tokens=9,
        sampling={"temperature": 1.5, "top_p": 0.5, "top_k": 3},
        stops=("a", "\n\n"),
    )
    SamplingParams(**options.sampling)


def test_a_system_text_or_its_blocks() -> None:
    system = Message(Role.SYSTEM, "Be short.")
    assert turns(("user", "hi"), system="Be short.") == (system, Message(Role.USER, "hi"))
    blocks = [text("Be "), text("short.", cache_control={"type": "ephemeral"})]
    assert turns(("user", "hi"), system=blocks)[0] == system
    assert turns(("user", "hi"), system=[]) == (Message(Role.USER, "hi"),)
    later = turns(("user", "hi"), ("system", [text("Be short.")]), system="Be kind.")
    assert [one.role for one in later] == [Role.SYSTEM, Role.USER, Role.SYSTEM]


def test_messages_of_one_role_in_a_row_are_one_turn() -> None:
    first, *_ = turns(
        ("user", "a"), ("user", ""), ("user", [text("b"), text("c")]), ("assistant", "x"), ("user", "d")
    )
    assert first == Message(Role.USER, "a\n\nbc")
    assert turns(("system", "a"), ("user", "b"), system="s")[0] == Message(Role.SYSTEM, "s\n\na")


def test_a_tool_loop() -> None:
    second = {**CALL, "id": "c2", "input": {}}
    loop = turns(
        ("user", "hi"),
        ("assistant", [{"type": "thinking", "thinking": "hm", "signature": "x"}, text("So:"), CALL, second]),
        (
            "user",
            [
                {**RESULT, "content": [text("sun"), text("ny")]},
                {**RESULT, "tool_use_id": "c2", "content": "no such city", "is_error": True},
                text("and now?"),
            ],
        ),
        ("user", "please"),
    )
    calls = (ToolCall("c1", "f", '{"a": "é"}'), ToolCall("c2", "f", "{}"))
    assert loop == (
        Message(Role.USER, "hi"),
        Message(Role.ASSISTANT, "So:", tool_calls=calls, reasoning="hm"),
        Message(Role.TOOL, "sunny", tool_call_id="c1"),
        Message(Role.TOOL, "Error: no such city", tool_call_id="c2"),
        Message(Role.USER, "and now?\n\nplease"),
    )


def test_a_call_without_words_and_a_result_without_content() -> None:
    loop = turns(("user", "hi"), ("assistant", [CALL]), ("user", [RESULT]))
    assert loop[1] == Message(Role.ASSISTANT, None, tool_calls=(ToolCall("c1", "f", '{"a": "é"}'),))
    assert loop[2:] == (Message(Role.TOOL, "", tool_call_id="c1"),)


def test_the_inputs_of_calls_have_a_cap_together() -> None:
    half = {"a": "x" * (MAX_INPUT_BYTES // 2)}
    calls = [{**CALL, "id": f"c{number}", "input": half} for number in range(2)]
    one, both = ([("user", "hi"), ("assistant", calls[:count]), ("user", "hi")] for count in (1, 2))
    assert len(turns(*one)) == 3
    with pytest.raises(InvalidRequestError, match="with those before it, must have at most") as caught:
        turns(*both)
    assert caught.value.param == "messages[1].content[1].input"


def test_the_last_message_of_the_assistant_is_continued() -> None:
    conversation, _ = read(messages=[*HI, {"role": "assistant", "content": [text("The ")]}])
    assert conversation.continues
    assert conversation.messages[-1] == Message(Role.ASSISTANT, "The ")
    empty: list[Any] = ["", []]
    for content in empty:
        conversation, _ = read(messages=[*HI, {"role": "assistant", "content": content}])
        assert conversation == Conversation((Message(Role.USER, "hi"),))


def test_redacted_thinking_is_dropped_and_named() -> None:
    blocks = [{"type": "redacted_thinking", "data": "abc"}, text("x", mood="good")]
    wire = parse(MessagesRequest, {"messages": [*HI, {"role": "assistant", "content": blocks}]})
    assert wire.to_conversation().messages[-1] == Message(Role.ASSISTANT, "x")
    assert unknown_fields(wire) == ["messages[1].content[0].data", "messages[1].content[1].mood"]


def test_tools() -> None:
    conversation, _ = read(
        tools=[
            {"name": "a-b_1", "description": "The time.", "input_schema": SCHEMA, "strict": True},
            {"name": "x" * 128, "input_schema": {}, "type": "custom", "cache_control": {"type": "ephemeral"}},
        ]
    )
    assert conversation.tools == (Tool("a-b_1", "The time.", SCHEMA, is_strict=True), Tool("x" * 128))
    assert [tool.param for tool in conversation.tools] == ["tools[0].input_schema", "tools[1].input_schema"]


@pytest.mark.parametrize(
    ("choice", "expected", "is_parallel"),
    [
        ({"type": "auto"}, ToolChoice(), True),
        ({"type": "auto", "disable_parallel_tool_use": True}, ToolChoice(), False),
        ({"type": "any"}, ToolChoice(ToolMode.REQUIRED), True),
        ({"type": "any", "disable_parallel_tool_use": True}, ToolChoice(ToolMode.REQUIRED), False),
        ({"type": "tool", "name": "f"}, ToolChoice(ToolMode.NAMED, "f"), True),
        ({"type": "none"}, ToolChoice(ToolMode.NONE), True),
    ],
)
def test_tool_choice(choice: Any, expected: ToolChoice, is_parallel: bool) -> None:
    conversation, _ = read(tools=[{"name": "f", "input_schema": {}}], tool_choice=choice)
    assert (conversation.tool_choice, conversation.is_parallel) == (expected, is_parallel)


def test_thinking_and_effort() -> None:
    on, off = {"enable_thinking": True, "thinking": True}, {"enable_thinking": False, "thinking": False}
    enabled, _ = read(thinking={"type": "enabled", "budget_tokens": 7})
    assert (enabled.template_options, enabled.reasoning_budget) == (on, 7)
    adaptive, _ = read(thinking={"type": "adaptive"}, output_config={"effort": "low"})
    assert (adaptive.template_options, adaptive.reasoning_budget) == ({**on, "reasoning_effort": "low"}, None)
    disabled, _ = read(thinking={"type": "disabled"})
    assert (disabled.template_options, disabled.reasoning_budget) == (off, 0)
    omitted = parse(MessagesRequest, {"messages": HI, "thinking": {"type": "adaptive", "display": "omitted"}})
    assert not omitted.shows_thinking


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"output_config": {"format": FORMAT}}, "output_config.format.schema"),
        ({"output_format": FORMAT}, "output_format.schema"),
    ],
)
def test_the_form_of_an_answer(fields: Any, param: str) -> None:
    source = read(**fields)[1].grammar
    assert source is not None
    assert source == GrammarSource(GrammarKind.JSON_SCHEMA, source.text, param, is_strict=True)
    assert json.loads(source.text) == SCHEMA
    tools = [{"name": "f", "input_schema": {}}]
    assert read(**fields, tools=tools, tool_choice={"type": "none"})[1].grammar == source


def one(role: str, *blocks: object) -> dict[str, Any]:
    return {"messages": [*HI, {"role": role, "content": list(blocks)}]}


def after_call(*blocks: object) -> dict[str, Any]:
    return {"messages": [*one("assistant", CALL)["messages"], {"role": "user", "content": list(blocks)}]}


def tool(**fields: object) -> dict[str, Any]:
    return {"tools": [{"name": "f", "input_schema": {}, **fields}]}


DEEP: Any = {}
for _ in range(100):
    DEEP = {"a": DEEP}

REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"messages": []}, "messages", "empty"),
    ({"messages": None}, "messages", "required"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "'user'"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "required"),
    ({"messages": [{"role": "user", "content": []}]}, "messages[0].content", "empty"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "a text or a list"),
    ({"messages": [{"role": "assistant", "content": ""}]}, "messages", "no text"),
    (one("assistant", CALL), "messages", "tool_result"),
    (one("assistant", {"type": "thinking", "thinking": "x"}), "messages", "no text to continue"),
    (one("user", {}), "messages[1].content[0].type", "required"),
    (one("user", {"type": []}), "messages[1].content[0].type", "a text"),
    (one("user", "x"), "messages[1].content[0]", "an object"),
    (one("user", {"type": "text"}), "messages[1].content[0].text", "required"),
    (one("user", IMAGE), "messages[1].content[0].type", "'image'"),
    (one("user", {"type": "document", "source": {}}), "messages[1].content[0].type", "'document'"),
    (one("user", RESULT), "messages[1].content[0].tool_use_id", "no tool_use"),
    (one("user", {"type": "tool_result"}), "messages[1].content[0].tool_use_id", "required"),
    (one("user", CALL), "messages[1].content[0].type", "assistant"),
    (one("assistant", {**CALL, "input": "{}"}), "messages[1].content[0].input", "an object"),
    (one("assistant", {**CALL, "input": DEEP}), "messages[1].content[0].input", "nested"),
    (one("assistant", RESULT), "messages[1].content[0].type", "user"),
    (one("user", *[text("x")] * 1025), "messages[1].content", "1024"),
    (after_call({**RESULT, "content": [IMAGE]}), "messages[2].content[0].content[0].type", "'image'"),
    (after_call({**RESULT, "content": [{}]}), "messages[2].content[0].content[0].type", "required"),
    (after_call({**RESULT, "content": 7}), "messages[2].content[0].content", "a text or a list"),
    ({"system": 7}, "system", "a text or a list"),
    ({"system": [IMAGE]}, "system[0].type", "'image'"),
    ({"system": [CALL]}, "system[0].type", "'tool_use'"),
    ({"max_tokens": 0}, "max_tokens", "1"),
    ({"temperature": 2.5}, "temperature", "2"),
    ({"stop_sequences": "x"}, "stop_sequences", "a list"),
    ({"stop_sequences": [""]}, "stop_sequences", "1 to 256"),
    ({"stop_sequences": ["x" * 257]}, "stop_sequences", "1 to 256"),
    ({"stop_sequences": ["x"] * 17}, "stop_sequences", "16"),
    ({"thinking": {}}, "thinking.type", "required"),
    ({"thinking": {"type": "between_tools"}}, "thinking.type", "'enabled'"),
    ({"thinking": {"type": "adaptive", "budget_tokens": 9}}, "thinking.budget_tokens", "enabled"),
    ({"thinking": {"type": "enabled", "budget_tokens": 0}}, "thinking.budget_tokens", "1"),
    ({"output_config": {"effort": "huge"}}, "output_config.effort", "'low'"),
    ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema", "required"),
    ({"output_config": {"format": FORMAT}, "output_format": FORMAT}, "output_format", "older name"),
    ({"output_config": {"format": FORMAT}, **tool()}, "output_config.format", "tools"),
    (tool(name=None), "tools[0].name", "128"),
    (tool(name="a b"), "tools[0].name", "128"),
    (tool(input_schema=None), "tools[0].input_schema", "required"),
    (tool(input_schema={"type": "string"}), "tools[0].input_schema.type", "'object'"),
    (tool(input_schema={"a": DEEP}), "tools[0].input_schema", "nested"),
    ({"tools": tool()["tools"] * 2}, "tools[1].name", "earlier"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type", "web_search_"),
    ({"tool_choice": {"type": "any"}}, "tool_choice", "needs tools"),
    ({"tool_choice": {"type": "required"}, **tool()}, "tool_choice.type", "'auto'"),
    ({"tool_choice": "auto", **tool()}, "tool_choice", "an object"),
    ({"tool_choice": {"type": "tool"}, **tool()}, "tool_choice.name", "required"),
    ({"tool_choice": {"type": "tool", "name": "g"}, **tool()}, "tool_choice.name", "no tool"),
    ({"tool_choice": {"type": "auto", "name": "f"}, **tool()}, "tool_choice.name", "type tool"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param", "reason"), REFUSED)
def test_what_is_wrong_is_named(fields: Any, param: str, reason: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        read(**fields)
    assert (refused.value.param, reason in refused.value.message) == (param, True), refused.value.message
    assert refused.value.message.startswith(param)


@pytest.mark.parametrize("name", [name for name, support in FIELDS.items() if support is Support.REFUSED])
def test_what_is_not_supported_is_refused_by_name(name: str) -> None:
    with pytest.raises(UnsupportedParameterError) as refused:
        read(**{name: {"id": "x"}})
    assert refused.value.param == name


def test_what_asks_for_nothing_and_what_changes_nothing_is_taken() -> None:
    keeping = {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}
    nothing: dict[str, Any] = {"mcp_servers": [], "context_management": keeping}
    harmless: dict[str, Any] = {
        name: {"type": "x"} for name, support in FIELDS.items() if support is Support.HARMLESS
    }
    assert read(**nothing, **harmless) == read()


values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-2, 2**64), st.text(max_size=8)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
blocks = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "tool_use", "tool_result", "thinking", "redacted_thinking", "image"])},
    optional={
        "text": st.text(max_size=4) | values,
        "thinking": st.text(max_size=4),
        "id": st.sampled_from(["a", "b"]),
        "tool_use_id": st.sampled_from(["a", "b"]) | values,
        "name": st.text(max_size=4),
        "input": st.dictionaries(st.text(max_size=4), values, max_size=2) | values,
        "content": st.text(max_size=4) | st.lists(st.just(text("x")) | values, max_size=2) | values,
        "is_error": st.booleans() | values,
    },
)
wires = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["user", "assistant", "system", "king"]),
        "content": st.text(max_size=4) | st.lists(blocks, max_size=3) | values,
    }
)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    messages=st.lists(wires, min_size=1, max_size=4),
    fields=st.dictionaries(st.sampled_from(sorted(set(FIELDS) - {"messages"})), values, max_size=3),
)
def test_any_body_is_refused_in_a_sentence_or_can_be_relied_on(messages: Any, fields: Any) -> None:
    try:
        conversation, options = read(messages=messages, **fields)
        hash(SamplingParams(**options.sampling))
        ChatTemplate(CHATML).render(conversation)
    except RequestError as error:
        is_a_sentence = bool(error.param) and ("\n" not in error.message or "template" in error.message)
    else:
        is_a_sentence = True
        assert conversation.messages
        assert conversation.continues == (conversation.messages[-1].role is Role.ASSISTANT)
    assert is_a_sentence
