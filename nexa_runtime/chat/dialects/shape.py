"""The one shape of most dialects: a text that begins calls, JSON, a text that ends them.

Owns ``CallShape``, by which a family says how it writes calls, and the parser, the grammar and the dialect
that follow from it. It knows no family. The families' modules derive from ``ShapeDialect``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from nexa_runtime.chat.dialects.base import Dialect, Parser, ReasoningTags
from nexa_runtime.chat.dialects.calls import CallParser
from nexa_runtime.chat.dialects.lark_rules import Opened, Rules, forced, free, named_calls
from nexa_runtime.chat.dialects.reading import Steps
from nexa_runtime.chat.dialects.reasoning import WrappedStage, with_reasoning
from nexa_runtime.chat.messages import Tool


@dataclass(frozen=True, slots=True)
class CallShape:
    """Texts around calls, as the family's models are used to them.

    A block is ``trigger``, ``opening``, calls with ``separator`` between them, ``closing``. A call is
    ``before_name``, the name, ``before_arguments``, the arguments and ``after_arguments``. With
    ``between_blocks``, every call has a block of its own.
    """

    trigger: str
    opening: str = ""
    closing: str = ""
    before_name: str = '{"name": "'
    before_arguments: str = '", "arguments": '
    after_arguments: str = "}"
    separator: str = ", "
    between_blocks: str | None = None

    def beginning(self) -> list[str]:
        """What stands in front of the JSON, word by word."""
        return f"{self.trigger} {self.opening.rstrip().removesuffix('[')}".split()

    def end(self) -> str:
        """What stands behind the JSON."""
        return self.closing.strip().removeprefix("]").strip()


class ShapeParser(CallParser):
    """Reads blocks of any of ``shapes``, whatever the space between their parts."""

    def __init__(
        self, dialect: Dialect, shapes: Sequence[CallShape], tools: Sequence[Tool], *, is_constrained: bool
    ) -> None:
        self._parts: dict[str, tuple[list[str], str]] = {}
        for shape in shapes:
            trigger, *opening = map(dialect.marked, shape.beginning())
            self._parts[trigger] = (opening, dialect.marked(shape.end()))
        super().__init__(tools, self._parts, is_constrained=is_constrained)

    def _block(self, trigger: str) -> Steps[None]:
        opening, closing = self._parts[trigger]
        yield from self._expect(*opening)
        yield from self._calls()
        yield from self._reader.space()
        if closing:
            yield from self._reader.literal(closing)


class ShapeDialect(Dialect):
    """A family that writes calls in ``shape``; its models may have learnt ``other_shapes`` too."""

    shape: ClassVar[CallShape]
    other_shapes: ClassVar[tuple[CallShape, ...]] = ()
    wrapping: ClassVar[ReasoningTags | None] = None
    """Tags around content."""

    def parser(self, tools: Sequence[Tool], *, is_reasoning: bool = False, is_constrained: bool) -> Parser:
        parser = self.call_parser(tools, is_constrained=is_constrained)
        if self.wrapping:
            parser = WrappedStage(
                self.marked(self.wrapping.opening), self.marked(self.wrapping.closing), parser
            )
        return with_reasoning(self, parser, is_reasoning=is_reasoning)

    def call_parser(self, tools: Sequence[Tool], *, is_constrained: bool) -> Parser:
        """A parser for what follows the reasoning."""
        return ShapeParser(self, (self.shape, *self.other_shapes), tools, is_constrained=is_constrained)

    def grammar(self, tools: Sequence[Tool], *, is_forced: bool, is_parallel: bool) -> str:
        shape, lark, rules = self.shape, self.lark, Rules()
        call = named_calls(
            rules, self, tools, shape.before_name, shape.before_arguments, shape.after_arguments
        )
        has_many = is_parallel and shape.between_blocks is None
        calls = f"{call} ({lark(shape.separator)} {call})*" if has_many else call
        rest = rules.rule(f"{lark(shape.opening)} {calls} {lark(shape.closing)}")
        if not is_forced:
            return free(rules, self, [Opened(shape.trigger, rest)], is_parallel=is_parallel)
        block = f"{lark(shape.trigger)} {rest}"
        return forced(
            rules, self, block, shape.between_blocks or "", is_parallel=is_parallel and not has_many
        )
