"""The shapes of answers under ``/v1/messages``, for the API's document.

Owns a type per body and event that ``anthropic_writer`` and ``server/errors`` make; ``endpoints`` names them,
a test holds real answers to them. It never makes an answer. Source: Anthropic's Messages API.
"""

from typing import Literal, NotRequired

from typing_extensions import TypedDict


class AnthropicErrorDetail(TypedDict):
    """What was wrong, in one sentence. ``details``: what tells Anthropic's own client how to go on."""

    type: str
    message: str
    details: NotRequired[dict[str, object]]


class AnthropicErrorBody(TypedDict):
    """The body of every error under ``/v1/messages``; a stream that is cut ends with it."""

    type: Literal["error"]
    error: AnthropicErrorDetail
    request_id: str


class SaidText(TypedDict):
    """What the model says."""

    type: Literal["text"]
    text: str


class Thought(TypedDict):
    """What the model thought; the signature says nothing."""

    type: Literal["thinking"]
    thinking: str
    signature: str


class ToolUse(TypedDict):
    """A call of a tool."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, object]


SaidBlock = SaidText | Thought | ToolUse


class MessageUsage(TypedDict):
    """Tokens of one message. ``input_tokens``: those of the prompt that were not cached."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int


class MessageEnd(TypedDict):
    """Why a message ended; null as long as it has not."""

    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"] | None
    stop_sequence: str | None


class Message(MessageEnd):
    """An answer of ``/v1/messages``."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[SaidBlock]
    usage: MessageUsage


class TokenCount(TypedDict):
    """An answer of ``/v1/messages/count_tokens``."""

    input_tokens: int


class MessageStart(TypedDict):
    """The first event: a message without content."""

    type: Literal["message_start"]
    message: Message


class BlockStart(TypedDict):
    """A block begins."""

    type: Literal["content_block_start"]
    index: int
    content_block: SaidBlock


class TextDelta(TypedDict):
    """Text is new."""

    type: Literal["text_delta"]
    text: str


class ThinkingDelta(TypedDict):
    """A thought is new."""

    type: Literal["thinking_delta"]
    thinking: str


class SignatureDelta(TypedDict):
    """The end of a thought."""

    type: Literal["signature_delta"]
    signature: str


class InputDelta(TypedDict):
    """Arguments of a call are new: part of a JSON text."""

    type: Literal["input_json_delta"]
    partial_json: str


class BlockDelta(TypedDict):
    """News of the block."""

    type: Literal["content_block_delta"]
    index: int
    delta: TextDelta | ThinkingDelta | SignatureDelta | InputDelta


class BlockStop(TypedDict):
    """The block has ended."""

    type: Literal["content_block_stop"]
    index: int


class MessageDelta(TypedDict):
    """Why the message ends, and what it took."""

    type: Literal["message_delta"]
    delta: MessageEnd
    usage: MessageUsage


class MessageStop(TypedDict):
    """The last event."""

    type: Literal["message_stop"]


Event = MessageStart | BlockStart | BlockDelta | BlockStop | MessageDelta | MessageStop | AnthropicErrorBody
