"""Messages on the wire: the turns of a chat, and their way to the internal form.

Owns the shapes of messages, content parts and earlier tool calls, and what each role must have. It never
renders; ``chat`` calls it. Source: OpenAI's chat completions; ``reasoning_content`` as llama-server has it.
"""

from typing import Annotated, Literal

from pydantic import Field

from nexa_runtime.chat.messages import Message, Role, ToolCall
from nexa_runtime.errors import InvalidRequestError, UnsupportedParameterError
from nexa_runtime.server.protocol.wire import WireModel, at_most

MAX_PARTS = 1024
MAX_TOOL_CALLS = 128


class FunctionCallWire(WireModel):
    """The call inside a tool call. ``arguments``: JSON text, as the model wrote it."""

    name: str
    arguments: str


class ToolCallWire(WireModel):
    """A tool call in an assistant's earlier turn."""

    id: str
    function: FunctionCallWire
    type: str | None = Field(None, json_schema_extra={"enum": ["function", None]})


class ContentPart(WireModel):
    """A part of a message; ``text`` and ``refusal`` are understood."""

    type: str = Field(json_schema_extra={"enum": ["text", "refusal"]})
    text: str | None = None
    refusal: str | None = None


class MessageWire(WireModel):
    """One message. ``refusal``, ``reasoning_content`` and ``reasoning``: of an assistant's earlier turn."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str | list[ContentPart] | None, at_most(MAX_PARTS)] = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCallWire] | None, at_most(MAX_TOOL_CALLS)] = None
    tool_call_id: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


def read_message(index: int, wire: MessageWire) -> Message:
    """The internal form of the message at ``messages[index]``. Raises ``InvalidRequestError``."""
    path = f"messages[{index}]"
    role = Role.SYSTEM if wire.role == "developer" else Role(wire.role)
    content = _content(path, wire)
    reasoning = wire.reasoning if wire.reasoning_content is None else wire.reasoning_content
    if role is Role.ASSISTANT:
        content = wire.refusal if content is None else content
        if content is None and not wire.tool_calls:
            reason = "is required for an assistant without tool_calls"
            raise InvalidRequestError(f"{path}.content: {reason}.", param=f"{path}.content")
    else:
        if content is None:
            reason = f"is required for the role {wire.role}"
            raise InvalidRequestError(f"{path}.content: {reason}.", param=f"{path}.content")
        if wire.tool_calls:
            param = f"{path}.tool_calls"
            raise InvalidRequestError(f"{param}: only an assistant calls tools.", param=param)
        if reasoning is not None:
            param = f"{path}.{'reasoning' if wire.reasoning_content is None else 'reasoning_content'}"
            raise InvalidRequestError(f"{param}: only an assistant reasons.", param=param)
    if role is Role.TOOL and wire.tool_call_id is None:
        param = f"{path}.tool_call_id"
        raise InvalidRequestError(f"{param}: is required for the role tool.", param=param)
    return Message(
        role=role,
        content=content,
        name=wire.name,
        tool_calls=tuple(_call(path, number, call) for number, call in enumerate(wire.tool_calls or ())),
        tool_call_id=wire.tool_call_id,
        reasoning=reasoning,
    )


def _call(path: str, number: int, wire: ToolCallWire) -> ToolCall:
    if wire.type not in (None, "function"):
        param = f"{path}.tool_calls[{number}].type"
        raise UnsupportedParameterError(param, f"this server calls functions, not {wire.type[:50]!r}")
    return ToolCall(wire.id, wire.function.name, wire.function.arguments)


def _content(path: str, wire: MessageWire) -> str | None:
    content = wire.content
    if isinstance(content, list):
        return "".join(_part(f"{path}.content[{number}]", part) for number, part in enumerate(content))
    return content


def _part(path: str, part: ContentPart) -> str:
    if part.type not in ("text", "refusal"):
        raise UnsupportedParameterError(f"{path}.type", f"this server reads text, not {part.type[:50]!r}")
    text = part.text if part.type == "text" else part.refusal
    if text is None:
        raise InvalidRequestError(f"{path}.{part.type}: is required.", param=f"{path}.{part.type}")
    return text
