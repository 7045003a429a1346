"""Tools of ``/v1/responses`` on the wire, where a tool's fields lie flat beside its type.

Owns these shapes; ``tools`` has the caps and the way to the internal form. ``responses`` calls it. Source:
OpenAI's Responses API.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Tag

from nexa_runtime.chat.messages import Tool, ToolChoice, ToolMode
from nexa_runtime.errors import InvalidRequestError, UnsupportedParameterError
from nexa_runtime.server.protocol.tools import (
    FunctionWire,
    checked_choice,
    checked_tools,
    make_tool,
    read_tool_choice,
)
from nexa_runtime.server.protocol.wire import WireModel


class FunctionTool(FunctionWire):
    """A function that may be called."""

    type: Literal["function"]


class OtherTool(WireModel):
    """A tool that is not understood: OpenAI runs those itself."""

    type: str


def _kind(value: object) -> str:
    is_function = isinstance(value, Mapping) and value.get("type") == "function"
    return "function" if is_function else "other"


ResponsesTool = Annotated[
    Annotated[FunctionTool, Tag("function")] | Annotated[OtherTool, Tag("other")], Discriminator(_kind)
]


def read_flat_tools(wires: Sequence[ResponsesTool]) -> tuple[Tool, ...]:
    """The internal form. Raises ``InvalidRequestError``."""
    tools: list[Tool] = []
    for index, wire in enumerate(wires):
        path = f"tools[{index}]"
        if isinstance(wire, OtherTool):
            reason = f"this server calls functions, not {wire.type[:50]!r}"
            raise UnsupportedParameterError(f"{path}.type", reason)
        param = f"{path}.parameters"
        tools.append(make_tool(wire.name, wire.description, wire.parameters, wire.strict, param))
    return checked_tools(tools)


def read_flat_choice(value: str | dict[str, Any] | None, tools: Sequence[Tool]) -> ToolChoice:
    """The internal form; None: the model decides. Raises ``InvalidRequestError``."""
    if not isinstance(value, dict):
        return read_tool_choice(value, tools)
    kind, name = value.get("type"), value.get("name")
    if isinstance(kind, str) and kind != "function":
        raise UnsupportedParameterError("tool_choice", f"this server takes a function, not {kind[:50]!r}")
    if kind != "function" or not isinstance(name, str):
        message = 'tool_choice: must be like {"type": "function", "name": "..."}.'
        raise InvalidRequestError(message, param="tool_choice")
    return checked_choice(ToolChoice(ToolMode.NAMED, name), tools, "tool_choice.name")


def tools_body(tools: Sequence[Tool]) -> list[dict[str, object]]:
    """The tools as an answer repeats them."""
    return [
        {
            "type": "function",
            "name": tool.name,
            "description": tool.description,
            "parameters": dict(tool.parameters),
            "strict": tool.is_strict,
        }
        for tool in tools
    ]


def choice_body(choice: ToolChoice) -> str | dict[str, object]:
    """The choice as an answer repeats it."""
    if choice.mode is ToolMode.NAMED:
        return {"type": "function", "name": choice.name}
    return str(choice.mode.value)
