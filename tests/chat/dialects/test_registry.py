"""Which family a template leads to, and what its dialect makes of a conversation before the template does."""

import pytest

from nexa_runtime.chat.dialects.base import MARK, Dialect
from nexa_runtime.chat.dialects.deepseek import (
    CALL_BEGIN,
    CALL_END,
    CALLS_BEGIN,
    CALLS_END,
    SEPARATOR,
    DeepSeek,
    DeepSeekR1,
)
from nexa_runtime.chat.dialects.dsml import DSML
from nexa_runtime.chat.dialects.granite import Granite
from nexa_runtime.chat.dialects.llama3 import Llama3
from nexa_runtime.chat.dialects.mistral import Mistral
from nexa_runtime.chat.dialects.pythonic import Lfm2
from nexa_runtime.chat.dialects.registry import DIALECTS, choose
from nexa_runtime.chat.messages import Conversation, Message, Role, ToolCall
from tests.chat.dialects.transcripts import TOOLS, with_tokens

TEMPLATES = {
    "{{ '<tool_call>\\n{\"name\": ' }}<|im_start|>": "hermes",
    """<|start_of_role|>{{ '<tool_call>' }}{\\"name\\": """: "hermes",
    "{%- set opening = mark ~ '<tool_call>' %}{{ opening ~ '<invoke name=\"' ~ name }}": "generic",
    "<|start_of_role|>{{ 'write <|tool_call|> and a list' }}": "granite",
    "{{ '[TOOL_CALLS][' }}": "mistral",
    "{{ '[TOOL_CALLS]' + name + '[ARGS]' }}": "mistral_args",
    f"{{{{ '{CALLS_BEGIN}' }}}}```json": "deepseek_r1",
    f"{{{{ '{CALLS_BEGIN}{CALL_BEGIN}' + name }}}}": "deepseek",
    f"{{{{ '<{DSML}' + 'function_calls>' }}}}": "deepseek_dsml",
    'Action:\n```json [{ \'"tool_name": "\'': "command_r",
    "<|START_THINKING|> <|START_ACTION|>[ 'Action: ' \"tool_name\"": "command_r7b",
    '<|start_header_id|> {"name": name, "parameters": {}} <|python_tag|>': "llama3",
    "<|start_header_id|>{{ message.content }}": "generic",
    "<start_of_turn>{{ message.content }}": "generic",
    "": "generic",
}


@pytest.mark.parametrize(("template", "name"), TEMPLATES.items(), ids=TEMPLATES.values())
def test_a_template_leads_to_its_family(template: str, name: str) -> None:
    chosen = choose(template, {"<tool_call>": 7})
    assert chosen.name == name
    assert chosen.template == template
    assert chosen.special_texts == {"<tool_call>": 7}


def test_a_name_overrides_the_template() -> None:
    assert all(choose("<tool_call>", {}, name).name == name for name in DIALECTS)
    with pytest.raises(ValueError, match=r"no dialect 'qwen'; there are .*hermes, .*generic"):
        choose("", {}, "qwen")


CALLS = (ToolCall("call_a", "get_time", "{}"), ToolCall("call_b", "get_weather", '{"city": "é"}'))
TURNS = (
    Message(Role.USER, "When?"),
    Message(Role.ASSISTANT, "Well.", tool_calls=CALLS, reasoning="Hm."),
    Message(Role.TOOL, "14:05", tool_call_id="call_a"),
    Message(Role.TOOL, "rain", tool_call_id="call_b"),
    Message(Role.ASSISTANT, "Now."),
)


def prepared(dialect: Dialect, *, has_tools: bool = False) -> list[Message]:
    return list(dialect.prepare(Conversation(TURNS, TOOLS if has_tools else ())).messages)


