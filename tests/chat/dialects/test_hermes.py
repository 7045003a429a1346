"""Hermes' tags, as Qwen's and many other models write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexa_runtime.chat.dialects.base import CallDelta, ChatDelta
from nexa_runtime.chat.dialects.hermes import Hermes
from nexa_runtime.chat.messages import Conversation, Message, Role
from tests.chat.dialects.transcripts import LETTERS, TOOLS, Transcript, check, check_mutated

LIMA = ("get_weather", {"city": "Lima"})
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Lima"}}\n</tool_call>'
CUT = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Li'

TRANSCRIPTS = [
    Transcript("nothing", ""),
    Transcript("plain content", "Hello!\nHow are you? \n", content="Hello!\nHow are you? \n"),
    Transcript("one call", CALL, calls=(LIMA,)),
    Transcript(
        "two calls",
        f'{CALL}\n<tool_call>\n{{"name": "get_time", "arguments": {{}}}}\n</tool_call>\n',
        calls=(LIMA, ("get_time", {})),
    ),
    Transcript("content, then a call", f"Let me look. \n\n{CALL}", content="Let me look.", calls=(LIMA,)),
    Transcript("text after a call", f"{CALL}\nThere.\n", content="There.\n", calls=(LIMA,)),
    Transcript("reasoning, then content", "<think>\nHm.\n</think>\n\nHi", reasoning="Hm.", content="Hi"),
    Transcript(
        "reasoning, then a call", f"\n<think>Hm?\n\n</think>\n{CALL}", reasoning="Hm?", calls=(LIMA,)
    ),
    Transcript("empty reasoning", "<think>\n\n</think>\n\nHi", content="Hi"),
    Transcript(
        "reasoning that the prompt opened",
        f"Hm, <tool_call>?\n</think>{CALL}",
        reasoning="Hm, <tool_call>?",
        calls=(LIMA,),
        is_reasoning=True,
    ),
    Transcript("reasoning without end", "<think>Hm \n", reasoning="Hm \n"),
    Transcript("reasoning cut in its end", "<think>Hm</thi", reasoning="Hm</thi"),
    Transcript("reasoning cut in its beginning", "<thi", content="<thi"),
    Transcript("no reasoning behind content", "Hi <think>", content="Hi <think>"),
    Transcript(
        "unicode, escapes and braces in arguments",
        '<tool_call>{"name":"save-note_2","arguments":'
        r'{"text":"¿Qué? \"\u00e9\ud83d\ude00\" \\ } </x> 日本"}}</tool_call>',
        calls=(("save-note_2", {"text": '¿Qué? "é\U0001f600" \\ } </x> 日本'}),),
    ),
    Transcript(
        "nested arguments, laid out",
        '<tool_call>\n{\n "arguments" : {\n "tags": ["a", "b"],"meta": {"a": [{"b": -1.5e3}], "c": null}},\n'
        '  "name": "save-note_2" }\n</tool_call>',
        calls=(("save-note_2", {"tags": ["a", "b"], "meta": {"a": [{"b": -1500.0}], "c": None}}),),
    ),
    Transcript(
        "a call in OpenAI's form",
        '<tool_call>{"id": "x", "type": "function", "function": {"name": "get_weather", "arguments": '
        '"{\\"city\\": \\"Lima\\"}"}}</tool_call>',
        calls=(LIMA,),
    ),
    Transcript("a list of calls", f"<tool_call>[{CALL[12:-13]}, {CALL[12:-13]}]", calls=(LIMA, LIMA)),
    Transcript(
        "no arguments at all", '<tool_call>{"name": "get_time"}</tool_call>', calls=(("get_time", {}),)
    ),
    Transcript("no end tag", f"{CALL[:-12]}", calls=(LIMA,)),
    Transcript(
        "an unknown name",
        'Hi \n<tool_call>\n{"name": "rm", "arguments": {}}\n</tool_call> ',
        content='Hi \n<tool_call>\n{"name": "rm", "arguments": {}}\n</tool_call> ',
    ),
    Transcript(
        "one of them unknown",
        f'{CALL}\n<tool_call>\n{{"name": "rm"}}\n</tool_call>\n{CALL}',
        content='<tool_call>\n{"name": "rm"}\n</tool_call>',
        calls=(LIMA, LIMA),
    ),
    *(
        Transcript(f"malformed: {one}", text := f"Hi <tool_call>{one}</tool_call>", text)
        for one in (
            "", "{}", "[]", "get_time", '"get_time"', "{'name': 'get_time'}", '{"arguments": {}}',
            '{"name": 1, "arguments": {}}', '{"name" "get_time"}', '{"arguments": [], "name": "get_time"}',
            '{"function": "get_time"}', '{"arguments": "[]", "name": "get_time"}', '{"arguments": {"a":}, ',
        )
    ),
    *(
        Transcript(
            f"malformed behind the name: {text}",
            f"Hi <tool_call>{text}</tool_call>",
            f"Hi <tool_call>{text}</tool_call>",
            is_constrained=(False,),
        )
        for text in (
            '{"name": "get_time", "arguments": 1}', '{"name": "get_time", "arguments": {"a": 1,}}',
            '{"name": "get_time", "arguments": {}, "arguments": {}}',
            '{"name": "get_time", "name": "get_time"}',
            '{"name": "get_time", "arguments": "oops"}', '{"name": "get_time", "arguments": {}, }',
            '{"name": "get_weather", "arguments": {"city": "Lima"}',
        )
    ),
    Transcript("cut, free", f"Hi {CUT}", content=f"Hi {CUT}", is_constrained=(False,)),
    Transcript(
        "cut, constrained", f"Hi {CUT}", "Hi",
        calls=(("get_weather", '{"city": "Li'),), is_constrained=(True,),
    ),
    Transcript("cut in the name", CUT[:30], content=CUT[:30], is_constrained=(False,)),
    *(
        Transcript(f"cut in the opening, forced: {end}", CUT[:end],
                   is_constrained=(True,), are_tokens=(False,))
        for end in range(1, CUT.index("weather") + 6)
    ),
    Transcript("cut in the opening behind words", f"Hi \n{CUT[:30]}", content="Hi", is_constrained=(True,)),
    Transcript(
        "cut in the opening of the second",
        f"{CALL}\n{CUT[:30]}",
        calls=(LIMA,),
        is_constrained=(True,),
    ),
    Transcript("cut in the tag", "Hi <tool_", content="Hi <tool_"),
    Transcript(
        "broken off, constrained",
        '<tool_call>{"name": "get_weather", "arguments": {"city": }} so',
        content="}} so",
        calls=(("get_weather", '{"city": '),),
        is_constrained=(True,),
    ),
    Transcript("stray ends", "a </tool_call> b</think>", content="a </tool_call> b</think>"),
    Transcript("a double end", f"{CALL}</tool_call>", content="</tool_call>", calls=(LIMA,)),
    Transcript(
        "a tag behind a broken call",
        f'<tool_call>{{"name": <tool_call>{CALL}',
        content='<tool_call>{"name": <tool_call>',
        calls=(LIMA,),
    ),
    Transcript(
        "letters are no tokens",
        f"<{LETTERS}think>a</think>" + CALL.replace("<", "<" + LETTERS),
        content=f"<think>a</think>{CALL}",
        are_tokens=(True,),
    ),
    Transcript("no tools", f"<think>a</think>{CALL}\n", content=f"{CALL}\n", reasoning="a", tools=()),
]  # fmt: skip


@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=str)
def test_transcripts(transcript: Transcript) -> None:
    check(Hermes, transcript)


@given(st.integers(0, 2**32))
def test_whatever_comes(seed: int) -> None:
    check_mutated(Hermes, TRANSCRIPTS, seed, dropped=["<think>"])


def test_when_the_parts_of_an_answer_are_handed_on() -> None:
    for is_constrained in (False, True):
        parser = Hermes({}).parser(TOOLS, is_constrained=is_constrained)
        assert parser.feed("Hi, \n") == [ChatDelta("Hi,")]
        assert parser.feed('there.\n<tool_call>{"name": "get_') == [ChatDelta(" \nthere.")]
        began = parser.feed('weather", "arguments": {"city"')
        went_on = parser.feed(': "L')
        assert parser.feed("") == []
        ended = parser.feed('ima"}}</')
        ids = [delta.call.id for delta in began + ended if delta.call]
        call = ChatDelta(call=CallDelta(0, '{"city": "Lima"}', ids[0], "get_weather"))
        if is_constrained:
            assert began == [ChatDelta(call=CallDelta(0, '{"city"', ids[0], "get_weather"))]
            assert went_on == [ChatDelta(call=CallDelta(0, ': "L'))]
            assert ended == [ChatDelta(call=CallDelta(0, 'ima"}'))]
        else:
            assert (began, went_on, ended) == ([], [], [call])
        assert parser.finish() == ([] if is_constrained else [ChatDelta("</")])
        assert parser.finish() == []


def test_no_template_meets_a_message_without_content() -> None:
    conversation = Conversation((Message(Role.USER, "Hi"), Message(Role.ASSISTANT, None)))
    assert [one.content for one in Hermes({}).prepare(conversation).messages] == ["Hi", ""]
