"""Mistral's two ways behind ``[TOOL_CALLS]``: a list of objects, and since 2025 a name and its arguments.

Owns the family's texts, and ids that its templates take. ``registry`` chooses between the two.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace

from nexa_runtime.chat.dialects.base import Dialect, Parser, ReasoningTags
from nexa_runtime.chat.dialects.reading import Steps
from nexa_runtime.chat.dialects.shape import CallShape, ShapeDialect, ShapeParser
from nexa_runtime.chat.messages import Conversation, Message, Tool

_ID = re.compile(r"[A-Za-z0-9]{9}")
"""The only ids that the templates accept."""


class MistralParser(ShapeParser):
    """Reads both ways."""

    def __init__(
        self, dialect: Dialect, shapes: Sequence[CallShape], tools: Sequence[Tool], *, is_constrained: bool
    ) -> None:
        self._call_id, self._args = dialect.marked("[CALL_ID]"), dialect.marked("[ARGS]")
        super().__init__(dialect, shapes, tools, is_constrained=is_constrained)

    def _block(self, trigger: str) -> Steps[None]:
        yield from self._reader.space()
        if (yield from self._reader.peek()) in "[{":
            yield from self._calls()
            return
        self._begin()
        self._open((yield from self._reader.name()))
        if (yield from self._reader.literal(self._call_id)):
            yield from self._reader.name()
        yield from self._reader.literal(self._args)
        yield from self._arguments_object(self._add)
        self._close()


class Mistral(ShapeDialect):
    """``[TOOL_CALLS]`` and a list."""

    name = "mistral"
    markers = ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]")
    reasoning = ReasoningTags("[THINK]", "[/THINK]")
    shape = CallShape("[TOOL_CALLS]", opening="[", closing="]")

    @classmethod
    def fits(cls, template: str) -> bool:
        return "[TOOL_CALLS]" in template

    def prepare(self, conversation: Conversation) -> Conversation:
        """These templates refuse ids that are not nine letters and digits."""
        return replace(conversation, messages=tuple(map(_with_short_ids, conversation.messages)))

    def call_parser(self, tools: Sequence[Tool], *, is_constrained: bool) -> Parser:
        return MistralParser(self, (self.shape,), tools, is_constrained=is_constrained)


class MistralArgs(Mistral):
    """``[TOOL_CALLS]``, a name, ``[ARGS]`` and the arguments, again for every call."""

    name = "mistral_args"
    shape = CallShape(
        "[TOOL_CALLS]", before_name="", before_arguments="[ARGS]", after_arguments="", between_blocks=""
    )

    @classmethod
    def fits(cls, template: str) -> bool:
        return "[TOOL_CALLS]" in template and "[ARGS]" in template


def _with_short_ids(message: Message) -> Message:
    calls = tuple(replace(call, id=_short(call.id)) for call in message.tool_calls)
    answered = message.tool_call_id
    return replace(message, tool_calls=calls, tool_call_id=None if answered is None else _short(answered))


def _short(call_id: str) -> str:
    """The same for the same."""
    return call_id if _ID.fullmatch(call_id) else hashlib.sha256(call_id.encode()).hexdigest()[:9]
