"""The one internal form of a conversation; every API converts to it.

Owns ``Message`` and its parts, tools, and what is asked of the answer (``Conversation``). It knows no wire
format and no model.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
"""A value of a JSON text."""


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
    """One turn. ``content`` None: only tools were called. ``tool_call_id``: what a tool answers.

    ``reasoning``: what the assistant thought before it spoke, where a client sends that back.
    """

    role: Role
    content: str | None
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    reasoning: str | None = None


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call. ``parameters``: the JSON schema of its arguments, an object.

    ``param``: the field of the request that has the schema, which errors name.
    """

    name: str
    description: str | None = None
    parameters: Mapping[str, Json] = field(default_factory=lambda: {"type": "object", "properties": {}})
    is_strict: bool = False
    param: str = field(default="tools", compare=False)


class ToolMode(Enum):
    """AUTO: the model decides. NONE: it calls nothing. REQUIRED: at least one. NAMED: this one, once."""

    AUTO = "auto"
    NONE = "none"
    REQUIRED = "required"
    NAMED = "named"


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """What becomes of the tools. ``name``: of the function, with NAMED."""

    mode: ToolMode = ToolMode.AUTO
    name: str | None = None

    @property
    def is_forced(self) -> bool:
        """Whether the answer is calls and nothing else."""
        return self.mode in (ToolMode.REQUIRED, ToolMode.NAMED)


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages, and how the next one is to be.

    ``is_parallel``: more than one call is welcome. ``template_options``: variables for the model's template,
    by name. ``continues``: the answer goes on where the last message, the assistant's own, ends.
    ``reasoning_budget``: most tokens of reasoning; None: as many as the model likes.
    ``param``: the field of the request that holds the messages, which errors name.
    """

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice()
    is_parallel: bool = True
    template_options: Mapping[str, str | bool | int | float] = field(default_factory=dict)
    continues: bool = False
    reasoning_budget: int | None = None
    param: str = "messages"
