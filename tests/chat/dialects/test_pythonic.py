"""Calls as Python: transcripts after what Llama's and LFM2's makers publish."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexa_runtime.chat.dialects.pythonic import Lfm2, Pythonic
from nexa_runtime.chat.messages import Conversation, Message, Role, ToolCall
from tests.chat.dialects.transcripts import LETTERS, Transcript, check, check_mutated

LIMA = ("get_weather", {"city": "Lima"})
NOW: tuple[str, object] = ("get_time", {})

WEATHER = '[get_weather(city="Lima")]'
START, END = "<|python_start|>", "<|python_end|>"


def _city(value: str) -> tuple[str, object]:
    return ("get_weather", {"city": value})


TRANSCRIPTS = [
    Transcript("content", "Hello there.\n", content="Hello there.\n"),
    Transcript("one call", WEATHER, calls=(LIMA,)),
    Transcript("space around", f" \n{WEATHER}\n", calls=(LIMA,)),
    Transcript("between markers", f"{START}{WEATHER}{END}", calls=(LIMA,)),
    Transcript("no arguments", "[get_time()]", calls=(NOW,)),
    Transcript("two calls", '[get_weather(city="Lima"), get_time( ) ]', calls=(LIMA, NOW)),
    Transcript("two blocks", f"{START}{WEATHER}{END}\n{START}[get_time()]{END}", calls=(LIMA, NOW)),
    Transcript("content first", f"I look.\n{START}{WEATHER}{END}", content="I look.", calls=(LIMA,)),
    Transcript("content after", f"{WEATHER} Done.\n", content="Done.\n", calls=(LIMA,)),
    Transcript("no marker behind content", f"So {WEATHER}", content=f"So {WEATHER}"),
    Transcript("a list", "[1, 2] is a list", content="[1, 2] is a list"),
    Transcript("a link", "[see](http://x)", content="[see](http://x)"),
    Transcript("single quotes", "[get_weather(city='L\"i')]", calls=(_city('L"i'),)),
    Transcript(
        "escapes",
        r"[get_weather(city='a\n\t\\ \' \x41\u00e9\U0001f600\ud83d\ude00 \q')]",
        calls=(_city("a\n\t\\ ' Aé😀😀 \\q"),),
    ),
    Transcript("long quotes", '[get_weather(city="""a\n"b" é""")]', calls=(_city('a\n"b" é'),)),
    Transcript("text that looks like code", '[get_weather(city="), f(x=[")]', calls=(_city("), f(x=["),)),
    Transcript("empty string", '[get_weather(city="")]', calls=(_city(""),)),
    Transcript(
        "all types",
        "[save-note_2( tags=['a',\"b\"],meta={'k': (1, -2e3, None), 7: {}, 'z': [false]}, is_pinned=True)]",
        calls=(
            (
                "save-note_2",
                {
                    "tags": ["a", "b"],
                    "meta": {"k": [1, -2e3, None], "7": {}, "z": [False]},
                    "is_pinned": True,
                },
            ),
        ),
    ),
    Transcript(
        "odd numbers",
        "[save-note_2(tags=[0x1F, 1_000, .5, 5., +3, (4), (4,), ()])]",
        calls=(("save-note_2", {"tags": [31, 1000, 0.5, 5.0, 3, 4, [4], []]}),),
    ),
    Transcript(
        "no number", "[get_weather(days=1-2)]", content="[get_weather(days=1-2)]", is_constrained=(False,)
    ),
    Transcript(
        "infinite",
        "[get_weather(days=1e999_0)]",
        content="[get_weather(days=1e999_0)]",
        is_constrained=(False,),
    ),
    Transcript(
        "a variable", "[get_weather(city=x)]", content="[get_weather(city=x)]", is_constrained=(False,)
    ),
    Transcript("by position", "[get_weather('x')]", content="[get_weather('x')]", is_constrained=(False,)),
    Transcript(
        "nested too deep",
        f"[get_time(a={'[' * 99})]",
        content=f"[get_time(a={'[' * 99})]",
        is_constrained=(False,),
    ),
    Transcript("unknown name", "[nobody(a=1)]", content="[nobody(a=1)]"),
    Transcript("unknown behind a known", "[get_time(), nobody()] x", content="nobody()] x", calls=(NOW,)),
    Transcript("cut in a value", WEATHER[:-4], content=WEATHER[:-4], is_constrained=(False,)),
    Transcript(
        "cut in the second value",
        '[get_weather(city="x", days=',
        calls=(("get_weather", '{"city": "x"'),),
        is_constrained=(True,),
    ),
    Transcript("cut behind a call", "[get_time()", calls=(NOW,)),
    Transcript("stray end", f"Hi {END} you", content=f"Hi {END} you"),
    Transcript(
        "letters of a marker",
        f"So <{LETTERS}|python_start|>{WEATHER}",
        content=f"So {START}{WEATHER}",
        are_tokens=(True,),
    ),
    Transcript("no tools", WEATHER, content=WEATHER, tools=()),
]

LFM2 = [
    Transcript(
        "reasoning and call",
        f"<think>Hm.\n</think>\n<|tool_call_start|>{WEATHER}<|tool_call_end|>Checking.",
        reasoning="Hm.",
        content="Checking.",
        calls=(LIMA,),
    ),
    Transcript("no markers", WEATHER, calls=(LIMA,)),
    Transcript("reasoning and content", "<think>Hm.</think>Hi", reasoning="Hm.", content="Hi"),
    Transcript(
        "reasoning from the prompt",
        f"Hm.</think>{WEATHER}",
        reasoning="Hm.",
        calls=(LIMA,),
        is_reasoning=True,
    ),
    Transcript("unclosed reasoning", f"<think>{WEATHER}", reasoning=WEATHER),
    Transcript("one call", f"<|tool_call_start|>{WEATHER}<|tool_call_end|>", calls=(LIMA,)),
    Transcript("content", "Hello there.\n", content="Hello there.\n"),
    Transcript("empty", ""),
    Transcript(
        "content first",
        f"I look.\n<|tool_call_start|>{WEATHER}<|tool_call_end|>",
        content="I look.",
        calls=(LIMA,),
    ),
    Transcript(
        "other signs",
        '<|tool_call_start|>[get_weather(city="Ñuñoa \\"<1>\\" 🙂")]<|tool_call_end|>',
        calls=(("get_weather", {"city": 'Ñuñoa "<1>" 🙂'}),),
    ),
    Transcript("a list of words", "[one, two]", content="[one, two]"),
    Transcript("no tools", WEATHER, content=WEATHER, tools=()),
]


@pytest.mark.parametrize("transcript", LFM2, ids=str)
def test_lfm2(transcript: Transcript) -> None:
    check(Lfm2, transcript)


def test_calls_become_content_where_the_template_knows_none() -> None:
    call = ToolCall("1", "f", '{"a": "x \\"y\\"", "b": [1, true], "c": false, "d": null}')
    turns = (
        Message(Role.USER, "Hi"),
        Message(Role.ASSISTANT, None, tool_calls=(call, ToolCall("2", "g", "{}"))),
    )
    user, assistant = Lfm2({}).prepare(Conversation(turns)).messages
    assert user is turns[0]
    assert assistant.tool_calls == ()
    assert assistant.content == (
        '<|tool_call_start|>[f(a="x \\"y\\"", b=[1, true], c=False, d=None), g()]<|tool_call_end|>'
    )
    assert Lfm2({}, "{{ message.tool_calls }}").prepare(Conversation(turns)).messages == turns


@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=str)
def test_transcripts(transcript: Transcript) -> None:
    check(Pythonic, transcript)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_whatever_comes(seed: int) -> None:
    check_mutated(Pythonic, [one for one in TRANSCRIPTS if one.text and one.tools], seed, dropped=())
