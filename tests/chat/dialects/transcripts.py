"""Transcripts: answers as models write them, what a parser is to make of each, and every way to feed one."""

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from nexa_runtime.chat.dialects.base import MARK, Dialect
from nexa_runtime.chat.messages import Json, Tool

LETTERS = "\x00"
"""Put into a marker that a transcript means as plain letters: ``"<" + LETTERS + "tool_call>"``."""

BOTH = (False, True)


def _schema(required: Sequence[str] = (), **properties: Json) -> dict[str, Json]:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(required),
        "additionalProperties": False,
    }


TOOLS = (
    Tool(
        "get_weather",
        "The weather in a city",
        _schema(["city"], city={"type": "string"}, days={"type": "integer"}),
    ),
    Tool("get_time", "The time of day", _schema()),
    Tool(
        "save-note_2",
        None,
        _schema(
            tags={"type": "array", "items": {"type": "string"}},
            meta={"type": "object"},
            text={"type": "string"},
            is_pinned={"type": "boolean"},
        ),
    ),
)

Call = tuple[str, object]
"""A name, and the arguments: an object, or their exact text where it is not whole."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What an answer came to."""

    content: str = ""
    reasoning: str = ""
    calls: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Transcript:
    """``text`` as the model writes it, markers in plain letters; with which ``is_constrained`` and whether
    with markers as tokens (``are_tokens``) the rest holds.
    """

    name: str
    text: str
    content: str = ""
    reasoning: str = ""
    calls: tuple[Call, ...] = ()
    is_reasoning: bool = False
    is_constrained: tuple[bool, ...] = BOTH
    are_tokens: tuple[bool, ...] = BOTH
    tools: tuple[Tool, ...] = TOOLS

    def __str__(self) -> str:
        return self.name


def with_tokens(kind: type[Dialect]) -> Dialect:
    """The dialect on a vocabulary that has a token for each of its markers."""
    return kind({text: 1000 + index for index, text in enumerate(kind.markers)})


def pieces(text: str, seed: int | None = None) -> Iterator[str]:
    """``text`` cut at random into pieces of about a token's length; without a seed, into characters."""
    chance = random.Random(seed)
    start = 0
    while start < len(text):
        end = start + (1 if seed is None else chance.choice((0, 1, 2, 3, 4, 5, 9, 17)))
        yield text[start:end]
        start = end


def run(
    dialect: Dialect,
    cuts: Iterable[str],
    *,
    tools: Sequence[Tool] = TOOLS,
    is_reasoning: bool = False,
    is_constrained: bool = False,
) -> Answer:
    """The message that the pieces ``cuts`` add up to; also checks what holds for the deltas of any answer."""
    parser = dialect.parser(tools, is_reasoning=is_reasoning, is_constrained=is_constrained)
    content, reasoning = "", ""
    names: list[str] = []
    arguments: list[str] = []
    ids: set[str] = set()
    deltas = [delta for cut in cuts for delta in parser.feed(cut)]
    for delta in deltas + parser.finish():
        content += delta.content
        reasoning += delta.reasoning
        if (call := delta.call) is None:
            assert delta.content or delta.reasoning
        elif call.name is not None:
            assert call.id
            assert call.id not in ids
            assert call.index == len(names)
            ids.add(call.id)
            names.append(call.name)
            arguments.append(call.arguments)
        else:
            assert call.id is None
            assert call.arguments
            assert call.index == len(names) - 1
            arguments[-1] += call.arguments
    assert MARK not in content + reasoning + "".join(arguments)
    return Answer(content, reasoning, tuple(zip(names, arguments, strict=True)))


def check(kind: type[Dialect], transcript: Transcript) -> None:
    """Every way to feed the transcript gives what it says."""
    for are_tokens in transcript.are_tokens:
        dialect = with_tokens(kind) if are_tokens else kind({})
        text = dialect.marked(transcript.text).replace(LETTERS, "")
        for is_constrained in transcript.is_constrained:
            for cuts in [[text], list(pieces(text)), *(list(pieces(text, seed)) for seed in range(5))]:
                answer = run(
                    dialect,
                    cuts,
                    tools=transcript.tools,
                    is_reasoning=transcript.is_reasoning,
                    is_constrained=is_constrained,
                )
                about = f"{are_tokens=} {is_constrained=} {cuts}"
                assert answer.content == transcript.content, about
                assert answer.reasoning == transcript.reasoning, about
                got = [
                    (name, text if isinstance(wanted[1], str) else json.loads(text))
                    for (name, text), wanted in zip(answer.calls, transcript.calls, strict=False)
                ]
                assert got == list(transcript.calls), about
                assert len(answer.calls) == len(transcript.calls), about


def mutate(text: str, chance: random.Random) -> str:
    """``text`` with a few pieces left out, doubled or put elsewhere, or cut short."""
    for _ in range(chance.randint(1, 3)):
        start = chance.randrange(len(text) + 1)
        end = min(len(text), start + chance.randint(1, 12))
        match chance.randrange(4):
            case 0:
                text = text[:start] + text[end:]
            case 1:
                text = text[:end] + text[start:]
            case 2:
                other = chance.randrange(len(text) + 1)
                text = text[:other] + text[start:end] + text[other:]
            case _:
                text = (
                    text[:start]
                    + chance.choice(['"', "{", "}", "\\", "\n", " ", "<", "é", ""])
                    + text[start:]
                )
    return text if chance.random() < 0.7 else text[: chance.randrange(len(text) + 1)]


def check_mutated(
    kind: type[Dialect], transcripts: Sequence[Transcript], seed: int, *, dropped: Sequence[str] | None = None
) -> None:
    """Whatever becomes of an answer, the cuts do not matter, and nothing is ever raised.

    With ``dropped``, texts that a parser may leave out: without a constraint, nothing else is ever lost where
    there is no call.
    """
    chance = random.Random(seed)
    transcript = chance.choice(transcripts)
    dialect = with_tokens(kind) if chance.random() < 0.5 else kind({})
    text = mutate(dialect.marked(transcript.text).replace(LETTERS, ""), chance)
    is_constrained = chance.random() < 0.5
    answers = [
        run(dialect, cuts, is_reasoning=transcript.is_reasoning, is_constrained=is_constrained)
        for cuts in ([text], pieces(text), pieces(text, seed))
    ]
    assert answers[0] == answers[1] == answers[2], text
    if not is_constrained:
        for _, arguments in answers[0].calls:
            assert isinstance(json.loads(arguments), dict)
    is_whole = not (transcript.is_reasoning or answers[0].calls or is_constrained)
    if dropped is not None and is_whole and not any(one in text for one in dropped):
        assert answers[0].content == text.replace(MARK, "")
