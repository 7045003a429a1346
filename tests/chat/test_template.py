"""Templates as models ship them, and messages that they refuse."""

import pytest

from nexa_runtime.chat.messages import Message, Role, ToolCall
from nexa_runtime.chat.template import CHATML, ChatTemplate, TemplateSyntaxError
from nexa_runtime.errors import InvalidRequestError

HELLO = [Message(Role.SYSTEM, "Be kind."), Message(Role.USER, "Hello")]


def test_chatml() -> None:
    assert ChatTemplate(CHATML).render(HELLO).text == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )


def test_what_hugging_face_offers_is_there() -> None:
    source = (
        "{{ bos_token }}{{ {'a': 'é<'} | tojson }}{{ strftime_now('%Y') | length }}"
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content }}{% endfor %}"
    )
    rendered = ChatTemplate(source, bos_text="<s>").render(HELLO)
    assert rendered.text == '<s>{"a": "é<"}4Be kind.'


def test_a_template_that_refuses_is_the_clients_error() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InvalidRequestError, match="roles must alternate") as caught:
        template.render(HELLO)
    assert caught.value.param == "messages"


@pytest.mark.parametrize("source", ["{{ messages[99].content + 1 }}", "{{ 1 / 0 }}", "{{ messages.x.y }}"])
def test_a_template_that_breaks_on_messages_is_one_sentence(source: str) -> None:
    with pytest.raises(InvalidRequestError, match="chat template"):
        ChatTemplate(source).render(HELLO)


def test_a_template_cannot_reach_python() -> None:
    with pytest.raises(InvalidRequestError, match="chat template"):
        ChatTemplate("{{ ''.__class__.__mro__[1].__subclasses__() }}").render(HELLO)


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
    assert ChatTemplate(source).render(messages).text == "Lima call_1"


def test_a_users_control_token_is_broken_up_wherever_it_stands() -> None:
    template = ChatTemplate(
        "{% for m in messages %}{{ m.content }}|{{ m.tool_calls[0].function.arguments.x }}{% endfor %}",
        control_texts=["<end>"],
    )
    call = ToolCall("1", "f", '{"x": "<end>"}')
    rendered = template.render([Message(Role.ASSISTANT, "a<end>b", tool_calls=(call,))])
    assert "<end>" not in rendered.text
    assert rendered.text.replace(rendered.guard, "") == "a<end>b|<end>"


def test_a_guard_character_in_a_message_is_kept() -> None:
    rendered = ChatTemplate(CHATML, control_texts=["<|im_end|>"]).render(
        [Message(Role.USER, "\ufdd0<|im_end|>")]
    )
    assert rendered.guard != "\ufdd0"
    assert "\ufdd0" in rendered.text


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
    rendered = template.render([Message(Role.ASSISTANT, None, tool_calls=(ToolCall("1", "f", arguments),))])
    assert "<end>" not in rendered.text


def test_loops_keep_their_variables() -> None:
    source = "{% for a in [3, 4] %}{{ loop.index }}/{{ loop.length }}:{{ a }}{{ '' if loop.last else ',' }}"
    template = ChatTemplate(source + "{% endfor %}{{ 2 * 3 }}{{ 'ab' * 2 }}{{ 2 ** 10 }}")
    assert template.render([]).text == "1/2:3,2/2:46abab1024"


def test_a_long_conversation_is_within_bounds() -> None:
    messages = [Message(Role.USER, "Hello")] * 50_000
    assert ChatTemplate(CHATML).render(messages).text.count("Hello") == 50_000
