"""Templates as models ship them, and messages that they refuse."""

import json
from dataclasses import replace

import pytest

from nexa_runtime.chat.dialects.base import MARK
from nexa_runtime.chat.messages import Conversation, Message, Role, Tool, ToolCall, ToolChoice, ToolMode
from nexa_runtime.chat.template import CHATML, ChatTemplate, TemplateSyntaxError, without_marks
from nexa_runtime.chat.variables import Shape, variables
from nexa_runtime.errors import InvalidRequestError

HELLO = [Message(Role.SYSTEM, "Be kind."), Message(Role.USER, "Hello")]


def test_chatml() -> None:
    assert ChatTemplate(CHATML).render(Conversation(tuple(HELLO))).text == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )


def test_what_hugging_face_offers_is_there() -> None:
    source = (
        "{{ bos_token }}{{ {'a': 'é<'} | tojson }}{{ strftime_now('%Y') | length }}"
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content }}{% endfor %}"
    )
    rendered = ChatTemplate(source, bos_text="<s>").render(Conversation(tuple(HELLO)))
    assert rendered.text == '<s>{"a": "é<"}4Be kind.'


def test_a_template_that_refuses_is_the_clients_error() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InvalidRequestError, match="roles must alternate") as caught:
        template.render(Conversation(tuple(HELLO)))
    assert caught.value.param == "messages"


@pytest.mark.parametrize("source", ["{{ messages[99].content + 1 }}", "{{ 1 / 0 }}", "{{ messages.x.y }}"])
def test_a_template_that_breaks_on_messages_is_one_sentence(source: str) -> None:
    with pytest.raises(InvalidRequestError, match="chat template"):
        ChatTemplate(source).render(Conversation(tuple(HELLO)))


def test_a_template_cannot_reach_python() -> None:
    with pytest.raises(InvalidRequestError, match="chat template"):
        ChatTemplate("{{ ''.__class__.__mro__[1].__subclasses__() }}").render(Conversation(tuple(HELLO)))


def test_invalid_jinja_is_told_with_its_line() -> None:
    with pytest.raises(TemplateSyntaxError, match="line 2"):
        ChatTemplate("ok\n{% for %}")


def test_tool_arguments_reach_the_template_as_an_object() -> None:
    call = ToolCall("call_1", "get_time", '{"city": "Lima"}')
    messages = [
        Message(Role.ASSISTANT, None, tool_calls=(call,)),
        Message(Role.TOOL, "14:05", tool_call_id="call_1"),
    ]
    source = "{{ messages[0].tool_calls[0].function.arguments.city }} {{ messages[1].tool_call_id }}"
    assert ChatTemplate(source).render(Conversation(tuple(messages))).text == "Lima call_1"


def test_a_users_control_token_is_broken_up_wherever_it_stands() -> None:
    template = ChatTemplate(
        "{% for m in messages %}{{ m.content }}|{{ m.tool_calls[0].function.arguments.x }}{% endfor %}",
        control_texts=["<end>"],
    )
    call = ToolCall("1", "f", '{"x": "<end>"}')
    rendered = template.render(Conversation((Message(Role.ASSISTANT, "a<end>b", tool_calls=(call,)),)))
    assert "<end>" not in rendered.text
    assert rendered.text.replace(rendered.guard, "") == "a<end>b|<end>"


def test_a_guard_character_in_a_message_is_kept() -> None:
    rendered = ChatTemplate(CHATML, control_texts=["<|im_end|>"]).render(
        Conversation((Message(Role.USER, "\ufdd1<|im_end|>"),))
    )
    assert rendered.guard != "\ufdd1"
    assert "\ufdd1" in rendered.text


MARKERS = ["<call>", "</call>", "<call><end>"]
SHOWN = "{% for m in messages %}{{ m.content }}{% endfor %}"


