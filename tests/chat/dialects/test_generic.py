"""The way of our own: its answers, and the words that ask a model for them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexa_runtime.chat.dialects.base import MARK
from nexa_runtime.chat.dialects.generic import Generic
from nexa_runtime.chat.dialects.json_scan import Unescaper, text_of
from nexa_runtime.chat.messages import Conversation, Message, Role, ToolCall, ToolChoice, ToolMode
from tests.chat.dialects.common import LIMA, NESTED, TIME, UNICODE
from tests.chat.dialects.transcripts import TOOLS, Transcript, check, check_mutated, pieces

ONE = '{"name": "get_weather", "arguments": {"city": "Lima"}}'
TWO = '{"name": "get_time", "arguments": {}}'
SAID = r"¿Qué? \"\u00e9\ud83d\ude00\"\n\t\/ \\ }"

TRANSCRIPTS = [
    Transcript("plain content", "Hello! \n", content="Hello! \n"),
    Transcript("one call", f'{{"tool_calls": [{ONE}]}}', calls=(LIMA,)),
    Transcript("two calls", f' {{ "tool_calls" : [ {ONE} ,\n{TWO} ] }} \n', calls=(LIMA, TIME)),
    Transcript("a response", '{"response": "Hi"}\n', content="Hi"),
    Transcript("an empty response", '{"response": ""}'),
    Transcript(
        "escapes in a response", f'{{"response": "{SAID}"}}', content='¿Qué? "é\U0001f600"\n\t/ \\ }'
    ),
    Transcript("space in a response", '{ "response" :" a\\n "} ', content=" a\n "),
    Transcript(
        "unicode",
        f'{{"tool_calls": [{{"name": "save-note_2", "arguments": {UNICODE}}}]}}',
        calls=(("save-note_2", {"text": '¿Qué? "é\U0001f600" \\ } ]``` </x> 日本'}),),
    ),
    Transcript(
        "nested",
        f'{{"tool_calls": [{{"arguments": {NESTED}, "name": "save-note_2"}}]}}',
        calls=(
            (
                "save-note_2",
                {"tags": ["a", "b"], "meta": {"a": [{"b": -1500.0}], "c": None}, "is_pinned": True},
            ),
        ),
    ),
    *(
        Transcript(f"other JSON: {text}", text, content=text)
        for text in (
            "{}", '{"a": 1}', '{"tool_calls": []}', '{"tool_calls": {}}', '{"response": 1}', "[1]",
            '"a"', '{"tool_calls": [{"name": "rm", "arguments": {}}]}', '{"response" "a"}',
        )
    ),
    *(
        Transcript(f"cut in the beginning: {text}", text, content=text, is_constrained=(False,))
        for text in ("{", '{"tool_c', '{"tool_calls": [{"name": "get_w')
    ),
    *(
        Transcript(f"cut in the beginning, constrained: {text}", text, is_constrained=(True,))
        for text in ("{", '{"tool_c', '{"tool_calls": [{"name": "get_w', '{"response": ')
    ),
    Transcript("malformed", '{"response": "a" b', content='{"response": "a" b', is_constrained=(False,)),
    Transcript("cut, free", '{"response": "a\\n', content='{"response": "a\\n', is_constrained=(False,)),
    Transcript("cut, constrained", '{"response": "a\\n\\u00', content="a\n", is_constrained=(True,)),
    Transcript("cut in a call, free", f'{{"tool_calls": [{ONE[:-4]}', f'{{"tool_calls": [{ONE[:-4]}',
               is_constrained=(False,)),
    Transcript("cut in a call, constrained", f'{{"tool_calls": [{ONE[:-4]}',
               calls=(("get_weather", '{"city": "Lim'),), is_constrained=(True,)),
    Transcript("cut behind a call", f'{{"tool_calls": [{ONE}', calls=(LIMA,)),
    Transcript("text after a call", f'{{"tool_calls": [{ONE}]}} So.', content="So.", calls=(LIMA,)),
    Transcript("no tools", '{"response": "a"}', content='{"response": "a"}', tools=()),
]  # fmt: skip


@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=str)
def test_transcripts(transcript: Transcript) -> None:
    check(Generic, transcript)


@given(st.integers(0, 2**32))
def test_whatever_comes(seed: int) -> None:
    check_mutated(Generic, TRANSCRIPTS, seed)


@given(
    st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters=MARK)),
    st.booleans(),
    st.integers(0, 9),
)
def test_a_string_unescaped_as_it_comes(text: str, is_ascii: bool, seed: int) -> None:
    raw = json.dumps(text, ensure_ascii=is_ascii)
    for cuts in ([raw], pieces(raw), pieces(raw, seed)):
        unescaper = Unescaper()
        assert "".join(unescaper.add(cut) for cut in cuts) == text


@given(
    st.lists(st.sampled_from([r"\ud83d", r"\ude00", r"\u0041", "a", r"\n", r"\\", r"\""])), st.integers(0, 9)
)
def test_halves_of_pairs_do_not_depend_on_the_cuts(parts: list[str], seed: int) -> None:
    raw = f'"{"".join(parts)}"'
    for cuts in ([raw], pieces(raw), pieces(raw, seed)):
        unescaper = Unescaper()
        assert "".join(unescaper.add(cut) for cut in cuts) == text_of(raw)


CALL = ToolCall("call_1", "get_time", '{"a": "é"}')
TURNS = (
    Message(Role.USER, "When?"),
    Message(Role.ASSISTANT, "Well.", tool_calls=(CALL, ToolCall("call_2", "get_weather", "oops"))),
    Message(Role.TOOL, "14:05", tool_call_id="call_1"),
    Message(Role.TOOL, "rain", tool_call_id="call_2"),
    Message(Role.ASSISTANT, "Now."),
)


def test_turns_become_plain() -> None:
    system, *turns = Generic({}).prepare(Conversation(TURNS, TOOLS)).messages
    assert [(one.role, one.content, one.tool_calls) for one in turns] == [
        (Role.USER, "When?", ()),
        (
            Role.ASSISTANT,
            'Well.\n{"tool_calls": [{"name": "get_time", "arguments": {"a": "é"}}, '
            '{"name": "get_weather", "arguments": "oops"}]}',
            (),
        ),
        (Role.USER, "Result of get_time: 14:05\nResult of get_weather: rain", ()),
        (Role.ASSISTANT, "Now.", ()),
    ]
    assert system.role is Role.SYSTEM
    assert system.content is not None
    assert all(f'"name": "{tool.name}"' in system.content for tool in TOOLS)
    assert '{"response": "WORDS"}' in system.content


def test_the_users_next_word_joins_what_tools_said() -> None:
    messages = (*TURNS[:4], Message(Role.USER, "And?"))
    *_, last = Generic({}).prepare(Conversation(messages)).messages
    assert last == Message(Role.USER, "Result of get_time: 14:05\nResult of get_weather: rain\nAnd?")


def test_where_the_tools_are_told() -> None:
    hello = Message(Role.USER, "Hi")
    told = Generic({}).prepare(Conversation((Message(Role.SYSTEM, "Be kind."), hello), TOOLS))
    assert len(told.messages) == 2
    assert not told.tools
    assert (told.messages[0].content or "").startswith("Be kind.\n\nYou may call")
    refusing = Generic({}, "{{ raise_exception('System role not supported') }}")
    (only,) = refusing.prepare(Conversation((hello,), TOOLS)).messages
    assert only.role is Role.USER
    assert (only.content or "").endswith("\n\nHi")
    for tools, mode in (((), ToolMode.AUTO), (TOOLS, ToolMode.NONE)):
        untold = Conversation((hello,), tools, ToolChoice(mode))
        assert Generic({}).prepare(untold).messages == (hello,)
