"""Command R's two ways: a list in a fence behind ``Action:``, and, since R7B, marks around everything.

Owns the families' texts. ``registry`` chooses between them.
"""

from nexa_runtime.chat.dialects.base import ReasoningTags
from nexa_runtime.chat.dialects.prompts import with_content
from nexa_runtime.chat.dialects.shape import CallShape, ShapeDialect
from nexa_runtime.chat.messages import Conversation


class CommandR(ShapeDialect):
    """Command R and R+."""

    name = "command_r"
    shape = CallShape(
        "Action:\n```json",
        opening="\n[",
        closing="\n]```",
        before_name='\n    {\n        "tool_name": "',
        before_arguments='",\n        "parameters": ',
        after_arguments="\n    }",
        separator=",",
    )

    @classmethod
    def fits(cls, template: str) -> bool:
        return "Action:" in template and "```json" in template and '"tool_name"' in template

    def prepare(self, conversation: Conversation) -> Conversation:
        """These templates show the content of every message."""
        return with_content(conversation)


class CommandR7B(ShapeDialect):
    """Command R7B and A."""

    name = "command_r7b"
    markers = (
        "<|START_ACTION|>",
        "<|END_ACTION|>",
        "<|START_THINKING|>",
        "<|END_THINKING|>",
        "<|START_RESPONSE|>",
        "<|END_RESPONSE|>",
    )
    reasoning = ReasoningTags("<|START_THINKING|>", "<|END_THINKING|>")
    wrapping = ReasoningTags("<|START_RESPONSE|>", "<|END_RESPONSE|>")
    shape = CallShape(
        "<|START_ACTION|>",
        opening="[",
        closing="\n]<|END_ACTION|>",
        before_name='\n    {"tool_name": "',
        before_arguments='", "parameters": ',
        separator=",",
    )

    @classmethod
    def fits(cls, template: str) -> bool:
        return "<|START_ACTION|>" in template
