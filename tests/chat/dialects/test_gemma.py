"""Gemma 4 and FunctionGemma: transcripts after the published templates."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexa_runtime.chat.dialects.gemma import FunctionGemma, Gemma4
from tests.chat.dialects.transcripts import LETTERS, Transcript, check, check_mutated

LIMA = ("get_weather", {"city": "Lima"})
NOW: tuple[str, object] = ("get_time", {})
Q = '<|"|>'


def _call(name: str, arguments: str) -> str:
    return f"<|tool_call>call:{name}{{{arguments}}}<tool_call|>"


WEATHER = _call("get_weather", f"city:{Q}Lima{Q}")
TIME = _call("get_time", "")
TRICKY = 'São "Paulo"\n \\ {b},x:1 ☃ '
ALL = f"is_pinned:false,meta:{{k:[1.5,null,{{x:{Q}<b>}}{Q}}}],{Q}a b{Q}:{{}}}},tags:[{Q}a{Q},{Q}{Q}]"

TRANSCRIPTS = [
    Transcript("content", "Hello there.\n", content="Hello there.\n"),
    Transcript("one call", WEATHER, calls=(LIMA,)),
    Transcript("no arguments", TIME, calls=(NOW,)),
    Transcript("two calls", f"{WEATHER}{TIME}", calls=(LIMA, NOW)),
    Transcript("two calls with space", f"{WEATHER}\n{TIME}", calls=(LIMA, NOW)),
    Transcript("content first", f"I look.\n{WEATHER}", content="I look.", calls=(LIMA,)),
    Transcript("content after", f"{WEATHER} Done.\n", content="Done.\n", calls=(LIMA,)),
    Transcript(
        "reasoning and call", f"<|channel>thought\nHm.\n<channel|>{TIME}", reasoning="Hm.", calls=(NOW,)
    ),
    Transcript("reasoning and content", "<|channel>thought\nHm.<channel|>Hi", reasoning="Hm.", content="Hi"),
    Transcript("no reasoning", "<|channel>thought\n<channel|>Hi", content="Hi"),
    Transcript(
        "reasoning from the prompt", f"Hm.<channel|>{TIME}", reasoning="Hm.", calls=(NOW,), is_reasoning=True
    ),
    Transcript("unclosed reasoning", "<|channel>thought\nHm, <b>", reasoning="Hm, <b>"),
    Transcript(
        "text with everything",
        _call("get_weather", f"city:{Q}{TRICKY}{Q}"),
        calls=(("get_weather", {"city": TRICKY}),),
    ),
    Transcript(
        "all types",
        _call("save-note_2", ALL),
        calls=(
            (
                "save-note_2",
                {"is_pinned": False, "meta": {"k": [1.5, None, {"x": "<b>}"}], "a b": {}}, "tags": ["a", ""]},
            ),
        ),
    ),
    Transcript(
        "space inside",
        _call("get_weather", f" city : {Q}x{Q} , days : -2 "),
        calls=(("get_weather", {"city": "x", "days": -2}),),
    ),
    Transcript(
        "constants as Python has them",
        _call("save-note_2", "is_pinned:True,meta:{k:None}"),
        calls=(("save-note_2", {"is_pinned": True, "meta": {"k": None}}),),
    ),
    Transcript(
        "no quotes",
        _call("get_weather", "city:Lima"),
        content=_call("get_weather", "city:Lima"),
        is_constrained=(False,),
    ),
    Transcript(
        "no comma",
        _call("get_weather", "a:1 b:2"),
        content=_call("get_weather", "a:1 b:2"),
        is_constrained=(False,),
    ),
    Transcript(
        "nested too deep",
        _call("get_time", f"a:{'[' * 99}"),
        content=_call("get_time", f"a:{'[' * 99}"),
        is_constrained=(False,),
    ),
    Transcript("unknown name", f"So {_call('nobody', 'a:1')}", content=f"So {_call('nobody', 'a:1')}"),
    Transcript("no call", "<|tool_call>what<tool_call|>", content="<|tool_call>what<tool_call|>"),
    Transcript(
        "breaks off",
        _call("get_weather", "days:1;"),
        content=";}<tool_call|>",
        calls=(("get_weather", '{"days": 1'),),
        is_constrained=(True,),
    ),
    Transcript(
        "cut in a value",
        WEATHER[: WEATHER.index("ma<")],
        content=WEATHER[: WEATHER.index("ma<")],
        is_constrained=(False,),
    ),
    Transcript(
        "cut in a value under a constraint",
        WEATHER[: WEATHER.index("ma<")],
        calls=(("get_weather", '{"city": "Li'),),
        is_constrained=(True,),
    ),
    Transcript("cut behind the arguments", TIME[:-12], calls=(NOW,)),
    Transcript("stray end", "Hi <tool_call|> you", content="Hi <tool_call|> you"),
    Transcript(
        "letters of a marker",
        f"So <{LETTERS}|tool_call> {TIME}",
        content="So <|tool_call>",
        calls=(NOW,),
        are_tokens=(True,),
    ),
    Transcript(
        "letters of a marker in a value",
        _call("get_weather", f'city:{Q}<{LETTERS}|"|>{Q}'),
        calls=(("get_weather", {"city": Q}),),
        are_tokens=(True,),
    ),
    Transcript("no tools", WEATHER, content=WEATHER, tools=()),
]


@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=str)
def test_function_gemma(transcript: Transcript) -> None:
    """The same with other marks, and no reasoning."""
    text, content = transcript.text, transcript.content
    if "channel" in text:
        return
    for old, new in zip(Gemma4.markers, FunctionGemma.markers, strict=False):
        text, content = text.replace(old, new), content.replace(old, new)
    if LETTERS not in text:
        check(FunctionGemma, replace(transcript, text=text, content=content))


@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=str)
def test_transcripts(transcript: Transcript) -> None:
    check(Gemma4, transcript)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_whatever_comes(seed: int) -> None:
    check_mutated(
        Gemma4,
        [one for one in TRANSCRIPTS if one.text and one.tools],
        seed,
        dropped=("<|channel>thought", "<channel|>"),
    )
