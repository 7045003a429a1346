"""MiniMax M2: calls in a block, each with its parameters between tags.

Owns the format and its grammar. The registry picks it, ``serving`` feeds its parsers.
"""

from collections.abc import Sequence

from nexa_runtime.chat.dialects.base import Dialect, Parser, ReasoningTags
from nexa_runtime.chat.dialects.lark_rules import Opened, Rules, free
from nexa_runtime.chat.dialects.reading import Steps, Stops
from nexa_runtime.chat.dialects.reasoning import with_reasoning
from nexa_runtime.chat.dialects.xml_calls import XmlCallParser, XmlTags, xml_parameters
from nexa_runtime.chat.messages import Tool

_BLOCK, _BLOCK_END = "<minimax:tool_call>", "</minimax:tool_call>"
_INVOKE, _INVOKE_END = '<invoke name="', "</invoke>"
_PARAMETER, _PARAMETER_END = '<parameter name="', "</parameter>"
_NAME_END = '">'


class MiniMax(Dialect):
    """``<minimax:tool_call><invoke name="NAME"><parameter name="KEY">VALUE</parameter></invoke>``."""

    name = "minimax"
    markers = (_BLOCK, _BLOCK_END, "<think>", "</think>")
    reasoning = ReasoningTags("<think>", "</think>")

    @classmethod
    def fits(cls, template: str) -> bool:
        return _BLOCK in template and _INVOKE in template

    def parser(self, tools: Sequence[Tool], *, is_reasoning: bool = False, is_constrained: bool) -> Parser:
        block = (self.marked(_BLOCK), self.marked(_BLOCK_END))
        inner = _MiniMaxParser(tools, block, is_constrained=is_constrained)
        return with_reasoning(self, inner, is_reasoning=is_reasoning)

    def grammar(self, tools: Sequence[Tool], *, is_forced: bool, is_parallel: bool) -> str:
        rules = Rules()
        tags = XmlTags(_PARAMETER, _NAME_END, f"{_PARAMETER_END}\n")
        end = self.lark(f"{_INVOKE_END}\n")
        call = rules.rule(
            " | ".join(
                f"{self.lark(f'{_INVOKE}{tool.name}{_NAME_END}' + chr(10))}"
                f" {xml_parameters(rules, self, tool, tags, is_forced=is_forced)} {end}"
                for tool in tools
            )
        )
        calls = rules.rule(f"{call}+" if is_parallel else call)
        rest = rules.rule(f"{self.lark(chr(10))} {calls} {self.lark(_BLOCK_END)}")
        if is_forced:
            return rules.grammar(f"{self.lark(_BLOCK)} {rest}")
        return free(rules, self, [Opened(_BLOCK, rest)], is_parallel=is_parallel)


class _MiniMaxParser(XmlCallParser):
    """``block``: the tags around all calls."""

    def __init__(self, tools: Sequence[Tool], block: tuple[str, str], *, is_constrained: bool) -> None:
        opening, self._closing = block
        super().__init__(tools, (opening,), is_constrained=is_constrained)
        self._value_end = Stops([_PARAMETER_END])

    def _block(self, trigger: str) -> Steps[None]:
        yield from self._expect(_INVOKE)
        is_call = True
        while is_call:
            yield from self._invoked()
            yield from self._reader.space()
            self._begin()
            is_call = yield from self._reader.literal(_INVOKE)
        yield from self._reader.literal(self._closing)

    def _invoked(self) -> Steps[None]:
        name = yield from self._reader.name()
        yield from self._expect(_NAME_END)
        self._open(name)
        yield from self._reader.space()
        while not (yield from self._reader.literal(_INVOKE_END)):
            yield from self._expect(_PARAMETER)
            key = yield from self._key(_NAME_END)
            yield from self._value(key, self._value_end)
            yield from self._reader.space()
        self._close()
