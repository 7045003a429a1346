"""Gemma 4 and FunctionGemma: arguments nearly as JSON, with strings between marks of their own; JSON too.

Owns the format and its grammar. The registry picks it, ``serving`` feeds its parsers.
"""

import json
import string
from collections.abc import Sequence
from typing import ClassVar

from nexa_runtime.chat.dialects.base import Dialect, Parser, ReasoningTags, plain
from nexa_runtime.chat.dialects.calls import CallParser, NotACallError
from nexa_runtime.chat.dialects.gemma_rules import arguments_rule
from nexa_runtime.chat.dialects.json_scan import is_json, text_of
from nexa_runtime.chat.dialects.lark_rules import Opened, Rules, forced, free
from nexa_runtime.chat.dialects.reading import Steps, Stops
from nexa_runtime.chat.dialects.reasoning import with_reasoning
from nexa_runtime.chat.dialects.typed_text import PYTHON_CONSTANTS, escaped
from nexa_runtime.chat.dialects.words import run, until, word
from nexa_runtime.chat.messages import Tool

_MAX_DEPTH = 64
_MAX_ATOM = 400
_MAX_KEY = 256
_ATOM = frozenset(string.ascii_letters + string.digits + ".+-")


class Gemma4(Dialect):
    """``<|tool_call>call:NAME{key:<|"|>text<|"|>,n:1}<tool_call|>``."""

    name = "gemma4"
    markers: ClassVar[tuple[str, ...]] = (
        "<|tool_call>", "<tool_call|>", '<|"|>', "<|channel>", "<channel|>",
    )  # fmt: skip
    reasoning: ReasoningTags | None = ReasoningTags("<|channel>thought", "<channel|>")
    _opening: ClassVar = "<|tool_call>"
    _closing: ClassVar = "<tool_call|>"
    _quote: ClassVar = '<|"|>'

    @classmethod
    def fits(cls, template: str) -> bool:
        return cls._opening in template and cls._quote in template

    def parser(self, tools: Sequence[Tool], *, is_reasoning: bool = False, is_constrained: bool) -> Parser:
        marks = tuple(map(self.marked, (self._opening, self._closing, self._quote)))
        inner = _GemmaParser(tools, marks, is_constrained=is_constrained)
        return with_reasoning(self, inner, is_reasoning=is_reasoning)

    def grammar(self, tools: Sequence[Tool], *, is_forced: bool, is_parallel: bool) -> str:
        rules = Rules()
        calls = " | ".join(
            f"{self.lark(f'call:{tool.name}')} "
            f"{arguments_rule(rules, self, tool, self._quote, is_forced=is_forced)}"
            for tool in tools
        )
        rest = rules.rule(f"({calls}) {self.lark(self._closing)}")
        if is_forced:
            call = rules.rule(f"{self.lark(self._opening)} {rest}")
            return forced(rules, self, call, "", is_parallel=is_parallel)
        return free(rules, self, [Opened(self._opening, rest)], is_parallel=is_parallel)


class FunctionGemma(Gemma4):
    """``<start_function_call>call:NAME{key:<escape>text<escape>}<end_function_call>``."""

    name = "function_gemma"
    markers = ("<start_function_call>", "<end_function_call>", "<escape>")
    reasoning = None
    _opening = "<start_function_call>"
    _closing = "<end_function_call>"
    _quote = "<escape>"


class _GemmaParser(CallParser):
    """``marks``: what opens and closes a call, and what is around strings."""

    def __init__(self, tools: Sequence[Tool], marks: Sequence[str], *, is_constrained: bool) -> None:
        opening, self._closing, self._quote = marks
        super().__init__(tools, (opening,), is_constrained=is_constrained)
        self._quotes = Stops([self._quote])

    def _block(self, trigger: str) -> Steps[None]:
        self._begin()
        yield from self._expect("call:")
        name = yield from self._reader.name()
        yield from self._expect("{")
        self._open(name)
        yield from self._object(0)
        self._close()
        yield from self._reader.space()
        yield from self._reader.literal(self._closing)

    def _text(self, part: str) -> None:
        if text := plain(part):
            self._add(escaped(text))

    def _value(self, depth: int) -> Steps[None]:
        yield from self._reader.space()
        if depth > _MAX_DEPTH:
            raise NotACallError
        if (yield from self._reader.literal(self._quote)):
            self._add('"')
            yield from until(self._reader, self._quotes, self._text)
            self._add('"')
        elif (yield from self._reader.peek()) == '"':
            yield from self._json(self._add)
        elif (yield from self._reader.literal("{")):
            yield from self._object(depth)
        elif (yield from self._reader.literal("[")):
            yield from self._array(depth)
        else:
            atom = yield from run(self._reader, _ATOM, _MAX_ATOM)
            atom = PYTHON_CONSTANTS.get(atom, atom)
            if not is_json(atom):
                raise NotACallError
            self._add(atom)

    def _object(self, depth: int) -> Steps[None]:
        """What follows the opening brace."""
        before = "{"
        while not (yield from self._ends("}", has_items=before != "{")):
            if (yield from self._reader.literal(self._quote)):
                key = yield from word(self._reader, self._quote, _MAX_KEY)
                yield from self._reader.space()
                yield from self._expect(":")
            elif (yield from self._reader.peek()) == '"':
                key = text_of((yield from self._json_text()))
                yield from self._expect(":")
            else:
                key = (yield from word(self._reader, ":", _MAX_KEY)).strip()
            self._add(f"{before}{json.dumps(key, ensure_ascii=False)}: ")
            before = ", "
            yield from self._value(depth + 1)
        self._add("}" if before == ", " else "{}")

    def _array(self, depth: int) -> Steps[None]:
        """What follows the opening bracket."""
        before = "["
        while not (yield from self._ends("]", has_items=before != "[")):
            self._add(before)
            before = ", "
            yield from self._value(depth + 1)
        self._add("]" if before == ", " else "[]")

    def _ends(self, closing: str, *, has_items: bool) -> Steps[bool]:
        """Reads what ends an object or array, or what stands before its next item."""
        yield from self._reader.space()
        if (yield from self._reader.literal(closing)):
            return True
        if has_items:
            yield from self._expect(",")
            yield from self._reader.space()
        return False
