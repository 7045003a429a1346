"""GLM: transcripts after the published templates."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexa_runtime.chat.dialects.glm import Glm
from tests.chat.dialects.transcripts import LETTERS, Transcript, check, check_mutated

LIMA = ("get_weather", {"city": "Lima"})
NOW: tuple[str, object] = ("get_time", {})


def _call(name: str, **values: str) -> str:
    """As GLM 4.5 and 4.6 write it."""
    pairs = "".join(
        f"<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n" for key, value in values.items()
    )
    return f"<tool_call>{name}\n{pairs}</tool_call>"


WEATHER = _call("get_weather", city="Lima")
TIME = _call("get_time")
ALL = _call("save-note_2", tags='["a", "b"]', meta='{"k": [1.5, null, {"x": "</b>"}]}', is_pinned="false")
TRICKY = 'São "Paulo"\n \\ </b> <arg\t☃ '

TRANSCRIPTS = [
    Transcript("content", "Hello there.\n", content="Hello there.\n"),
    Transcript("one call", WEATHER, calls=(LIMA,)),
    Transcript("as GLM 4.7 writes", WEATHER.replace("\n", ""), calls=(LIMA,)),
    Transcript("no arguments", TIME, calls=(NOW,)),
    Transcript("no arguments, in one line", "<tool_call>get_time</tool_call>", calls=(NOW,)),
    Transcript("two calls", f"{WEATHER}\n{TIME}", calls=(LIMA, NOW)),
    Transcript("content first", f"\nI look.\n\n{WEATHER}", content="\nI look.", calls=(LIMA,)),
    Transcript("content after", f"{WEATHER}\nDone. ", content="Done. ", calls=(LIMA,)),
    Transcript("reasoning and call", f"\n<think>Hm.</think>\n{TIME}", reasoning="Hm.", calls=(NOW,)),
    Transcript("no reasoning", f"\n<think></think>\n{TIME}", calls=(NOW,)),
    Transcript("reasoning and content", "<think>Hm.</think>\nHi", reasoning="Hm.", content="Hi"),
    Transcript(
        "reasoning from the prompt", f"Hm. </think>{TIME}", reasoning="Hm.", calls=(NOW,), is_reasoning=True
    ),
    Transcript("unclosed reasoning", "<think>Hm, <b>", reasoning="Hm, <b>"),
    Transcript(
        "text with everything", _call("get_weather", city=TRICKY), calls=(("get_weather", {"city": TRICKY}),)
    ),
    Transcript(
        "a string like a number", _call("get_weather", city="42"), calls=(("get_weather", {"city": "42"}),)
    ),
    Transcript("empty string", _call("get_weather", city=""), calls=(("get_weather", {"city": ""}),)),
    Transcript(
        "all types",
        ALL,
        calls=(
            (
                "save-note_2",
                {"tags": ["a", "b"], "meta": {"k": [1.5, None, {"x": "</b>"}]}, "is_pinned": False},
            ),
        ),
    ),
    Transcript("no JSON", _call("get_weather", days="few"), calls=(("get_weather", {"days": "few"}),)),
    Transcript("unknown parameter", _call("get_time", a="7"), calls=(("get_time", {"a": 7}),)),
    Transcript("unknown name", f"Hm {_call('nobody', a='1')}", content=f"Hm {_call('nobody', a='1')}"),
    Transcript("unknown, then a call", f"{_call('nobody')} {TIME}", content=_call("nobody"), calls=(NOW,)),
    Transcript(
        "JSON instead", '<tool_call>{"name": 1}</tool_call>', content='<tool_call>{"name": 1}</tool_call>'
    ),
    Transcript(
        "no key", f"{TIME[:-12]}x</tool_call>", content=f"{TIME[:-12]}x</tool_call>", is_constrained=(False,)
    ),
    Transcript(
        "breaks off", f"{TIME[:-12]}oh", content="oh", calls=(("get_time", ""),), is_constrained=(True,)
    ),
    Transcript("cut in a value", WEATHER[:-25], content=WEATHER[:-25], is_constrained=(False,)),
    Transcript(
        "cut in a value under a constraint",
        WEATHER[: WEATHER.index("ma<")],
        calls=(("get_weather", '{"city": "Li'),),
        is_constrained=(True,),
    ),
    Transcript("cut in the name", "<tool_call>get_", content="<tool_call>get_", is_constrained=(False,)),
    Transcript("cut in the name, constrained", "<tool_call>get_", is_constrained=(True,)),
    Transcript("stray end", "Hi </tool_call> you</arg_value>", content="Hi </tool_call> you</arg_value>"),
    Transcript(
        "letters of a marker",
        f"Write <{LETTERS}tool_call> so. {TIME}",
        content="Write <tool_call> so.",
        calls=(NOW,),
        are_tokens=(True,),
    ),
    Transcript(
        "letters of a marker in a value",
        WEATHER.replace("Lima", f"<{LETTERS}/arg_value>"),
        calls=(("get_weather", {"city": "</arg_value>"}),),
        are_tokens=(True,),
    ),
    Transcript("no tools", WEATHER, content=WEATHER, tools=()),
]


@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=str)
def test_transcripts(transcript: Transcript) -> None:
    check(Glm, transcript)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_whatever_comes(seed: int) -> None:
    check_mutated(
        Glm, [one for one in TRANSCRIPTS if one.text and one.tools], seed, dropped=("<think>", "</think>")
    )
