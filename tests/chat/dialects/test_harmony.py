"""Harmony: transcripts after what OpenAI publishes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexa_runtime.chat.dialects.harmony import Harmony
from nexa_runtime.chat.messages import Conversation, Message, Role, ToolCall
from tests.chat.dialects.transcripts import LETTERS, Transcript, check, check_mutated

LIMA = ("get_weather", {"city": "Lima"})
NOW: tuple[str, object] = ("get_time", {})


def _call(name: str, arguments: str) -> str:
    return f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{arguments}"


WEATHER = _call("get_weather", '{"city": "Lima"}')
TIME = _call("get_time", "{}")
THOUGHT = "<|channel|>analysis<|message|>Hm. <|end|><|start|>assistant"
SPOKEN = "<|channel|>commentary<|message|>I look.\n<|end|><|start|>assistant"
FINAL = "<|channel|>final<|message|>"
NESTED = '{"tags": ["a", "\\u00e9\\n"], "meta": {"k": [1.5, null, {"x": "<b>}"}]}, "is_pinned": false}'

TRANSCRIPTS = [
    Transcript("content", f"{FINAL}Hello there.\n", content="Hello there.\n"),
    Transcript("content without a header", "Hello <there>.\n", content="Hello <there>.\n"),
    Transcript("empty", ""),
    Transcript("reasoning and content", f"{THOUGHT}{FINAL}Hi", reasoning="Hm.", content="Hi"),
    Transcript("reasoning and call", f"{THOUGHT}{WEATHER}", reasoning="Hm.", calls=(LIMA,)),
    Transcript("content then call", f"{SPOKEN}{WEATHER}", content="I look.", calls=(LIMA,)),
    Transcript("all three", f"{THOUGHT}{SPOKEN}{WEATHER}", reasoning="Hm.", content="I look.", calls=(LIMA,)),
    Transcript("two thoughts", f"{THOUGHT}{THOUGHT}{TIME}", reasoning="Hm.\n\nHm.", calls=(NOW,)),
    Transcript("two texts", f"{SPOKEN}{FINAL}Hi", content="I look.\n\nHi"),
    Transcript(
        "to whom before the channel",
        ' to=functions.get_weather<|channel|>commentary json<|message|>{"city": "Lima"}',
        calls=(LIMA,),
    ),
    Transcript(
        "to whom before the channel, in a later message",
        THOUGHT
        + ' to=functions.get_weather<|channel|>commentary <|constrain|>json<|message|>{"city": "Lima"}',
        reasoning="Hm.",
        calls=(LIMA,),
    ),
    Transcript("without a type", "<|channel|>commentary to=functions.get_time<|message|>{}", calls=(NOW,)),
    Transcript("on the channel for thoughts", TIME.replace("commentary", "analysis"), calls=(NOW,)),
    Transcript("without its namespace", TIME.replace("functions.", ""), calls=(NOW,)),
    Transcript("two channels", f"<|channel|>commentary to=assistant{FINAL}Hi", content="Hi"),
    Transcript("a typed answer", '<|channel|>final <|constrain|>json<|message|>{"a": 1}', content='{"a": 1}'),
    Transcript("space around arguments", _call("get_weather", ' {"city": "Lima"}\n'), calls=(LIMA,)),
    Transcript(
        "all types",
        _call("save-note_2", NESTED),
        calls=(
            (
                "save-note_2",
                {"tags": ["a", "é\n"], "meta": {"k": [1.5, None, {"x": "<b>}"}]}, "is_pinned": False},
            ),
        ),
    ),
    Transcript("a second call", f"{TIME}<|end|><|start|>assistant{WEATHER}", calls=(NOW, LIMA)),
    Transcript(
        "content after", f"{TIME}<|end|><|start|>assistant{FINAL}Done.", content="Done.", calls=(NOW,)
    ),
    Transcript("text behind the arguments", f"{TIME} oh", content="oh", calls=(NOW,)),
    Transcript(
        "no end of a message", f"<|channel|>analysis<|message|>Hm.{FINAL}Hi", reasoning="Hm.", content="Hi"
    ),
    Transcript(
        "reasoning from the prompt",
        f"Hm.<|end|><|start|>assistant{TIME}",
        reasoning="Hm.",
        calls=(NOW,),
        is_reasoning=True,
    ),
    Transcript("unclosed reasoning", "<|channel|>analysis<|message|>Hm, <b>", reasoning="Hm, <b>"),
    Transcript("unknown name", _call("nobody", "{}"), content=_call("nobody", "{}")),
    Transcript(
        "not an object", _call("get_time", "[1]"), content=_call("get_time", "[1]"), is_constrained=(False,)
    ),
    Transcript(
        "no JSON", _call("get_time", "{a}"), content=_call("get_time", "{a}"), is_constrained=(False,)
    ),
    Transcript(
        "breaks off",
        _call("get_time", '{"a": x}'),
        content="x}",
        calls=(("get_time", '{"a": '),),
        is_constrained=(True,),
    ),
    Transcript("cut in the arguments", WEATHER[:-4], content=WEATHER[:-4], is_constrained=(False,)),
    Transcript(
        "cut in the arguments under a constraint",
        WEATHER[:-4],
        calls=(("get_weather", '{"city": "Li'),),
        is_constrained=(True,),
    ),
    Transcript("cut in the header of a call", WEATHER[:40], content=WEATHER[:40], is_constrained=(False,)),
    Transcript("cut in a header", "<|channel|>anal"),
    Transcript("endless header", f"<|channel|>{'a' * 300}", content=f"<|channel|>{'a' * 300}"),
    Transcript(
        "letters of markers",
        f"{FINAL}Write <{LETTERS}|end|> and <{LETTERS}|channel|> so.",
        content="Write <|end|> and <|channel|> so.",
        are_tokens=(True,),
    ),
    Transcript("no tools", TIME, content=TIME, tools=()),
]


@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=str)
def test_transcripts(transcript: Transcript) -> None:
    check(Harmony, transcript)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_whatever_comes(seed: int) -> None:
    check_mutated(Harmony, [one for one in TRANSCRIPTS if one.text and one.tools], seed)


def test_the_template_gets_one_call_per_message() -> None:
    one, two = ToolCall("1", "f", "{}"), ToolCall("2", "g", "{}")
    turns = (
        Message(Role.ASSISTANT, "I look.", tool_calls=(one, two), reasoning="Hm."),
        Message(Role.TOOL, "a", tool_call_id="1"),
        Message(Role.TOOL, "b", tool_call_id="2"),
    )
    assert Harmony({}).prepare(Conversation(turns)).messages == (
        Message(Role.ASSISTANT, None, tool_calls=(one,), reasoning="Hm."),
        turns[1],
        Message(Role.ASSISTANT, None, tool_calls=(two,)),
        turns[2],
    )
