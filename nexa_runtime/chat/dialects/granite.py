"""Granite 3's way: one mark, then a list of calls. Granite 4 writes as Hermes does.

Owns the family's texts, and the messages that its templates cannot fill in themselves. ``registry`` chooses
it.
"""

from dataclasses import replace

from nexa_runtime.chat.dialects.base import ReasoningTags
from nexa_runtime.chat.dialects.prompts import call_list
from nexa_runtime.chat.dialects.shape import CallShape, ShapeDialect
from nexa_runtime.chat.messages import Conversation, Message


class Granite(ShapeDialect):
    """``<|tool_call|>`` and a list; ``<response>`` may wrap what comes behind the reasoning."""

    name = "granite"
    markers = ("<|tool_call|>", "<tool_call>", "</tool_call>", "<think>", "</think>")
    reasoning = ReasoningTags("<think>", "</think>")
    wrapping = ReasoningTags("<response>", "</response>")
    shape = CallShape("<|tool_call|>", opening="[", closing="]")
    other_shapes = (CallShape("<tool_call>", opening="[", closing="]</tool_call>"),)

    @classmethod
    def fits(cls, template: str) -> bool:
        return "<|tool_call|>" in template and "<|start_of_role|>" in template

    def prepare(self, conversation: Conversation) -> Conversation:
        """These templates show a message's content only: calls become part of it."""
        return replace(conversation, messages=tuple(map(self._shown, conversation.messages)))

    def _shown(self, message: Message) -> Message:
        mark = self.marked(self.shape.trigger)
        calls = f"{mark}{call_list(message.tool_calls)}" if message.tool_calls else ""
        return replace(message, content=(message.content or "") + calls, tool_calls=())
