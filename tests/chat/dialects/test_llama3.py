"""Llama 3's whole answers, and its own tools."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexa_runtime.chat.dialects.llama3 import Llama3
from tests.chat.dialects.common import LIMA, NESTED, TIME, UNICODE
from tests.chat.dialects.transcripts import Transcript, check, check_mutated

ONE = '{"name": "get_weather", "parameters": {"city": "Lima"}}'
TWO = '{"name": "get_time", "parameters": {}}'

TRANSCRIPTS = [
    Transcript("nothing", ""),
    Transcript("space", " \n", content=" \n"),
    Transcript("plain content", " Hello! {\n", content=" Hello! {\n"),
    Transcript("one call", ONE, calls=(LIMA,)),
    Transcript("one call, laid out", "\n\n" + ONE.replace(" ", " \n") + "\n", calls=(LIMA,)),
    Transcript("a semicolon between calls", f"{ONE}; {TWO}", calls=(LIMA, TIME)),
    Transcript("a line between calls", f"{ONE}\n{TWO};", calls=(LIMA, TIME)),
    Transcript("behind the tag", f"<|python_tag|>{ONE};{TWO}", calls=(LIMA, TIME)),
    Transcript("content, then the tag", f"Let me look.\n<|python_tag|>{ONE}", "Let me look.", calls=(LIMA,)),
    Transcript("text after a call", f"{ONE} There.", content="There.", calls=(LIMA,)),
    Transcript("content, then JSON", f"So: {ONE}", content=f"So: {ONE}"),
    Transcript(
        "unicode",
        f'{{"name": "save-note_2", "parameters": {UNICODE}}}',
        calls=(("save-note_2", {"text": '¿Qué? "é\U0001f600" \\ } ]``` </x> 日本'}),),
    ),
    Transcript(
        "nested",
        f'{{"type": "function", "parameters": {NESTED}, "name": "save-note_2"}}',
        calls=(
            (
                "save-note_2",
                {"tags": ["a", "b"], "meta": {"a": [{"b": -1500.0}], "c": None}, "is_pinned": True},
            ),
        ),
    ),
    Transcript("JSON that is no call", '{"name": "Ana", "age": 3}', content='{"name": "Ana", "age": 3}'),
    Transcript("other JSON", ' {"a": [1]}\n', content=' {"a": [1]}\n'),
    Transcript("malformed", '{"name": }', content='{"name": }'),
    Transcript("the second no call", f'{ONE}; {{"a": 1}}', content='{"a": 1}', calls=(LIMA,)),
    Transcript("cut, free", ONE[:-4], content=ONE[:-4], is_constrained=(False,)),
    Transcript(
        "cut, constrained", ONE[:-4], calls=(("get_weather", '{"city": "Lim'),), is_constrained=(True,)
    ),
    Transcript(
        "its own way to call",
        '<|python_tag|>get_weather.call(city="Li\\"ma", days=3)',
        calls=(("get_weather", {"city": 'Li"ma', "days": 3}),),
    ),
    Transcript("its own way, no arguments", "<|python_tag|>get_time.call( )\nSo", "So", calls=(TIME,)),
    *(
        Transcript(f"no call: {one}", text := f"Hi <|python_tag|>{one}", text, is_constrained=(False,))
        for one in (
            "print(1)", 'get_time.run(a="b")', "get_time.call(a=b)",
            'get_time.call("b")', "get_time.call(a=1",
            "get_time.call(a=1 b=2)", "rm.call()", "",
        )
    ),
    Transcript("no tools", ONE, content=ONE, tools=()),
]  # fmt: skip


@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=str)
def test_transcripts(transcript: Transcript) -> None:
    check(Llama3, transcript)


@given(st.integers(0, 2**32))
def test_whatever_comes(seed: int) -> None:
    check_mutated(Llama3, TRANSCRIPTS, seed, dropped=[])