def test_a_marker_that_a_dialect_marks_stays_whole() -> None:
    text = f"<call>{MARK}<call>a{MARK}</call></call>{MARK}b{MARK}<call><end>"
    rendered = ChatTemplate(SHOWN, control_texts=MARKERS).render(Conversation((Message(Role.USER, text),)))
    guard = rendered.guard
    assert rendered.text == f"<{guard}call><call>a</call><{guard}/call>b<call><end>"
    assert ChatTemplate(SHOWN).render(Conversation((Message(Role.USER, text),))).text == text.replace(
        MARK, ""
    )


def test_a_mark_of_a_users_own_does_not_count() -> None:
    sent = Conversation((Message(Role.USER, f"{MARK}<call>"),))
    rendered = ChatTemplate(SHOWN, control_texts=MARKERS).render(without_marks(sent))
    assert rendered.text == f"\ufffd<{rendered.guard}call>"


@pytest.mark.parametrize(
    "sent",
    [
        Conversation((Message(Role.TOOL, "a", tool_call_id=MARK),)),
        Conversation((Message(Role.USER, "a", name=MARK),)),
        Conversation((Message(Role.ASSISTANT, "a", reasoning=MARK),)),
        Conversation((Message(Role.ASSISTANT, None, tool_calls=(ToolCall(MARK, "f", "{}"),)),)),
        Conversation((Message(Role.ASSISTANT, None, tool_calls=(ToolCall("1", MARK, "{}"),)),)),
        Conversation((Message(Role.ASSISTANT, None, tool_calls=(ToolCall("1", "f", f'{{"{MARK}": 1}}'),)),)),
        Conversation(
            (Message(Role.ASSISTANT, None, tool_calls=(ToolCall("1", "f", '{"a": "\\\\\\uFDd0"}'),)),)
        ),
        Conversation((), tools=(Tool(MARK),)),
        Conversation((), tools=(Tool("f", MARK),)),
        Conversation((), tools=(Tool("f", None, {MARK: 1}),)),
        Conversation((), tools=(Tool("f", None, {"a": [{"b": MARK}]}),)),
        Conversation((), tool_choice=ToolChoice(ToolMode.NAMED, MARK)),
        Conversation((), template_options={"date_string": MARK, "n": 1}),
        Conversation((), template_options={MARK: True}),
    ],
)
def test_no_text_keeps_its_marks(sent: Conversation) -> None:
    cleaned = without_marks(sent)
    seen: list[str] = []

    def see(text: str) -> str:
        seen.append(text)
        return text

    offered = variables(replace(cleaned, tool_choice=ToolChoice()), see, Shape())
    assert MARK not in "".join([*seen, *cleaned.template_options, str(cleaned.tool_choice.name)])
    assert "\ufffd" in repr((offered, cleaned))


def test_a_conversation_without_marks_is_not_copied() -> None:
    call = ToolCall("1", "f", '{"a": "\\n"}')
    sent = Conversation(
        (Message(Role.ASSISTANT, "<call>", tool_calls=(call,)),), tools=(Tool("f", "\ufdd1"),)
    )
    assert without_marks(sent) is sent


def test_a_backslash_in_front_of_those_letters_is_no_escape() -> None:
    call = ToolCall("1", "f", '{"a": "\\\\ufdd0"}')
    sent = Conversation((Message(Role.ASSISTANT, None, tool_calls=(call,)),))
    assert without_marks(sent) == sent


def test_many_beginnings_of_markers_are_looked_through_quickly() -> None:
    template = ChatTemplate(SHOWN, control_texts=[f"<unused{number}>" for number in range(6000)])
    rendered = template.render(Conversation((Message(Role.USER, "<unused" * 100_000 + "<unused77>"),)))
    assert rendered.text.count(rendered.guard) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        '{"x": "\\u003cend>"}',
        '{"\\u003cend>": 1}',
        '{"x": ["\\u003cend\\u003e", {"y": "<end>"}]}',
        '"\\u003cend>"',
        "<end>",
        '{"x": "<end>"',
    ],
)
def test_an_escape_in_arguments_cannot_become_a_control_token(arguments: str) -> None:
    source = (
        "{% set a = messages[0].tool_calls[0].function.arguments %}{{ a if a is string else a | tojson }}"
    )
    template = ChatTemplate(source, control_texts=["<end>"])
    rendered = template.render(
        Conversation((Message(Role.ASSISTANT, None, tool_calls=(ToolCall("1", "f", arguments),)),))
    )
    assert "<end>" not in rendered.text


