"""Kimi K2: calls in a block, each an id that holds its name, and JSON.

Owns the format and its grammar. The registry picks it, ``serving`` feeds its parsers.
"""

from collections.abc import Sequence
from dataclasses import replace

from nexa_runtime.chat.dialects.base import Dialect, Parser, ReasoningTags, lark_json
from nexa_runtime.chat.dialects.calls import CallParser
from nexa_runtime.chat.dialects.lark_rules import Opened, Rules, free
from nexa_runtime.chat.dialects.reading import Steps
from nexa_runtime.chat.dialects.reasoning import with_reasoning
from nexa_runtime.chat.dialects.words import expect, run
from nexa_runtime.chat.messages import Conversation, Message, Tool

_BLOCK, _BLOCK_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
_CALL, _CALL_END = "<|tool_call_begin|>", "<|tool_call_end|>"
_ARGUMENTS = "<|tool_call_argument_begin|>"
_FUNCTIONS = "functions."
_DIGITS = frozenset("0123456789")
_MAX_DIGITS = 9


class Kimi(Dialect):
    """``<|tool_call_begin|>functions.NAME:0<|tool_call_argument_begin|>{}<|tool_call_end|>``."""

    name = "kimi"
    markers = (_BLOCK, _BLOCK_END, _CALL, _CALL_END, _ARGUMENTS, "<think>", "</think>")
    reasoning = ReasoningTags("<think>", "</think>")

    @classmethod
    def fits(cls, template: str) -> bool:
        return _BLOCK in template and _ARGUMENTS in template

    def prepare(self, conversation: Conversation) -> Conversation:
        """Results name the call they belong to as the model knows it."""
        known: dict[str | None, str] = {}
        turns: list[Message] = []
        for message in conversation.messages:
            for index, call in enumerate(message.tool_calls):
                known[call.id] = f"{_FUNCTIONS}{call.name}:{index}"
            calls = tuple(replace(call, id=known[call.id]) for call in message.tool_calls)
            answered = known.get(message.tool_call_id, message.tool_call_id)
            turns.append(replace(message, tool_calls=calls, tool_call_id=answered))
        return replace(conversation, messages=tuple(turns))

    def parser(self, tools: Sequence[Tool], *, is_reasoning: bool = False, is_constrained: bool) -> Parser:
        inner = _KimiParser(self, tools, is_constrained=is_constrained)
        return with_reasoning(self, inner, is_reasoning=is_reasoning)

    def grammar(self, tools: Sequence[Tool], *, is_forced: bool, is_parallel: bool) -> str:
        rules = Rules()
        number = rules.terminal("/0|[1-9][0-9]{0,2}/") if is_parallel else '"0"'
        calls = [
            f"{self.lark(f'{_CALL}{_FUNCTIONS}{tool.name}:')} {number} {self.lark(_ARGUMENTS)}"
            f" {rules.rule(lark_json(tool.parameters))} {self.lark(_CALL_END)}"
            for tool in tools
        ]
        call = rules.rule(" | ".join(calls))
        rest = rules.rule(f"{call}{'+' if is_parallel else ''} {self.lark(_BLOCK_END)}")
        if is_forced:
            return rules.grammar(f"{self.lark(_BLOCK)} {rest}")
        return free(rules, self, [Opened(_BLOCK, rest)], is_parallel=is_parallel)


class _KimiParser(CallParser):
    def __init__(self, dialect: Dialect, tools: Sequence[Tool], *, is_constrained: bool) -> None:
        super().__init__(tools, (dialect.marked(_BLOCK),), is_constrained=is_constrained)
        self._marks = {one: dialect.marked(one) for one in dialect.markers}

    def _block(self, trigger: str) -> Steps[None]:
        yield from self._expect(self._marks[_CALL])
        is_call = True
        while is_call:
            yield from self._one()
            yield from self._reader.space()
            self._begin()
            is_call = yield from self._reader.literal(self._marks[_CALL])
        yield from self._reader.literal(self._marks[_BLOCK_END])

    def _one(self) -> Steps[None]:
        yield from self._reader.space()
        yield from self._reader.literal(_FUNCTIONS)
        name = yield from self._reader.name()
        yield from expect(self._reader, ":")
        yield from run(self._reader, _DIGITS, _MAX_DIGITS)
        yield from self._expect(self._marks[_ARGUMENTS])
        self._open(name)
        yield from self._arguments_object(self._add)
        yield from self._expect(self._marks[_CALL_END])
        self._close()
