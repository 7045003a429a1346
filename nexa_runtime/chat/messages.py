"""The one internal form of a conversation; every API converts to it.

Owns ``Message`` and its parts. It knows no wire format and no model.
"""

from dataclasses import dataclass
from enum import Enum


class Role(Enum):
    """Who speaks. OpenAI's ``developer`` is SYSTEM here."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the assistant made. ``arguments``: JSON text, as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. ``content`` None: only tools were called. ``tool_call_id``: what a tool answers."""

    role: Role
    content: str | None
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
