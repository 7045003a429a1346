"""DeepSeek's markup, whose arguments are text or JSON, each in a tag."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexa_runtime.chat.dialects.dsml import DSML, DeepSeekDsml
from tests.chat.dialects.common import LIMA, TIME
from tests.chat.dialects.transcripts import LETTERS, Transcript, check, check_mutated


def parameter(key: str, value: str, *, is_text: bool = True) -> str:
    return (
        f'<{DSML}parameter name="{key}" string="{"true" if is_text else "false"}">{value}</{DSML}parameter>\n'
    )


def invoke(name: str, *parameters: str) -> str:
    return f'<{DSML}invoke name="{name}">\n{"".join(parameters)}</{DSML}invoke>\n'


def block(*invokes: str, word: str = "function_calls") -> str:
    return f"<{DSML}{word}>\n{''.join(invokes)}</{DSML}{word}>"


WEATHER = invoke("get_weather", parameter("city", "Lima"))
ONE = block(WEATHER)
CUT = ONE[: ONE.index("ma<")]

TRANSCRIPTS = [
    Transcript("plain content", "Hello <b>you</b>! < \n", content="Hello <b>you</b>! < \n"),
    Transcript("one call", ONE, calls=(LIMA,)),
    Transcript("V4's word", block(WEATHER, word="tool_calls"), calls=(LIMA,)),
    Transcript("two calls", block(WEATHER, invoke("get_time", "\n")), calls=(LIMA, TIME)),
    Transcript("two blocks", f"{ONE}\n\n{ONE}", calls=(LIMA, LIMA)),
    Transcript("content, then a call", f"Let me look.\n\n{ONE}", content="Let me look.", calls=(LIMA,)),
    Transcript("text after a call", f"{ONE}\nThere. ", content="There. ", calls=(LIMA,)),
    Transcript("reasoning, then a call", f"<think>Hm.</think>\n\n{ONE}", reasoning="Hm.", calls=(LIMA,)),
    Transcript(
        "reasoning that the prompt opened", f"Hm.\n</think>{ONE}", "", "Hm.", calls=(LIMA,), is_reasoning=True
    ),
    Transcript("reasoning, then content", "<think>Hm.</think>Hi", reasoning="Hm.", content="Hi"),
    Transcript(
        "unicode, escapes, lines",
        block(invoke("save-note_2", parameter("text", ' é "a"\\n\n日本 </b> '))),
        calls=(("save-note_2", {"text": ' é "a"\\n\n日本 </b> '}),),
    ),
    Transcript(
        "values of other types",
        block(
            invoke(
                "save-note_2",
                parameter("tags", '["a", "<b>"]', is_text=False),
                parameter("meta", ' {"a": [{"b": -1.5e3}]}\n', is_text=False),
                parameter("is_pinned", "true", is_text=False),
                parameter("days", "3", is_text=False),
            )
        ),
        calls=(
            (
                "save-note_2",
                {"tags": ["a", "<b>"], "meta": {"a": [{"b": -1500.0}]}, "is_pinned": True, "days": 3},
            ),
        ),
    ),
    Transcript("an empty text", block(invoke("save-note_2", parameter("text", ""))),
               calls=(("save-note_2", {"text": ""}),)),
    Transcript("an unknown name", f"Hi {block(invoke('rm'))} ", content=f"Hi {block(invoke('rm'))} "),
    Transcript(
        "the second unknown",
        block(WEATHER, invoke("rm")),
        content=invoke("rm") + f"</{DSML}function_calls>",
        calls=(LIMA,),
    ),
    Transcript(
        "malformed",
        text := f"Hi {block(invoke('get_weather', parameter('days', 'three', is_text=False)))}",
        text,
        is_constrained=(False,),
    ),
    Transcript("not even a call", block("\nHi"), content=block("\nHi")),
    Transcript("cut, free", f"Hi {CUT}", content=f"Hi {CUT}", is_constrained=(False,)),
    Transcript("cut, constrained", f"Hi {CUT}", "Hi", calls=(("get_weather", '{"city": "Li'),),
               is_constrained=(True,)),
    Transcript("no end of the block", f"<{DSML}function_calls>{WEATHER}", calls=(LIMA,)),
    Transcript("a stray end", f"Hi </{DSML}invoke>", content=f"Hi </{DSML}invoke>"),
    Transcript(
        "letters are no tokens", ONE.replace(DSML, LETTERS.join(DSML)), content=ONE, are_tokens=(True,)
    ),
    Transcript("no tools", ONE, content=ONE, tools=()),
]  # fmt: skip


@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=str)
def test_transcripts(transcript: Transcript) -> None:
    check(DeepSeekDsml, transcript)


@given(st.integers(0, 2**32))
def test_whatever_comes(seed: int) -> None:
    check_mutated(DeepSeekDsml, TRANSCRIPTS, seed, dropped=["<think>"])
