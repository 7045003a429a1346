"""Tools on the wire: what a chat may call, and whether it must.

Owns the shapes of ``tools`` and ``tool_choice``, their caps, and the way to the internal ones. It never reads
a schema beyond its outermost object; ``chat`` and ``responses_tools`` call it. Source: OpenAI's function
calling.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field
from pydantic.config import JsonDict

from nexa_runtime.chat.messages import Tool, ToolChoice, ToolMode
from nexa_runtime.errors import InvalidRequestError, UnsupportedParameterError
from nexa_runtime.server.protocol.wire import WireModel, json_text

MAX_TOOLS = 128
MAX_TOOLS_BYTES = 256 * 1024

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_MODES = {"auto": ToolMode.AUTO, "none": ToolMode.NONE, "required": ToolMode.REQUIRED}


_CHOICE_MODES: JsonDict = {"enum": [*_MODES, None]}
_CHOICE_NAME: JsonDict = {"name": {"type": "string"}}
_CHOICE_TYPE: JsonDict = {"type": {"const": "function"}}

TOOL_CHOICE_SCHEMA: JsonDict = {
    "anyOf": [
        _CHOICE_MODES,
        {
            "type": "object",
            "properties": {
                **_CHOICE_TYPE,
                "function": {"type": "object", "properties": _CHOICE_NAME, "required": ["name"]},
            },
            "required": ["type", "function"],
        },
    ]
}
"""What ``read_tool_choice`` takes, as JSON Schema."""
FLAT_CHOICE_SCHEMA: JsonDict = {
    "anyOf": [
        _CHOICE_MODES,
        {"type": "object", "properties": {**_CHOICE_TYPE, **_CHOICE_NAME}, "required": ["type", "name"]},
    ]
}
"""The same, where it is flat."""


def _check_name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError("must be 1 to 64 letters, digits, underscores and dashes")
    return value


class FunctionWire(WireModel):
    """A function that may be called."""

    name: Annotated[str, AfterValidator(_check_name)] = Field(
        json_schema_extra={"pattern": f"^{_NAME.pattern}$"}
    )
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolWire(WireModel):
    """A tool; only functions are understood."""

    model_config = ConfigDict(json_schema_extra={"required": ["type", "function"]})

    type: str = Field(json_schema_extra={"const": "function"})
    function: FunctionWire | None = None


def read_tools(wires: Sequence[ToolWire]) -> tuple[Tool, ...]:
    """The internal form. Raises ``InvalidRequestError``."""
    tools: list[Tool] = []
    for index, wire in enumerate(wires):
        path = f"tools[{index}]"
        if wire.type != "function":
            reason = f"this server calls functions, not {wire.type[:50]!r}"
            raise UnsupportedParameterError(f"{path}.type", reason)
        if wire.function is None:
            raise InvalidRequestError(f"{path}.function: is required.", param=f"{path}.function")
        function, param = wire.function, f"{path}.function.parameters"
        tools.append(
            make_tool(function.name, function.description, function.parameters, function.strict, param)
        )
    return checked_tools(tools)


def read_tool_choice(
    value: str | dict[str, Any] | None, tools: Sequence[Tool], *, is_flat: bool = False
) -> ToolChoice:
    """The internal form; None: the model decides. ``is_flat``: a name lies beside the type.

    Raises ``InvalidRequestError``.
    """
    if value is None:
        return ToolChoice()
    choice = _named(value, is_flat=is_flat) if isinstance(value, dict) else _mode(value)
    return checked_choice(choice, tools, "tool_choice.name" if is_flat else "tool_choice.function.name")


def make_tool(
    name: str,
    description: str | None,
    schema: dict[str, Any] | None,
    is_strict: bool | None,
    param: str,
) -> Tool:
    """A tool whose schema stands in the field ``param``. Raises ``InvalidRequestError``."""
    if not schema:
        return Tool(name, description, is_strict=bool(is_strict), param=param)
    if schema.get("type", "object") != "object":
        raise InvalidRequestError(f"{param}.type: must be 'object'.", param=f"{param}.type")
    return Tool(name, description, {"type": "object", **schema}, bool(is_strict), param)


def checked_tools(tools: Sequence[Tool]) -> tuple[Tool, ...]:
    """The tools: each with a name of its own, and not too large together. Raises ``InvalidRequestError``."""
    names: set[str] = set()
    room = MAX_TOOLS_BYTES
    for tool in tools:
        if tool.name in names:
            param = f"{tool.param.rpartition('.')[0]}.name"
            raise InvalidRequestError(f"{param}: is the name of an earlier tool.", param=param)
        names.add(tool.name)
        schema = json_text(tool.parameters, max_bytes=MAX_TOOLS_BYTES, param=tool.param)
        text = tool.name + (tool.description or "") + schema
        room -= len(text.encode("utf-8", "surrogatepass"))
        if room < 0:
            raise InvalidRequestError(f"tools: must have at most {MAX_TOOLS_BYTES} bytes.", param="tools")
    return tuple(tools)


def checked_choice(choice: ToolChoice, tools: Sequence[Tool], name_param: str) -> ToolChoice:
    """The choice, which these tools can serve. Raises ``InvalidRequestError``."""
    if choice.is_forced and not tools:
        raise InvalidRequestError("tool_choice: needs tools to choose from.", param="tool_choice")
    if choice.name is not None and all(tool.name != choice.name for tool in tools):
        raise InvalidRequestError(f"{name_param}: is the name of no tool.", param=name_param)
    return choice


def _mode(value: str) -> ToolChoice:
    if value not in _MODES:
        message = "tool_choice: must be 'auto', 'none', 'required', or an object that names a function."
        raise InvalidRequestError(message, param="tool_choice")
    return ToolChoice(_MODES[value])


def _named(value: dict[str, Any], *, is_flat: bool) -> ToolChoice:
    kind = value.get("type")
    if isinstance(kind, str) and kind != "function":
        raise UnsupportedParameterError("tool_choice", f"this server takes a function, not {kind[:50]!r}")
    function = value if is_flat else value.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    if kind != "function" or not isinstance(name, str):
        named = '"name": "..."' if is_flat else '"function": {"name": "..."}'
        message = f'tool_choice: must be like {{"type": "function", {named}}}.'
        raise InvalidRequestError(message, param="tool_choice")
    return ToolChoice(ToolMode.NAMED, name)
