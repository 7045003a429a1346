"""Tools on the wire of ``/v1/messages``: what the model may call, and whether it must.

Owns the shapes of ``tools`` and ``tool_choice`` and their way to the internal ones. It never reads a schema
beyond its outermost object; ``anthropic`` calls it. Source: Anthropic's Messages API.
"""

import re
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import ConfigDict, Field

from nexa_runtime.chat.messages import Tool, ToolChoice, ToolMode
from nexa_runtime.errors import InvalidRequestError, UnsupportedParameterError
from nexa_runtime.server.protocol.tools import checked_choice, checked_tools, make_tool
from nexa_runtime.server.protocol.wire import WireModel

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")
_MODES = {
    "auto": ToolMode.AUTO,
    "any": ToolMode.REQUIRED,
    "tool": ToolMode.NAMED,
    "none": ToolMode.NONE,
}


class AnthropicTool(WireModel):
    """A tool of the client's own; those with another ``type`` would run on the server, or be known to it."""

    model_config = ConfigDict(json_schema_extra={"required": ["name", "input_schema"]})

    type: str | None = Field(None, json_schema_extra={"enum": ["custom", None]})
    name: str | None = Field(None, json_schema_extra={"pattern": f"^{_NAME.pattern}$"})
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None
    cache_control: Any = None
    eager_input_streaming: bool | None = None


class ToolChoiceWire(WireModel):
    """Whether tools are called, and which."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


def read_tools(wires: Sequence[AnthropicTool]) -> tuple[Tool, ...]:
    """The internal form. Raises ``InvalidRequestError``."""
    return checked_tools([_tool(wire, f"tools[{index}]") for index, wire in enumerate(wires)])


def read_tool_choice(wire: ToolChoiceWire | None, tools: Sequence[Tool]) -> tuple[ToolChoice, bool]:
    """The internal form, and whether several calls are welcome. Raises ``InvalidRequestError``."""
    if wire is None:
        return ToolChoice(), True
    param = "tool_choice.name"
    is_named = wire.type == "tool"
    if is_named != (wire.name is not None):
        reason = "is required for the type tool" if is_named else "needs the type tool"
        raise InvalidRequestError(f"{param}: {reason}.", param=param)
    choice = ToolChoice(_MODES[wire.type], wire.name)
    return checked_choice(choice, tools, param), not wire.disable_parallel_tool_use


def _tool(wire: AnthropicTool, path: str) -> Tool:
    if wire.type not in (None, "custom"):
        reason = f"this server calls the client's own tools, not {wire.type[:50]!r}"
        raise UnsupportedParameterError(f"{path}.type", reason)
    if wire.name is None or not _NAME.fullmatch(wire.name):
        reason = "must be 1 to 128 letters, digits, underscores and dashes"
        raise InvalidRequestError(f"{path}.name: {reason}.", param=f"{path}.name")
    if wire.input_schema is None:
        raise InvalidRequestError(f"{path}.input_schema: is required.", param=f"{path}.input_schema")
    return make_tool(wire.name, wire.description, wire.input_schema, wire.strict, f"{path}.input_schema")
