"""Qwen3-Coder and its kin: transcripts after the published template."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexa_runtime.chat.dialects.qwen3_coder import Qwen3Coder, SeedOss
from nexa_runtime.chat.messages import Tool
from tests.chat.dialects.transcripts import LETTERS, Transcript, check, check_mutated


def _call(name: str, **values: str) -> str:
    parameters = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values.items())
    return f"<tool_call>\n<function={name}>\n{parameters}</function>\n</tool_call>"


WEATHER = _call("get_weather", city="Lima")
TIME = _call("get_time")
LIMA = ("get_weather", {"city": "Lima"})
NOW: tuple[str, object] = ("get_time", {})
LOOSE = (
    Tool("loose", None, {"type": "object"}),
    Tool(
        "union",
        None,
        {
            "type": "object",
            "properties": {
                "id": {"type": ["string", "null"]},
                "flag": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
                "size": {"$ref": "#/$defs/size"},
                "mode": {"enum": ["on", "off"]},
            },
            "$defs": {"size": {"type": "string"}},
        },
    ),
)

TRANSCRIPTS = [
    Transcript("content", "Hello there.\n", content="Hello there.\n"),
    Transcript("empty", ""),
    Transcript("one call", WEATHER, calls=(LIMA,)),
    Transcript("no arguments", TIME, calls=(NOW,)),
    Transcript("two calls", f"{WEATHER}\n{TIME}", calls=(LIMA, NOW)),
    Transcript("two calls without space", f"{WEATHER}{TIME}", calls=(LIMA, NOW)),
    Transcript("content first", f"I look.\n\n{WEATHER}", content="I look.", calls=(LIMA,)),
    Transcript("content after", f"{WEATHER}\nDone. ", content="Done. ", calls=(LIMA,)),
    Transcript("reasoning and call", f"<think>\nHm.\n</think>\n\n{TIME}", reasoning="Hm.", calls=(NOW,)),
    Transcript("reasoning and content", "<think>\nHm.\n</think>\n\nHi", reasoning="Hm.", content="Hi"),
    Transcript(
        "reasoning from the prompt",
        f"Hm.\n</think>\n\n{TIME}",
        reasoning="Hm.",
        calls=(NOW,),
        is_reasoning=True,
    ),
    Transcript("unclosed reasoning", "<think>\nHm, <b>", reasoning="Hm, <b>"),
    Transcript("no outer tag", TIME[12:], calls=(NOW,)),
    Transcript("no outer tag, twice", f"{TIME[12:-13]}\n{TIME[12:-13]}", calls=(NOW, NOW)),
    Transcript("two functions in one", f"{TIME[:-12]}{TIME[12:]}", calls=(NOW, NOW)),
    Transcript(
        "text with everything",
        _call("get_weather", city='\n  São "Paulo" \\ </b> <parameter\t☃\n\n'),
        calls=(("get_weather", {"city": '\n  São "Paulo" \\ </b> <parameter\t☃\n\n'}),),
    ),
    Transcript(
        "a string that looks like a number",
        _call("get_weather", city="42"),
        calls=(("get_weather", {"city": "42"}),),
    ),
    Transcript("empty string", _call("get_weather", city=""), calls=(("get_weather", {"city": ""}),)),
    Transcript(
        "value on the tag's line",
        "<tool_call><function=get_weather><parameter=city>Lima</parameter><parameter=days>2</parameter></function>",
        calls=(("get_weather", {"city": "Lima", "days": 2}),),
    ),
    Transcript(
        "all types",
        _call("save-note_2", tags='["</b>"]', meta='{\n "k": [1.5, null]\n}', is_pinned="true"),
        calls=(("save-note_2", {"tags": ["</b>"], "meta": {"k": [1.5, None]}, "is_pinned": True}),),
    ),
    Transcript(
        "constants as Python has them",
        _call("save-note_2", is_pinned="False"),
        calls=(("save-note_2", {"is_pinned": False}),),
    ),
    Transcript(
        "no JSON where it should be",
        _call("get_weather", city="x", days="a few"),
        calls=(("get_weather", {"city": "x", "days": "a few"}),),
    ),
    Transcript(
        "no schema",
        _call("loose", a="x y", b="7", c="NaN", d="{}"),
        calls=(("loose", {"a": "x y", "b": 7, "c": "NaN", "d": {}}),),
        tools=LOOSE,
    ),
    Transcript(
        "unions and references",
        _call("union", id="5", flag="None", size="3", mode="on"),
        calls=(("union", {"id": "5", "flag": None, "size": "3", "mode": "on"}),),
        tools=LOOSE,
    ),
    Transcript("unknown parameter", _call("get_time", zone="UTC"), calls=(("get_time", {"zone": "UTC"}),)),
    Transcript("unknown name", f"Hm {_call('nobody', a='1')}", content=f"Hm {_call('nobody', a='1')}"),
    Transcript("unknown, then a call", f"{_call('nobody')} {TIME}", content=_call("nobody"), calls=(NOW,)),
    Transcript("no function", "<tool_call>\n{} </tool_call>", content="<tool_call>\n{} </tool_call>"),
    Transcript(
        "no end of function",
        f"{WEATHER[:-24]}</tool_call>",
        content=f"{WEATHER[:-24]}</tool_call>",
        is_constrained=(False,),
    ),
    Transcript(
        "breaks off under a constraint",
        f"{WEATHER[:-24]}oh",
        content="oh",
        calls=(("get_weather", '{"city": "Lima"'),),
        is_constrained=(True,),
    ),
    Transcript("cut in a value", WEATHER[:-40], content=WEATHER[:-40], is_constrained=(False,)),
    Transcript(
        "cut in a value under a constraint",
        WEATHER[: WEATHER.index("ma\n")],
        calls=(("get_weather", '{"city": "Li'),),
        is_constrained=(True,),
    ),
    Transcript("cut behind the function", WEATHER[:-13], calls=(LIMA,)),
    Transcript("cut in the last tag", WEATHER[:-3], content="</tool_ca", calls=(LIMA,),
               is_constrained=(False,), are_tokens=(False,)),
    Transcript("cut in the last tag, constrained", WEATHER[:-3], calls=(LIMA,),
               is_constrained=(True,), are_tokens=(False,)),
    *(
        Transcript(f"cut in the opening, forced: {end}", WEATHER[:end],
                   is_constrained=(True,), are_tokens=(False,))
        for end in range(1, WEATHER.index("weather") + 6)
    ),
    Transcript("stray end", "Hi </tool_call> you", content="Hi </tool_call> you"),
    Transcript("half a tag", "a <tool_ b", content="a <tool_ b"),
    Transcript(
        "letters of a marker",
        f"Write <{LETTERS}tool_call> so. {TIME}",
        content="Write <tool_call> so.",
        calls=(NOW,),
        are_tokens=(True,),
    ),
    Transcript("no tools", WEATHER, content=WEATHER, tools=()),
]  # fmt: skip


@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=str)
def test_transcripts(transcript: Transcript) -> None:
    check(Qwen3Coder, transcript)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_whatever_comes(seed: int) -> None:
    check_mutated(
        Qwen3Coder,
        [one for one in TRANSCRIPTS if one.text and one.tools],
        seed,
        dropped=("<think>", "</think>"),
    )


SEED = (
    "<seed:tool_call>\n<function=get_weather>\n<parameter=city>{}</parameter>\n</function>\n</seed:tool_call>"
)
SEED_TIME = "<seed:tool_call>\n<function=get_time>\n</function>\n</seed:tool_call>"
SEED_TRANSCRIPTS = [
    Transcript("one call", SEED.format("Lima"), calls=(LIMA,)),
    Transcript("lines in a value", SEED.format("\nx\n"), calls=(("get_weather", {"city": "\nx\n"}),)),
    Transcript(
        "reasoning and call",
        f"<seed:think>Hm.</seed:think>\n{SEED.format('Lima')}",
        reasoning="Hm.",
        calls=(LIMA,),
    ),
    Transcript("another family's call", "<tool_call>x</tool_call>", content="<tool_call>x</tool_call>"),
    Transcript("content", "Hello there.\n", content="Hello there.\n"),
    Transcript("empty", ""),
    Transcript("no arguments", SEED_TIME, calls=(NOW,)),
    Transcript("two calls", f"{SEED.format('Lima')}\n{SEED_TIME}", calls=(LIMA, NOW)),
    Transcript("content first", f"I look.\n\n{SEED.format('Lima')}", content="I look.", calls=(LIMA,)),
    Transcript("content after", f"{SEED_TIME}\nDone.", content="Done.", calls=(NOW,)),
    Transcript("reasoning and content", "<seed:think>Hm.</seed:think>\n\nHi", reasoning="Hm.", content="Hi"),
    Transcript("unclosed reasoning", "<seed:think>Hm, <b>", reasoning="Hm, <b>"),
    Transcript(
        "other signs", SEED.format('Ñuñoa "<1>" 🙂'), calls=(("get_weather", {"city": 'Ñuñoa "<1>" 🙂'}),)
    ),
    Transcript("no tools", SEED_TIME, content=SEED_TIME, tools=()),
]


@pytest.mark.parametrize("transcript", SEED_TRANSCRIPTS, ids=str)
def test_seed_oss(transcript: Transcript) -> None:
    check(SeedOss, transcript)
