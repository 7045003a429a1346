"""Qwen3-Coder, Qwen3.5, Nemotron 3, Step 3.5: a tag for the function, and one for each parameter.

Owns the format and its grammar. The registry picks it, ``serving`` feeds its parsers.
"""

from collections.abc import Sequence
from typing import ClassVar

from nexa_runtime.chat.dialects.base import Dialect, Parser, ReasoningTags
from nexa_runtime.chat.dialects.lark_rules import Opened, Rules, forced, free
from nexa_runtime.chat.dialects.reading import Steps, Stops
from nexa_runtime.chat.dialects.reasoning import with_reasoning
from nexa_runtime.chat.dialects.xml_calls import XmlCallParser, XmlTags, xml_parameters
from nexa_runtime.chat.messages import Tool

_OUTER, _OUTER_END = "<tool_call>", "</tool_call>"
_FUNCTION, _FUNCTION_END = "<function=", "</function>"
_PARAMETER, _PARAMETER_END = "<parameter=", "</parameter>"


class Qwen3Coder(Dialect):
    """``<tool_call><function=NAME><parameter=KEY>`` and the value on lines of its own."""

    name = "qwen3_coder"
    markers = (_OUTER, _OUTER_END, "<think>", "</think>")
    reasoning = ReasoningTags("<think>", "</think>")
    _tags: ClassVar = XmlTags(f"{_PARAMETER}", ">\n", f"\n{_PARAMETER_END}\n")

    @classmethod
    def fits(cls, template: str) -> bool:
        return all(one in template for one in (_OUTER, _FUNCTION, _PARAMETER))

    def parser(self, tools: Sequence[Tool], *, is_reasoning: bool = False, is_constrained: bool) -> Parser:
        outer = (self.marked(_OUTER), self.marked(_OUTER_END))
        inner = _Qwen3CoderParser(tools, outer, is_constrained=is_constrained)
        return with_reasoning(self, inner, is_reasoning=is_reasoning)

    def grammar(self, tools: Sequence[Tool], *, is_forced: bool, is_parallel: bool) -> str:
        rules = Rules()
        bodies = {tool.name: self._body(rules, tool) for tool in tools}
        functions = " | ".join(
            f"{self.lark(f'{_FUNCTION}{name}>' + chr(10))} {body}" for name, body in bodies.items()
        )
        function = rules.rule(functions)
        if is_forced:
            call = rules.rule(f"{self.lark(_OUTER + chr(10))} {function}")
            return forced(rules, self, call, "\n", is_parallel=is_parallel)
        calls = [Opened(_OUTER, rules.rule(f"{self.lark(chr(10))} {function}"))]
        calls += [
            Opened(f"{_FUNCTION}{name}>", rules.rule(f"{self.lark(chr(10))} {body}"))
            for name, body in bodies.items()
        ]
        return free(rules, self, calls, is_parallel=is_parallel)

    def _body(self, rules: Rules, tool: Tool) -> str:
        """What follows a function's name."""
        values = xml_parameters(rules, self, tool, self._tags)
        return rules.rule(f"{values} {self.lark(f'{_FUNCTION_END}{chr(10)}{_OUTER_END}')}")


class _Qwen3CoderParser(XmlCallParser):
    """``outer``: the tags around a function, which models forget at times."""

    def __init__(self, tools: Sequence[Tool], outer: tuple[str, str], *, is_constrained: bool) -> None:
        self._outer, self._outer_end = outer
        super().__init__(tools, (self._outer, _FUNCTION), is_constrained=is_constrained)
        self._value_end = Stops(["\n" + _PARAMETER_END, _PARAMETER_END])

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
            yield from self._reader.literal("\n")
            yield from self._value(key, self._value_end)
            yield from self._reader.space()
        self._close()
        yield from self._reader.space()
        yield from self._reader.literal(self._outer_end)
