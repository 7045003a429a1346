"""Transcripts that every dialect with text around its calls has, in its own writing."""

from collections.abc import Callable

from nexa_runtime.chat.dialects.base import ReasoningTags
from tests.chat.dialects.transcripts import LETTERS, Transcript

Write = Callable[..., str]
"""Calls, each a name and the text of its arguments, as the family writes them."""

LIMA = ("get_weather", {"city": "Lima"})
TIME: tuple[str, object] = ("get_time", {})
LIMA_TEXT = ("get_weather", '{"city": "Lima"}')
TIME_TEXT = ("get_time", "{}")
UNICODE = r'{"text":"¿Qué? \"\u00e9\ud83d\ude00\" \\ } ]``` </x> 日本"}'
NESTED = '{ "tags":[ "a", "b" ],\n "meta" : {"a": [{"b": -1.5e3}], "c": null}, "is_pinned": true }'


def common(write: Write, tags: ReasoningTags | None = None, *, has_marker: bool = True) -> list[Transcript]:
    """With ``tags``, reasoning too. ``has_marker``: calls begin with something that may be a token."""
    one = write(LIMA_TEXT)
    start, end = one.split(LIMA_TEXT[1])
    two = write(LIMA_TEXT, TIME_TEXT)
    unknown = write(("rm", "{}"))
    broken = write(("get_weather", '{"city": Lima}'))
    transcripts = [
        Transcript("plain content", "Hello!\nHow are [you]? {\n", content="Hello!\nHow are [you]? {\n"),
        Transcript("one call", one, calls=(LIMA,)),
        Transcript("one call, space around it", f"\n {one}\n", calls=(LIMA,)),
        Transcript("two calls", write(LIMA_TEXT, TIME_TEXT), calls=(LIMA, TIME)),
        Transcript("content, then a call", f"Let me look. \n\n{one}", content="Let me look.", calls=(LIMA,)),
        Transcript("text after a call", f"{one}\nThere.\n", content="There.\n", calls=(LIMA,)),
        Transcript("empty arguments", write(TIME_TEXT), calls=(TIME,)),
        Transcript(
            "unicode, escapes and brackets",
            write(("save-note_2", UNICODE)),
            calls=(("save-note_2", {"text": '¿Qué? "é\U0001f600" \\ } ]``` </x> 日本'}),),
        ),
        Transcript(
            "nested arguments",
            write(("save-note_2", NESTED)),
            calls=(
                (
                    "save-note_2",
                    {"tags": ["a", "b"], "meta": {"a": [{"b": -1500.0}], "c": None}, "is_pinned": True},
                ),
            ),
        ),
        Transcript("arguments in a string", write(("get_weather", r'"{\"city\": \"Lima\"}"')), calls=(LIMA,)),
        Transcript("an unknown name", f"Hi \n{unknown} ", content=f"Hi \n{unknown} "),
        Transcript("malformed arguments", f"Hi {broken}", content=f"Hi {broken}", is_constrained=(False,)),
        Transcript(
            "cut in the arguments, free",
            f'Hi\n{start}{{"city": "Li',
            content=f'Hi\n{start}{{"city": "Li',
            is_constrained=(False,),
        ),
        Transcript(
            "cut in the arguments, constrained",
            f'Hi\n{start}{{"city": "Li',
            content="Hi",
            calls=(("get_weather", '{"city": "Li'),),
            is_constrained=(True,),
        ),
        Transcript(
            "cut in the beginning", f"Hi\n{start[:6]}", content=f"Hi\n{start[:6]}", is_constrained=(False,)
        ),
        *(
            Transcript(
                f"cut in the opening, forced: {end}", start[:end], is_constrained=(True,), are_tokens=(False,)
            )
            for end in range(1, start.index("get_weather") + 10)
        ),
        Transcript("cut in the name, forced", one[: one.index("get_weather") + 5], is_constrained=(True,)),
        Transcript(
            "cut in the opening of the second, forced",
            two[: two.rindex("get_time") + 4],
            calls=(LIMA,),
            is_constrained=(True,),
        ),
        Transcript(
            "cut in the end, forced",
            one[: len(one) - len(end) // 2],
            calls=(LIMA,),
            is_constrained=(True,),
            are_tokens=(False,),
        ),
        Transcript("a stray end", f"Hi {end} you", content=f"Hi {end} you"),
        Transcript("no tools", f"{one}\n", content=f"{one}\n", tools=()),
        Transcript(
            "letters are no tokens",
            "".join(LETTERS + char for char in f"Hi {one}"),
            content=f"Hi {one}",
            are_tokens=(True,),
        ),
    ][: None if has_marker else -1]
    if tags:
        opening, closing = tags.opening, tags.closing
        transcripts += [
            Transcript(
                "reasoning, then content", f"{opening}\nHm.\n{closing}\n\nHi", reasoning="Hm.", content="Hi"
            ),
            Transcript(
                "reasoning, content and a call",
                f"{opening}Hm.{closing}So:\n{one}",
                reasoning="Hm.",
                content="So:",
                calls=(LIMA,),
            ),
            Transcript(
                "reasoning that the prompt opened",
                f"Hm, {start}?{closing}{one}",
                reasoning=f"Hm, {start}?",
                calls=(LIMA,),
                is_reasoning=True,
            ),
            Transcript("reasoning without end", f"{opening} Hm \n", reasoning="Hm \n"),
            Transcript("a stray end of reasoning", f"Hi {closing}", content=f"Hi {closing}"),
        ]
    return transcripts