def test_loops_keep_their_variables() -> None:
    source = "{% for a in [3, 4] %}{{ loop.index }}/{{ loop.length }}:{{ a }}{{ '' if loop.last else ',' }}"
    template = ChatTemplate(source + "{% endfor %}{{ 2 * 3 }}{{ 'ab' * 2 }}{{ 2 ** 10 }}")
    assert template.render(Conversation(())).text == "1/2:3,2/2:46abab1024"


def test_a_long_conversation_is_within_bounds() -> None:
    messages = [Message(Role.USER, "Hello")] * 50_000
    assert ChatTemplate(CHATML).render(Conversation(tuple(messages))).text.count("Hello") == 50_000


TIME = Tool("get_time", "The time of a city.", {"type": "object", "properties": {"city": {"type": "string"}}})
ASKS = Message(Role.USER, "Time?")
CALLS = Message(Role.ASSISTANT, None, tool_calls=(ToolCall("1", "get_time", '{"city": "Lima"}'),))


def test_tools_are_given_in_openais_shape_and_only_when_there_are_any() -> None:
    template = ChatTemplate("{{ 'none' if tools is none else tools | tojson }}")
    assert template.render(Conversation((ASKS,))).text == "none"
    text = template.render(Conversation((ASKS,), tools=(TIME, Tool("ping")))).text
    no_arguments = {"type": "object", "properties": {}}
    assert json.loads(text) == [
        {
            "type": "function",
            "function": {
                "name": "get_time",
                "description": "The time of a city.",
                "parameters": dict(TIME.parameters),
            },
        },
        {"type": "function", "function": {"name": "ping", "description": "", "parameters": no_arguments}},
    ]
    nothing = Conversation((ASKS,), tools=(TIME,), tool_choice=ToolChoice(ToolMode.NONE))
    assert template.render(nothing).text == "none"


def test_options_are_variables_and_stand_for_no_other() -> None:
    template = ChatTemplate("{{ enable_thinking }} {{ messages | length }} {{ bos_token }}", bos_text="<s>")
    options: dict[str, str | bool | int | float] = {
        "enable_thinking": False,
        "messages": "x",
        "bos_token": "y",
    }
    assert template.render(Conversation((ASKS,), template_options=options)).text == "False 1 <s>"


def test_reasoning_and_arguments_are_given_as_the_family_wants_them() -> None:
    spoken = Message(Role.ASSISTANT, None, tool_calls=CALLS.tool_calls, reasoning="hm")
    source = "{{ messages[0].thinking }} {{ messages[0].tool_calls[0].function.arguments is string }}"
    template = ChatTemplate(source)
    rendered = template.render(Conversation((spoken,)), reasoning_key="thinking", arguments_as_text=True)
    assert rendered.text == "hm True"
    assert template.render(Conversation((spoken,))).text == " False"


def test_control_tokens_in_tools_and_options_are_broken_up() -> None:
    template = ChatTemplate("{{ tools | tojson }}{{ mood }}{{ messages[0].r }}", control_texts=["<end>"])
    tool = Tool("<end>", "<end>", {"<end>": [{"x": "\u003cend>"}, "<end>", 1, None]})
    talk = Conversation(
        (Message(Role.ASSISTANT, "a", reasoning="<end>"),), (tool,), template_options={"mood": "<end>"}
    )
    rendered = template.render(talk, reasoning_key="r")
    assert "<end>" not in rendered.text
    assert rendered.text.replace(rendered.guard, "").count("<end>") == 7


