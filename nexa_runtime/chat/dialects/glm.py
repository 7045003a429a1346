"""GLM 4.5 to 4.7, and those that write like it: a tag for each key and each value.

Owns the format and its grammar. The registry picks it, ``serving`` feeds its parsers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from nexa_runtime.chat.dialects.base import Dialect, Parser, ReasoningTags
from nexa_runtime.chat.dialects.lark_rules import Opened, Rules, forced, free
from nexa_runtime.chat.dialects.reading import Steps, Stops
from nexa_runtime.chat.dialects.reasoning import with_reasoning
from nexa_runtime.chat.dialects.xml_calls import XmlCallParser, XmlTags, xml_parameters
from nexa_runtime.chat.messages import Tool

_CALL, _CALL_END = "<tool_call>", "</tool_call>"
_KEY, _KEY_END = "<arg_key>", "</arg_key>"
_VALUE, _VALUE_END = "<arg_value>", "</arg_value>"


class Glm(Dialect):
    """``<tool_call>NAME<arg_key>KEY</arg_key><arg_value>VALUE</arg_value></tool_call>``."""

    name = "glm"
    markers = (_CALL, _CALL_END, _KEY, _KEY_END, _VALUE, _VALUE_END, "<think>", "</think>")
    reasoning = ReasoningTags("<think>", "</think>")

    @classmethod
    def fits(cls, template: str) -> bool:
        return all(one in template for one in (_CALL, _KEY, _VALUE))

    def parser(self, tools: Sequence[Tool], *, is_reasoning: bool = False, is_constrained: bool) -> Parser:
        tags = _GlmTags(*map(self.marked, (_CALL, _CALL_END, _KEY, _KEY_END, _VALUE, _VALUE_END)))
        inner = _GlmParser(tools, tags, is_constrained=is_constrained)
        return with_reasoning(self, inner, is_reasoning=is_reasoning)

    def grammar(self, tools: Sequence[Tool], *, is_forced: bool, is_parallel: bool) -> str:
        rules = Rules()
        tags = XmlTags(_KEY, f"{_KEY_END}\n{_VALUE}", f"{_VALUE_END}\n")
        functions = [
            self.lark(f"{tool.name}\n") + " " + xml_parameters(rules, self, tool, tags, is_forced=is_forced)
            for tool in tools
        ]
        rest = rules.rule(f"({' | '.join(functions)}) {self.lark(_CALL_END)}")
        if is_forced:
            call = rules.rule(f"{self.lark(_CALL)} {rest}")
            return forced(rules, self, call, "\n", is_parallel=is_parallel)
        return free(rules, self, [Opened(_CALL, rest)], is_parallel=is_parallel)


@dataclass(frozen=True, slots=True)
class _GlmTags:
    """The tags as they come."""

    call: str
    call_end: str
    key: str
    key_end: str
    value: str
    value_end: str


class _GlmParser(XmlCallParser):
    def __init__(self, tools: Sequence[Tool], tags: _GlmTags, *, is_constrained: bool) -> None:
        super().__init__(tools, (tags.call,), is_constrained=is_constrained)
        self._tags = tags
        self._value_end = Stops([tags.value_end])

    def _block(self, trigger: str) -> Steps[None]:
        self._begin()
        yield from self._reader.space()
        self._open((yield from self._reader.name()))
        yield from self._reader.space()
        while not (yield from self._reader.literal(self._tags.call_end)):
            yield from self._expect(self._tags.key)
            key = yield from self._key(self._tags.key_end)
            yield from self._expect(self._tags.value)
            yield from self._value(key, self._value_end)
            yield from self._reader.space()
        self._close()
