"""Qwen3-Coder, Qwen3.5, Nemotron 3, Step 3.5: a tag for the function, and one for each parameter.

Owns the format and its grammar. The registry picks it, ``serving`` feeds its parsers.
"""

from collections.abc import Sequence
from typing import ClassVar

from nexa_runtime.chat.dialects.base import Dialect, Parser, ReasoningTags, lark_literal
from nexa_runtime.chat.dialects.lark_rules import Opened, Rules, forced, free
from nexa_runtime.chat.dialects.reading import Steps, Stops
from nexa_runtime.chat.dialects.reasoning import with_reasoning
from nexa_runtime.chat.dialects.xml_calls import XmlCallParser, XmlTags, xml_parameters
from nexa_runtime.chat.messages import Tool

_FUNCTION, _FUNCTION_END = "<function=", "</function>"
_PARAMETER, _PARAMETER_END = "<parameter=", "</parameter>"
_LINE = '"\\n" '


class Qwen3Coder(Dialect):
    """``<tool_call><function=NAME><parameter=KEY>`` and the value on lines of its own."""

    name = "qwen3_coder"
    markers: ClassVar[tuple[str, ...]] = ("<tool_call>", "</tool_call>", "<think>", "</think>")
    reasoning = ReasoningTags("<think>", "</think>")
    _outer: ClassVar = "<tool_call>"
    _outer_end: ClassVar = "</tool_call>"
    _tags: ClassVar = XmlTags(_PARAMETER, ">\n", f"\n{_PARAMETER_END}\n")

    @classmethod
    def fits(cls, template: str) -> bool:
        return all(one in template for one in (cls._outer, _FUNCTION, _PARAMETER))

    def parser(self, tools: Sequence[Tool], *, is_reasoning: bool = False, is_constrained: bool) -> Parser:
        outer = (self.marked(self._outer), self.marked(self._outer_end))
        line = self._tags.between.removeprefix(">")
        inner = _Qwen3CoderParser(tools, outer, line, is_constrained=is_constrained)
        return with_reasoning(self, inner, is_reasoning=is_reasoning)

    def grammar(self, tools: Sequence[Tool], *, is_forced: bool, is_parallel: bool) -> str:
        rules = Rules()
        end = self.lark(f"{_FUNCTION_END}\n{self._outer_end}")
        functions: list[tuple[str, str]] = []
        for tool in tools:
            inner = xml_parameters(rules, self, tool, self._tags, is_forced=is_forced)
            functions.append((f"{_FUNCTION}{tool.name}>", rules.rule(f"{_LINE}{inner} {end}")))
        function = rules.rule(" | ".join(f"{lark_literal(head)} {rest}" for head, rest in functions))
        if is_forced:
            call = rules.rule(f"{self.lark(self._outer)} {rules.rule(_LINE + function)}")
            return forced(rules, self, call, "\n", is_parallel=is_parallel)
        calls = [Opened(self._outer, rules.rule(_LINE + function))]
        calls += [Opened(head, rest) for head, rest in functions]
        return free(rules, self, calls, is_parallel=is_parallel)


class SeedOss(Qwen3Coder):
    """Seed-OSS: other outer tags, and values right between theirs."""

    name = "seed_oss"
    markers = ("<seed:tool_call>", "</seed:tool_call>", "<seed:think>", "</seed:think>")
    reasoning = ReasoningTags("<seed:think>", "</seed:think>")
    _outer = "<seed:tool_call>"
    _outer_end = "</seed:tool_call>"
    _tags = XmlTags(_PARAMETER, ">", f"{_PARAMETER_END}\n")


class _Qwen3CoderParser(XmlCallParser):
    """``outer``: the tags around a function, which models forget at times. ``line``: line ends at values."""

    def __init__(
        self, tools: Sequence[Tool], outer: tuple[str, str], line: str, *, is_constrained: bool
    ) -> None:
        self._outer, self._outer_end = outer
        super().__init__(tools, (self._outer, _FUNCTION), is_constrained=is_constrained)
        self._line = line
        self._value_end = Stops({line + _PARAMETER_END, _PARAMETER_END})

    def _block(self, trigger: str) -> Steps[None]:
        self._begin()
        if trigger == self._outer:
            yield from self._expect(_FUNCTION)
        name = yield from self._reader.name()
        yield from self._expect(">")
        self._open(name)
        yield from self._reader.space()
        while not (yield from self._reader.literal(_FUNCTION_END)):
            yield from self._expect(_PARAMETER)
            key = yield from self._key(">")
            yield from self._reader.literal(self._line)
            yield from self._value(key, self._value_end)
            yield from self._reader.space()
        self._close()
        yield from self._reader.space()
        yield from self._reader.literal(self._outer_end)