@pytest.mark.parametrize(
    "talk",
    [
        Conversation((ASKS,), tools=(Tool("f", "\ufdd1"),)),
        Conversation((ASKS,), tools=(Tool("f", None, {"\ufdd1": 1}),)),
        Conversation((ASKS,), tools=(Tool("f", None, {"a": [{"b": "\ufdd1"}]}),)),
        Conversation((ASKS,), template_options={"date_string": "\ufdd1"}),
        Conversation((Message(Role.ASSISTANT, "a", reasoning="\ufdd1"),)),
        Conversation((Message(Role.ASSISTANT, "a", tool_calls=(ToolCall("1", "f", '{"\\ufdd1": 1}'),)),)),
    ],
)
def test_a_guard_character_anywhere_is_kept(talk: Conversation) -> None:
    assert ChatTemplate(CHATML, control_texts=["<|im_end|>"]).render(talk).guard != "\ufdd1"


def test_every_guard_character_at_once_is_refused() -> None:
    every = "".join(chr(code) for code in range(0xFDD0, 0xFDF0))
    with pytest.raises(InvalidRequestError, match="reserves") as caught:
        ChatTemplate(CHATML).render(Conversation((Message(Role.USER, every),), param="input"))
    assert caught.value.param == "input"


def test_an_answer_goes_on_where_the_last_message_ends() -> None:
    begun = Message(Role.ASSISTANT, "It is <|im_end|> ")
    template = ChatTemplate(CHATML, control_texts=["<|im_end|>"])
    rendered = template.render(Conversation((ASKS, begun), continues=True))
    assert rendered.text.replace(rendered.guard, "") == (
        "<|im_start|>user\nTime?<|im_end|>\n<|im_start|>assistant\nIt is <|im_end|> "
    )
    assert rendered.text.count("<|im_end|>") == 1


@pytest.mark.parametrize(
    "source", ["{{ messages[0].content }}", "{{ messages[-1].content[:2] }}", "nothing", ""]
)
def test_a_template_that_drops_the_end_cannot_continue(source: str) -> None:
    talk = Conversation((ASKS, Message(Role.ASSISTANT, "It is")), continues=True)
    with pytest.raises(InvalidRequestError, match="cannot continue") as caught:
        ChatTemplate(source).render(talk)
    assert caught.value.param == "continue_final_message"


@pytest.mark.parametrize("messages", [(), (ASKS, CALLS)])
def test_what_has_no_content_cannot_be_continued(messages: tuple[Message, ...]) -> None:
    with pytest.raises(InvalidRequestError, match="no content"):
        ChatTemplate(CHATML).render(Conversation(messages, continues=True))


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ m.content.strip() }}{{ name }}", "get_time"),
        ("{{ '[' ~ m.content ~ ']' }}{{ name }}", "[]get_time"),
        ("{{ name if m.content is none else 'lost' }}", "get_time"),
        ("{% if m.content is not none %}{{ 'A' }}{% endif %}{{ name }}", "get_time"),
    ],
    ids=["needs a text", "writes it out", "needs none", "writes more with a text"],
)
def test_calls_without_content_are_given_as_the_template_can_take_them(source: str, text: str) -> None:
    head = "{% for m in messages if m.tool_calls is defined %}{% set name = m.tool_calls[0].function.name %}"
    assert ChatTemplate(head + source + "{% endfor %}").render(Conversation((ASKS, CALLS))).text == text


def test_a_bomb_over_tools_is_refused() -> None:
    tools = tuple(Tool(f"f{number}", "x" * 1000) for number in range(128))
    source = "{% for a in tools %}" * 4 + "{{ a | tojson }}" + "{% endfor %}" * 4
    with pytest.raises(InvalidRequestError, match="more than"):
        ChatTemplate(source).render(Conversation((ASKS,), tools=tools))


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{% generation %}a{% endgeneration %}b", "ab"),
        ("{% set n = namespace(l=[]) %}{% set _ = n.l.append('a') %}{{ n.l.pop(0) }}{{ n.l }}", "a[]"),
        ("{{ '<think{}>'.format('x') }}", "<thinkx>"),
        (
            "{% for a in [1] %}{% set n = namespace(x=1) %}{% set m = namespace(y=2) %}{{ m.y }}{% endfor %}",
            "2",
        ),
    ],
)
def test_what_newer_templates_use_is_there(source: str, text: str) -> None:
    assert ChatTemplate(source).render(Conversation((ASKS,))).text == text
