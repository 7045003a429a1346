"""Hermes' way, which Qwen 2.5, Qwen 3, Granite 4 and many others share: each call in tags of its own.

Owns the family's texts. ``registry`` chooses it.
"""

import re

from nexa_runtime.chat.dialects.base import ReasoningTags
from nexa_runtime.chat.dialects.prompts import with_content
from nexa_runtime.chat.dialects.shape import CallShape, ShapeDialect
from nexa_runtime.chat.messages import Conversation

_JSON_CALL = re.compile(r"""["']name\\?["']\s*:""")
"""What a template that writes a call as JSON has, in whatever quotes."""


class Hermes(ShapeDialect):
    """``<tool_call>``, an object with name and arguments, ``</tool_call>``."""

    name = "hermes"
    markers = ("<tool_call>", "</tool_call>", "<think>", "</think>")
    reasoning = ReasoningTags("<think>", "</think>")
    shape = CallShape("<tool_call>", opening="\n", closing="\n</tool_call>", between_blocks="\n")

    @classmethod
    def fits(cls, template: str) -> bool:
        return "<tool_call>" in template and _JSON_CALL.search(template) is not None

    def prepare(self, conversation: Conversation) -> Conversation:
        """These templates look into the content of every message."""
        return with_content(conversation)
