"""Tools of ``/v1/responses`` on the wire, where a tool's fields lie flat beside its type.

Owns these shapes; ``tools`` has the caps and the way to the internal form. ``responses`` calls it. Source:
OpenAI's Responses API.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Discriminator, Tag
from pydantic.json_schema import SkipJsonSchema

from nexa_runtime.chat.messages import Tool, ToolChoice, ToolMode
from nexa_runtime.errors import UnsupportedParameterError
from nexa_runtime.server.protocol.tools import FunctionWire, checked_tools, make_tool
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
    Annotated[FunctionTool, Tag("function")] | Annotated[SkipJsonSchema[OtherTool], Tag("other")],
    Discriminator(_kind),
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
