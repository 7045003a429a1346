"""``/v1/chat/completions`` on the wire: request, response and stream chunks.

Source: OpenAI's chat completions API.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from nexa_runtime.chat.messages import Message, Role, ToolCall
from nexa_runtime.engine.sequence import FinishReason
from nexa_runtime.errors import InvalidRequestError, UnsupportedParameterError
from nexa_runtime.server.protocol.common import (
    CommonRequest,
    WireModel,
    at_most,
    finish_name,
    usage_body,
)
from nexa_runtime.serving.generation import Usage
from nexa_runtime.serving.generation_service import GenerationOptions

MAX_MESSAGES = 2048
MAX_PARTS = 1024
MAX_TOOL_CALLS = 128


class FunctionCallWire(WireModel):
    """The call inside a tool call."""

    name: str
    arguments: str


class ToolCallWire(WireModel):
    """A tool call in an assistant's earlier turn."""

    id: str
    function: FunctionCallWire
    type: str | None = None


class ContentPart(WireModel):
    """A part of a message; only ``text`` is understood."""

    type: str
    text: str | None = None


class MessageWire(WireModel):
    """One message."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str | list[ContentPart] | None, at_most(MAX_PARTS)] = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCallWire] | None, at_most(MAX_TOOL_CALLS)] = None
    tool_call_id: str | None = None


class ChatRequest(CommonRequest):
    """A body of ``/v1/chat/completions``, null fields left out."""

    messages: Annotated[list[MessageWire], at_most(MAX_MESSAGES), Field(min_length=1)]
    max_completion_tokens: int | None = Field(None, ge=-1, le=2**31)

    def to_options(self) -> GenerationOptions:
        """``max_completion_tokens`` is the newer name of ``max_tokens`` and wins."""
        if self.max_completion_tokens == 0:
            message = "max_completion_tokens: must be at least 1, or -1 for no cap."
            raise InvalidRequestError(message, param="max_completion_tokens")
        return self.options(self.max_completion_tokens)

    def to_messages(self) -> list[Message]:
        """The internal form. Raises ``RequestError`` for parts that are not text."""
        return [_message(index, wire) for index, wire in enumerate(self.messages)]


class ChatWriter:
    """Writes the answers to one chat request."""

    def __init__(self, completion_id: str, created: int, model: str) -> None:
        self._head = {"id": completion_id, "created": created, "model": model}

    def response(self, texts: list[str], reasons: list[FinishReason], usage: Usage) -> Mapping[str, object]:
        """The whole answer."""
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": None,
                "finish_reason": finish_name(reason),
            }
            for index, (text, reason) in enumerate(zip(texts, reasons, strict=True))
        ]
        return self._head | {"object": "chat.completion", "choices": choices, "usage": usage_body(usage)}

    def first_chunk(self, index: int) -> Mapping[str, object]:
        """The chunk before any text: who speaks."""
        return self._chunk(index, {"role": "assistant", "content": ""}, None)

    def chunk(self, index: int, text: str) -> Mapping[str, object]:
        """A chunk of text."""
        return self._chunk(index, {"content": text}, None)

    def last_chunk(self, index: int, reason: FinishReason) -> Mapping[str, object]:
        """The chunk that says why a choice ended."""
        return self._chunk(index, {}, reason)

    def usage_chunk(self, usage: Usage) -> Mapping[str, object]:
        """The chunk without choices, where the client asked for usage."""
        return self._head | {"object": "chat.completion.chunk", "choices": [], "usage": usage_body(usage)}

    def _chunk(
        self, index: int, delta: Mapping[str, object], reason: FinishReason | None
    ) -> Mapping[str, object]:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_name(reason)}
        return self._head | {"object": "chat.completion.chunk", "choices": [choice]}


def _message(index: int, wire: MessageWire) -> Message:
    role = Role.SYSTEM if wire.role == "developer" else Role(wire.role)
    if role is not Role.ASSISTANT and wire.content is None:
        param = f"messages[{index}].content"
        raise InvalidRequestError(f"{param}: is required for the role {wire.role}.", param=param)
    content = wire.content
    if isinstance(content, list):
        content = "".join(_part_text(index, number, part) for number, part in enumerate(content))
    return Message(
        role=role,
        content=content,
        name=wire.name,
        tool_calls=tuple(
            ToolCall(call.id, call.function.name, call.function.arguments) for call in wire.tool_calls or ()
        ),
        tool_call_id=wire.tool_call_id,
    )


def _part_text(index: int, number: int, part: ContentPart) -> str:
    param = f"messages[{index}].content[{number}]"
    if part.type != "text":
        raise UnsupportedParameterError(f"{param}.type", f"this server reads text, not {part.type[:50]!r}")
    if part.text is None:
        raise InvalidRequestError(f"{param}.text: is required.", param=f"{param}.text")
    return part.text
