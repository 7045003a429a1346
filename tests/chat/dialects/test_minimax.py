"""MiniMax M2: transcripts after the published template."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexa_runtime.chat.dialects.minimax import MiniMax
from tests.chat.dialects.transcripts import LETTERS, Transcript, check, check_mutated

LIMA = ("get_weather", {"city": "Lima"})
NOW: tuple[str, object] = ("get_time", {})


def _call(name: str, **values: str) -> str:
    parameters = "".join(f'<parameter name="{key}">{value}</parameter>\n' for key, value in values.items())
    return f'<invoke name="{name}">\n{parameters}</invoke>\n'


def _block(*calls: str) -> str:
    return f"<minimax:tool_call>\n{''.join(calls)}</minimax:tool_call>"


WEATHER = _call("get_weather", city="Lima")
TIME = _call("get_time")
TRICKY = 'São "Paulo"\n \\ </b> <parameter\t☃ '
CUT = _block(WEATHER)[: _block(WEATHER).index("ma</")]

TRANSCRIPTS = [
    Transcript("content", "Hello there.\n", content="Hello there.\n"),
    Transcript("one call", _block(WEATHER), calls=(LIMA,)),
    Transcript("no arguments", _block(TIME), calls=(NOW,)),
    Transcript("two calls", _block(WEATHER, TIME), calls=(LIMA, NOW)),
    Transcript("two blocks", f"{_block(WEATHER)}\n{_block(TIME)}", calls=(LIMA, NOW)),
    Transcript("without space", _block(WEATHER, TIME).replace("\n", ""), calls=(LIMA, NOW)),
    Transcript("content first", f"I look.\n\n{_block(WEATHER)}", content="I look.", calls=(LIMA,)),
    Transcript("content after", f"{_block(WEATHER)}\nDone. ", content="Done. ", calls=(LIMA,)),
    Transcript(
        "reasoning and call", f"<think>\nHm.\n</think>\n\n{_block(TIME)}", reasoning="Hm.", calls=(NOW,)
    ),
    Transcript(
        "reasoning from the prompt",
        f"Hm.\n</think>\n\nSo.\n{_block(TIME)}",
        content="So.",
        reasoning="Hm.",
        calls=(NOW,),
        is_reasoning=True,
    ),
    Transcript("unclosed reasoning", "Hm, <b>", reasoning="Hm, <b>", is_reasoning=True),
    Transcript(
        "text with everything",
        _block(_call("get_weather", city=TRICKY)),
        calls=(("get_weather", {"city": TRICKY}),),
    ),
    Transcript(
        "all types",
        _block(_call("save-note_2", tags='["</b>"]', meta='{"k": [1.5, null]}', is_pinned="true")),
        calls=(("save-note_2", {"tags": ["</b>"], "meta": {"k": [1.5, None]}, "is_pinned": True}),),
    ),
    Transcript("unknown name", _block(_call("nobody", a="1")), content=_block(_call("nobody", a="1"))),
    Transcript(
        "no call",
        "<minimax:tool_call>what</minimax:tool_call>",
        content="<minimax:tool_call>what</minimax:tool_call>",
    ),
    Transcript("cut in a value", CUT, content=CUT, is_constrained=(False,)),
    Transcript(
        "cut in a value under a constraint",
        CUT,
        calls=(("get_weather", '{"city": "Li'),),
        is_constrained=(True,),
    ),
    Transcript("cut behind a call", f"<minimax:tool_call>\n{TIME}", calls=(NOW,)),
    Transcript("stray end", "Hi </minimax:tool_call> you", content="Hi </minimax:tool_call> you"),
    Transcript(
        "letters of a marker",
        f"So <{LETTERS}minimax:tool_call> {_block(TIME)}",
        content="So <minimax:tool_call>",
        calls=(NOW,),
        are_tokens=(True,),
    ),
    Transcript("no tools", _block(TIME), content=_block(TIME), tools=()),
]


@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=str)
def test_transcripts(transcript: Transcript) -> None:
    check(MiniMax, transcript)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_whatever_comes(seed: int) -> None:
    transcripts = [one for one in TRANSCRIPTS if one.text and one.tools]
    check_mutated(MiniMax, transcripts, seed, dropped=("<think>", "</think>"))
