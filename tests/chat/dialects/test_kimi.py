"""Kimi K2: transcripts after the published templates."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexa_runtime.chat.dialects.kimi import Kimi
from nexa_runtime.chat.messages import Conversation, Message, Role, ToolCall
from tests.chat.dialects.transcripts import LETTERS, Transcript, check, check_mutated

LIMA = ("get_weather", {"city": "Lima"})
NOW: tuple[str, object] = ("get_time", {})


def _call(name: str, arguments: str, number: int = 0) -> str:
    head = f"<|tool_call_begin|>functions.{name}:{number}<|tool_call_argument_begin|>"
    return f"{head}{arguments}<|tool_call_end|>"


def _block(*calls: str) -> str:
    return f"<|tool_calls_section_begin|>{''.join(calls)}<|tool_calls_section_end|>"


WEATHER = _call("get_weather", '{"city": "Lima"}')
TIME = _call("get_time", "{}", 1)
NESTED = '{"tags": ["a", "\\u00e9\\n"], "meta": {"k": [1.5, null, {"x": "<b>}"}]}, "is_pinned": false}'
CUT = _block(WEATHER)[: _block(WEATHER).index('ma"}')]

TRANSCRIPTS = [
    Transcript("content", "Hello there.\n", content="Hello there.\n"),
    Transcript("one call", _block(WEATHER), calls=(LIMA,)),
    Transcript("no arguments", _block(TIME), calls=(NOW,)),
    Transcript("two calls", _block(WEATHER, TIME), calls=(LIMA, NOW)),
    Transcript("with space", _block(WEATHER, TIME).replace("><", "> \n<"), calls=(LIMA, NOW)),
    Transcript("without a namespace", _block(TIME).replace("functions.", ""), calls=(NOW,)),
    Transcript("content first", f"I look.\n{_block(WEATHER)}", content="I look.", calls=(LIMA,)),
    Transcript("content after", f"{_block(WEATHER)} Done. ", content="Done. ", calls=(LIMA,)),
    Transcript("reasoning and call", f"<think>Hm. </think>{_block(TIME)}", reasoning="Hm.", calls=(NOW,)),
    Transcript("reasoning and content", "<think>Hm.</think>Hi", reasoning="Hm.", content="Hi"),
    Transcript("unclosed reasoning", "<think>Hm, <b>", reasoning="Hm, <b>"),
    Transcript(
        "all types",
        _block(_call("save-note_2", NESTED)),
        calls=(
            (
                "save-note_2",
                {"tags": ["a", "é\n"], "meta": {"k": [1.5, None, {"x": "<b>}"}]}, "is_pinned": False},
            ),
        ),
    ),
    Transcript("unknown name", _block(_call("nobody", "{}")), content=_block(_call("nobody", "{}"))),
    Transcript(
        "no JSON",
        _block(_call("get_time", "{a}")),
        content=_block(_call("get_time", "{a}")),
        is_constrained=(False,),
    ),
    Transcript("no number", _block(TIME).replace(":1", ""), content=_block(TIME).replace(":1", "")),
    Transcript("cut in the arguments", CUT, content=CUT, is_constrained=(False,)),
    Transcript(
        "cut in the arguments under a constraint",
        CUT,
        calls=(("get_weather", '{"city": "Li'),),
        is_constrained=(True,),
    ),
    Transcript("stray end", "Hi <|tool_calls_section_end|> you", content="Hi <|tool_calls_section_end|> you"),
    Transcript(
        "letters of a marker",
        f"So <{LETTERS}|tool_calls_section_begin|> {_block(TIME)}",
        content="So <|tool_calls_section_begin|>",
        calls=(NOW,),
        are_tokens=(True,),
    ),
    Transcript("no tools", _block(TIME), content=_block(TIME), tools=()),
]


@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=str)
def test_transcripts(transcript: Transcript) -> None:
    check(Kimi, transcript)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_whatever_comes(seed: int) -> None:
    transcripts = [one for one in TRANSCRIPTS if one.text and one.tools]
    check_mutated(Kimi, transcripts, seed, dropped=("<think>", "</think>"))


def test_ids_are_as_the_model_knows_them() -> None:
    turns = (
        Message(Role.ASSISTANT, None, tool_calls=(ToolCall("a", "f", "{}"), ToolCall("b", "g", "{}"))),
        Message(Role.TOOL, "1", tool_call_id="b"),
        Message(Role.TOOL, "2", tool_call_id="x"),
    )
    calls, known, unknown = Kimi({}).prepare(Conversation(turns)).messages
    assert [call.id for call in calls.tool_calls] == ["functions.f:0", "functions.g:1"]
    assert (known.tool_call_id, unknown.tool_call_id) == ("functions.g:1", "x")
