"""Turns on the wire of ``/v1/messages``: content blocks, and their way to the internal messages.

Owns the shapes of the blocks, which role may have which, and how turns become messages. It never renders;
``anthropic`` calls it. Source: Anthropic's Messages API.

- Texts of one message are joined as they are, those of consecutive messages of one role by an empty line.
- Results of tools become messages of their own, before the text of the user who sent them. What failed says
  so in its text, for templates know no failed tools.
- The thinking of an earlier turn goes back to the model; what was redacted cannot, and is named as ignored.
- An empty last message of the assistant asks for nothing; one with text is continued.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, assert_never

from pydantic import Discriminator, Tag
from pydantic.json_schema import SkipJsonSchema

from nexa_runtime.chat.messages import Message, Role, ToolCall
from nexa_runtime.errors import InvalidRequestError, UnsupportedParameterError
from nexa_runtime.server.protocol.messages import MAX_PARTS
from nexa_runtime.server.protocol.wire import WireModel, at_most, json_text

MAX_INPUT_BYTES = 2**20
"""Of the inputs of all calls together: writing them as text holds the event loop."""

_FAILED = "Error: "


class TextBlock(WireModel):
    """Text. What it cites, and where a cache may end, changes nothing here."""

    type: Literal["text"]
    text: str
    citations: Any = None
    cache_control: Any = None


class ToolUseBlock(WireModel):
    """A call that the assistant made."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]
    cache_control: Any = None


class ThinkingBlock(WireModel):
    """What the assistant thought. The signature is this server's own and says nothing."""

    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class RedactedThinkingBlock(WireModel):
    """What another server's assistant thought, in a form that nobody else can read."""

    type: Literal["redacted_thinking"]


class OtherBlock(WireModel):
    """What this server does not read, such as images."""

    type: str


def _one_of(*kinds: str) -> Discriminator:
    """Chooses a block by its type; what is none of them is ``other``."""

    def kind(block: object) -> str:
        name = block.get("type") if isinstance(block, dict) else getattr(block, "type", None)
        return name if isinstance(name, str) and name in kinds else "other"

    return Discriminator(kind)


_Text = Annotated[TextBlock, Tag("text")]
_Other = Annotated[SkipJsonSchema[OtherBlock], Tag("other")]
_Plain = Annotated[_Text | _Other, _one_of("text")]


class ToolResultBlock(WireModel):
    """What a tool answered. ``is_error``: it failed, and says why."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: Annotated[str | list[_Plain] | None, at_most(MAX_PARTS)] = None
    is_error: bool | None = None
    cache_control: Any = None


Block = TextBlock | ToolUseBlock | ToolResultBlock | ThinkingBlock | RedactedThinkingBlock | OtherBlock
_AnyBlock = Annotated[
    _Text
    | Annotated[ToolUseBlock, Tag("tool_use")]
    | Annotated[ToolResultBlock, Tag("tool_result")]
    | Annotated[ThinkingBlock, Tag("thinking")]
    | Annotated[RedactedThinkingBlock, Tag("redacted_thinking")]
    | _Other,
    _one_of("text", "tool_use", "tool_result", "thinking", "redacted_thinking"),
]

SystemWire = Annotated[str | list[_Plain], at_most(MAX_PARTS)]


class AnthropicMessage(WireModel):
    """One message; a system's stands among the others where it holds from then on."""

    role: Literal["user", "assistant", "system"]
    content: Annotated[str | list[_AnyBlock], at_most(MAX_PARTS)]


def read_messages(
    system: str | Sequence[Block] | None, wires: Sequence[AnthropicMessage]
) -> tuple[Message, ...]:
    """The internal form. Raises ``InvalidRequestError``."""
    reader = _Reader()
    if system is not None and system != []:
        reader.add(Role.SYSTEM, system, "system")
    for index, wire in enumerate(wires):
        reader.add(Role(wire.role), wire.content, f"messages[{index}].content")
    return reader.messages()