def test_mistrals_ids_are_short_and_still_belong_together() -> None:
    _, turn, first, second, _ = prepared(Mistral({}))
    ids = [call.id for call in turn.tool_calls]
    assert ids == [first.tool_call_id, second.tool_call_id]
    assert all(len(one) == 9 and one.isalnum() for one in ids)
    assert len(set(ids)) == 2
    kept = Message(Role.TOOL, "", tool_call_id="Ab3456789")
    assert Mistral({}).prepare(Conversation((kept,))).messages == (kept,)


def test_llamas_turns_have_one_call() -> None:
    turns = prepared(Llama3({}))
    assert [(one.role, one.content, [call.id for call in one.tool_calls]) for one in turns] == [
        (Role.USER, "When?", []),
        (Role.ASSISTANT, "Well.", ["call_a"]),
        (Role.TOOL, "14:05", []),
        (Role.ASSISTANT, None, ["call_b"]),
        (Role.TOOL, "rain", []),
        (Role.ASSISTANT, "Now.", []),
    ]


def test_granites_calls_are_content() -> None:
    turn = prepared(Granite({}))[1]
    assert turn.tool_calls == ()
    assert turn.content == (
        'Well.<|tool_call|>[{"name": "get_time", "arguments": {}}, '
        '{"name": "get_weather", "arguments": {"city": "é"}}]'
    )


def test_markers_of_ones_own_are_marked() -> None:
    """Those in what a client wrote are not."""
    call = ToolCall("call_a", "get_time", '{"a": "<|tool_call|>"}')
    turns = (Message(Role.ASSISTANT, "So <|tool_call|>", tool_calls=(call,)),)
    (shown,) = with_tokens(Granite).prepare(Conversation(turns)).messages
    assert shown.content == (
        f'So <|tool_call|>{MARK}<|tool_call|>[{{"name": "get_time", "arguments": {{"a": "<|tool_call|>"}}}}]'
    )
    (written,) = with_tokens(Lfm2).prepare(Conversation(turns)).messages
    assert written.content == (
        f'So <|tool_call|>{MARK}<|tool_call_start|>[get_time(a="<|tool_call|>")]{MARK}<|tool_call_end|>'
    )
    system = with_tokens(DeepSeek).prepare(Conversation(TURNS, TOOLS)).messages[0]
    marks = (CALLS_BEGIN, CALL_BEGIN, SEPARATOR, CALL_END, CALLS_END)
    assert all(f"{MARK}{mark}" in (system.content or "") for mark in marks)


@pytest.mark.parametrize("depth", [150, 980, 985, 990, 992, 994, 995, 1000, 100_000])
@pytest.mark.parametrize("kind", DIALECTS.values())
def test_arguments_may_be_nested_deeply(kind: type[Dialect], depth: int) -> None:
    call = ToolCall("call_a", "get_time", '{"a": ' + "[" * depth + "]" * depth + "}")
    turns = (TURNS[0], Message(Role.ASSISTANT, None, tool_calls=(call,)))
    assert with_tokens(kind).prepare(Conversation(turns, TOOLS)).messages


def test_deepseeks_calls_stand_alone_and_its_tools_are_told() -> None:
    assert [(one.content, len(one.tool_calls)) for one in prepared(DeepSeekR1({}))[1:3]] == [
        ("Well.", 0),
        (None, 2),
    ]
    for kind in (DeepSeek, DeepSeekR1):
        system = prepared(kind({}), has_tools=True)[0]
        assert system.role is Role.SYSTEM
        assert system.content is not None
        assert kind.shape.before_name + "NAME" + kind.shape.before_arguments in system.content
        shown = prepared(kind({}, "{% for tool in tools %}"), has_tools=True)
        assert shown[0].role is Role.USER
    assert DeepSeekR1({}, "{{ tool['function']['arguments'] + 'x' }}").takes_arguments_as_text
    assert not DeepSeekR1({}, "{{ tool_args | tojson }}").takes_arguments_as_text
    assert not DeepSeek({}).takes_arguments_as_text
