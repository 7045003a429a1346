"""The input of ``/v1/responses`` on the wire: its items, and their way to messages of the internal form.

Owns the shapes of messages, calls, outputs and reasoning as that API has them, and which items of an
assistant are one turn. It never renders; ``responses`` calls it. Source: OpenAI's Responses API.

Deliberate: the server keeps nothing, so the output of a call needs that call in front of it; with OpenAI it
may be in an earlier response.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag
from pydantic.json_schema import SkipJsonSchema

from nexa_runtime.chat.messages import Message, Role, ToolCall
from nexa_runtime.errors import InvalidRequestError, UnsupportedParameterError
from nexa_runtime.server.protocol.messages import MAX_PARTS
from nexa_runtime.server.protocol.wire import WireModel, at_most

MAX_ITEMS = 4096

NO_STATE = "this server keeps no responses, so send the whole conversation as input"

_TEXT_PARTS = ("input_text", "output_text", "text")


class InputPart(WireModel):
    """A part of a message or of an output; text and refusals are understood. Of what an answer had,
    ``annotations`` and ``logprobs`` say nothing to a model.
    """

    type: str = Field(json_schema_extra={"enum": [*_TEXT_PARTS, "refusal"]})
    text: str | None = None
    refusal: str | None = None
    annotations: Any = None
    logprobs: Any = None


Content = Annotated[str | list[InputPart], at_most(MAX_PARTS)]


class Item(WireModel):
    """What items have that come back from an answer; none of it changes anything."""

    id: str | None = None
    status: str | None = None


class MessageItem(Item):
    """One message. ``phase``: of an assistant's earlier one."""

    type: Literal["message"] | None = None
    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    phase: str | None = None


class CallItem(Item):
    """A call that the assistant made. ``arguments``: JSON text, as the model wrote it."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class OutputItem(Item):
    """What a call returned."""

    type: Literal["function_call_output"]
    call_id: str
    output: Content


class ReasoningPart(WireModel):
    """Part of a reasoning or of its summary."""

    type: str | None = None
    text: str


class ReasoningItem(Item):
    """What the assistant thought. ``content`` is all of it; without one, the ``summary`` has to do."""

    type: Literal["reasoning"]
    summary: Annotated[list[ReasoningPart] | None, at_most(MAX_PARTS)] = None
    content: Annotated[list[ReasoningPart] | None, at_most(MAX_PARTS)] = None


class OtherItem(WireModel):
    """An item that is not understood; without a type it is a reference to one that is kept."""

    type: str | None = None


def _kind(value: object) -> str:
    """The tag of an item's class; messages may leave their type out."""
    if not isinstance(value, Mapping):
        return "message"
    kind = value.get("type")
    if kind is None:
        return "other" if "role" not in value and "id" in value else "message"
    return kind if kind in ("message", "function_call", "function_call_output", "reasoning") else "other"


InputItem = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[OutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")]
    | Annotated[SkipJsonSchema[OtherItem], Tag("other")],
    Discriminator(_kind),
]


@dataclass(slots=True)
class _Turn:
    """A message that is being put together: an assistant's may be several items."""

    role: Role
    content: str | None = None
    reasoning: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    call_id: str | None = None

    def message(self) -> Message:
        return Message(
            self.role,
            # Who has only thought has said nothing.
            "" if self.content is None and not self.calls else self.content,
            tool_calls=tuple(self.calls),
            tool_call_id=self.call_id,
            reasoning="\n\n".join(self.reasoning) or None,
        )


def read_input(items: str | list[InputItem], instructions: str | None) -> tuple[Message, ...]:
    """The internal form, with ``instructions`` in front. Raises ``InvalidRequestError``.

    Instructions and the system messages right behind them are one: few templates take two.
    """
    turns = [_Turn(Role.USER, items)] if isinstance(items, str) else _turns(items)
    if instructions:
        system = [instructions]
        while turns and turns[0].role is Role.SYSTEM:
            system.append(turns.pop(0).content or "")
        turns.insert(0, _Turn(Role.SYSTEM, "\n\n".join(filter(None, system))))
    return tuple(turn.message() for turn in turns)


def _turns(items: Iterable[InputItem]) -> list[_Turn]:
    turns: list[_Turn] = []
    called: set[str] = set()
    for index, item in enumerate(items):
        path = f"input[{index}]"
        if isinstance(item, OtherItem):
            raise _refused(path, item.type or "item_reference")
        if isinstance(item, OutputItem):
            if item.call_id not in called:
                message = f"{path}.call_id: is of no function_call in front of it ({NO_STATE})."
                raise InvalidRequestError(message, param=f"{path}.call_id")
            turns.append(_Turn(Role.TOOL, _text(f"{path}.output", item.output), call_id=item.call_id))
        elif isinstance(item, MessageItem) and item.role != "assistant":
            role = Role.USER if item.role == "user" else Role.SYSTEM
            turns.append(_Turn(role, _text(f"{path}.content", item.content)))
        else:
            _add(path, item, turns)
            if isinstance(item, CallItem):
                called.add(item.call_id)
    return turns


def _add(path: str, item: MessageItem | CallItem | ReasoningItem, turns: list[_Turn]) -> None:
    """Put an item of the assistant's where it belongs. What it thinks, says and calls in a row is one turn,
    unless it speaks or thinks again after it has spoken and called nothing.
    """
    is_open = bool(turns) and turns[-1].role is Role.ASSISTANT
    has_ended = is_open and turns[-1].content is not None and not turns[-1].calls
    if not is_open or (has_ended and not isinstance(item, CallItem)):
        turns.append(_Turn(Role.ASSISTANT))
    turn = turns[-1]
    if isinstance(item, CallItem):
        turn.calls.append(ToolCall(item.call_id, item.name, item.arguments))
    elif isinstance(item, MessageItem):
        turn.content = (turn.content or "") + _text(f"{path}.content", item.content)
    else:
        turn.reasoning += [part.text for part in item.content or item.summary or ()]


def _text(path: str, content: str | list[InputPart]) -> str:
    if isinstance(content, str):
        return content
    return "".join(_part(f"{path}[{number}]", part) for number, part in enumerate(content))


def _part(path: str, part: InputPart) -> str:
    is_refusal = part.type == "refusal"
    if not is_refusal and part.type not in _TEXT_PARTS:
        raise UnsupportedParameterError(f"{path}.type", f"this server reads text, not {part.type[:50]!r}")
    text = part.refusal if is_refusal else part.text
    if text is None:
        param = f"{path}.{'refusal' if is_refusal else 'text'}"
        raise InvalidRequestError(f"{param}: is required.", param=param)
    return text


def _refused(path: str, kind: str) -> UnsupportedParameterError:
    if kind == "item_reference":
        return UnsupportedParameterError(path, f"{NO_STATE}, not {kind!r}")
    takes = "messages, function calls, their outputs and reasoning"
    return UnsupportedParameterError(f"{path}.type", f"this server takes {takes}, not {kind[:50]!r}")