@dataclass(slots=True)
class _Turn:
    """Consecutive messages of one role. ``texts``: of each message that has any."""

    role: Role
    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    results: list[Message] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether nothing was said, thought or called."""
        return not (any(self.texts) or any(self.thoughts) or self.calls or self.results)

    def messages(self) -> list[Message]:
        """The results of tools, then what was said."""
        if self.results and not self.texts:
            return self.results
        content = _joined(self.texts) if self.texts or not self.calls else None
        reasoning = _joined(self.thoughts) or None
        said = Message(self.role, content, tool_calls=tuple(self.calls), reasoning=reasoning)
        return [*self.results, said]


def _joined(texts: Sequence[str]) -> str:
    return "\n\n".join(filter(None, texts))


class _Reader:
    """Puts messages into turns, and holds each block against its role."""

    def __init__(self) -> None:
        self._turns: list[_Turn] = []
        self._call_ids: set[str] = set()
        self._num_input_bytes = 0

    def add(self, role: Role, content: str | Sequence[Block], path: str) -> None:
        """Add a message's content, which stands at ``path``."""
        if not self._turns or self._turns[-1].role is not role:
            self._turns.append(_Turn(role))
        turn = self._turns[-1]
        if isinstance(content, str):
            turn.texts.append(content)
            return
        if not content and role is not Role.ASSISTANT:
            raise InvalidRequestError(f"{path}: must not be empty.", param=path)
        texts: list[str] = []
        for number, block in enumerate(content):
            if isinstance(block, TextBlock):
                texts.append(block.text)
            else:
                self._add_block(turn, block, f"{path}[{number}]")
        if texts:
            turn.texts.append("".join(texts))

    def messages(self) -> tuple[Message, ...]:
        """All of them; the last is one to answer, or the assistant's own to go on with."""
        last = self._turns[-1]
        if last.role is Role.ASSISTANT:
            if last.calls:
                message = "messages: end with a tool_use; the tool_result that answers it comes next."
                raise InvalidRequestError(message, param="messages")
            if last.is_empty and len(self._turns) > 1:
                self._turns.pop()
            elif not any(last.texts):
                message = "messages: end with a message of the assistant that has no text to continue."
                raise InvalidRequestError(message, param="messages")
        return tuple(message for turn in self._turns for message in turn.messages())

    def _add_block(
        self,
        turn: _Turn,
        block: ToolUseBlock | ToolResultBlock | ThinkingBlock | RedactedThinkingBlock | OtherBlock,
        path: str,
    ) -> None:
        if isinstance(block, OtherBlock):
            raise _unread(block, path)
        owner = Role.USER if isinstance(block, ToolResultBlock) else Role.ASSISTANT
        if turn.role is not owner:
            reason = f"{block.type} belongs into a message of the {owner.value}"
            raise InvalidRequestError(f"{path}.type: {reason}.", param=f"{path}.type")
        match block:
            case ToolUseBlock():
                self._call_ids.add(block.id)
                turn.calls.append(self._call(block, path))
            case ToolResultBlock():
                if block.tool_use_id not in self._call_ids:
                    param = f"{path}.tool_use_id"
                    raise InvalidRequestError(f"{param}: is the id of no tool_use before it.", param=param)
                turn.results.append(_result(block, path))
            case ThinkingBlock():
                turn.thoughts.append(block.thinking)
            case RedactedThinkingBlock():
                pass
            case _:
                assert_never(block)

    def _call(self, block: ToolUseBlock, path: str) -> ToolCall:
        param = f"{path}.input"
        self._num_input_bytes += len(json_text(block.input, max_bytes=MAX_INPUT_BYTES, param=param).encode())
        if self._num_input_bytes > MAX_INPUT_BYTES:
            message = f"{param}: with those before it, must have at most {MAX_INPUT_BYTES} bytes."
            raise InvalidRequestError(message, param=param)
        # With the spaces that models put there themselves.
        return ToolCall(block.id, block.name, json.dumps(block.input, ensure_ascii=False))


def _result(block: ToolResultBlock, path: str) -> Message:
    content = block.content or ""
    if not isinstance(content, str):
        content = "".join(_text(part, f"{path}.content[{number}]") for number, part in enumerate(content))
    return Message(
        Role.TOOL, f"{_FAILED}{content}" if block.is_error else content, tool_call_id=block.tool_use_id
    )


def _text(block: TextBlock | OtherBlock, path: str) -> str:
    if isinstance(block, OtherBlock):
        raise _unread(block, path)
    return block.text


def _unread(block: OtherBlock, path: str) -> UnsupportedParameterError:
    return UnsupportedParameterError(f"{path}.type", f"this server reads text, not {block.type[:50]!r}")
