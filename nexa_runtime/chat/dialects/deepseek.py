"""DeepSeek's two ways: R1 and V3 put arguments into a fence, V3.1 writes them plainly.

Owns the family's texts, and what its templates leave open. ``registry`` chooses between the two.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from nexa_runtime.chat.dialects.base import Dialect, Parser, ReasoningTags
from nexa_runtime.chat.dialects.calls import CallParser
from nexa_runtime.chat.dialects.prompts import tool_list, with_system_text
from nexa_runtime.chat.dialects.reading import Steps
from nexa_runtime.chat.dialects.shape import CallShape, ShapeDialect
from nexa_runtime.chat.messages import Conversation, Message, Tool, ToolMode

_BAR, _SPACE = "\uff5c", "\u2581"
CALLS_BEGIN, CALLS_END, CALL_BEGIN, CALL_END, SEPARATOR = (
    f"<{_BAR}{words.replace(' ', _SPACE)}{_BAR}>"
    for words in ("tool calls begin", "tool calls end", "tool call begin", "tool call end", "tool sep")
)

_ARGUMENTS_AS_JSON = re.compile(r"arg\w*['\"\]\s]*\|\s*tojson")
"""A template that takes the arguments as an object."""


class DeepSeekParser(CallParser):
    """Reads both ways."""

    def __init__(self, dialect: Dialect, tools: Sequence[Tool], *, is_constrained: bool) -> None:
        self._calls_begin, self._calls_end = dialect.marked(CALLS_BEGIN), dialect.marked(CALLS_END)
        self._call_begin, self._call_end = dialect.marked(CALL_BEGIN), dialect.marked(CALL_END)
        self._separator = dialect.marked(SEPARATOR)
        super().__init__(tools, (self._calls_begin, self._call_begin), is_constrained=is_constrained)

    def _block(self, trigger: str) -> Steps[None]:
        if trigger == self._calls_begin:
            yield from self._expect(self._call_begin)
        while True:
            yield from self._one()
            yield from self._reader.space()
            self._begin()
            if not (yield from self._reader.literal(self._call_begin)):
                break
        yield from self._reader.literal(self._calls_end)

    def _one(self) -> Steps[None]:
        """Reads a call behind the mark that begins it."""
        word = yield from self._reader.name()
        yield from self._expect(self._separator)
        if (yield from self._reader.peek()) in '{"':
            self._open(word)
        else:
            self._open((yield from self._reader.name()))
            yield from self._expect("```json")
        yield from self._arguments_object(self._add)
        self._close()
        for text in ("```", self._call_end):
            yield from self._reader.space()
            yield from self._reader.literal(text)


class DeepSeek(ShapeDialect):
    """V3.1: the name, a separator, the arguments."""

    name = "deepseek"
    markers = (CALLS_BEGIN, CALLS_END, CALL_BEGIN, CALL_END, SEPARATOR, "<think>", "</think>")
    reasoning = ReasoningTags("<think>", "</think>")
    shape = CallShape(
        CALLS_BEGIN,
        closing=CALLS_END,
        before_name=CALL_BEGIN,
        before_arguments=SEPARATOR,
        after_arguments=CALL_END,
        separator="",
    )

    @classmethod
    def fits(cls, template: str) -> bool:
        return CALLS_BEGIN in template

    def call_parser(self, tools: Sequence[Tool], *, is_constrained: bool) -> Parser:
        return DeepSeekParser(self, tools, is_constrained=is_constrained)

    def prepare(self, conversation: Conversation) -> Conversation:
        """DeepSeek's own templates show calls, but not the tools."""
        is_shown = re.search(r"\btools\b", self.template)
        if is_shown or not conversation.tools or conversation.tool_choice.mode is ToolMode.NONE:
            return conversation
        call = (
            self.shape.before_name + "NAME" + self.shape.before_arguments + "{}" + self.shape.after_arguments
        )
        text = (
            f"## Tools\nYou may call these functions:\n{tool_list(conversation.tools)}\n\n"
            f"To call one, write its name and a JSON object of arguments in exactly this way:\n"
            + self.marked(f"{CALLS_BEGIN}{call}{CALLS_END}")
        )
        return with_system_text(conversation, text)


class DeepSeekR1(DeepSeek):
    """R1 and V3: the word ``function``, a separator, the name, the arguments in a fence."""

    name = "deepseek_r1"
    shape = CallShape(
        CALLS_BEGIN,
        closing=CALLS_END,
        before_name=f"{CALL_BEGIN}function{SEPARATOR}",
        before_arguments="\n```json\n",
        after_arguments=f"\n```{CALL_END}",
        separator="\n",
    )

    def __init__(self, special_texts: Mapping[str, int], template: str = "") -> None:
        super().__init__(special_texts, template)
        self.takes_arguments_as_text = not _ARGUMENTS_AS_JSON.search(template)

    @classmethod
    def fits(cls, template: str) -> bool:
        return super().fits(template) and "```" in template

    def prepare(self, conversation: Conversation) -> Conversation:
        """These templates show the calls of a message only if it has no content."""
        turns = [part for message in conversation.messages for part in _apart(message)]
        return super().prepare(replace(conversation, messages=tuple(turns)))


def _apart(message: Message) -> Iterator[Message]:
    if not message.tool_calls:
        yield message
        return
    if message.content:
        yield replace(message, tool_calls=())
    yield replace(message, content=None)
