"""``/v1/messages`` on the wire: the request, which ``/v1/messages/count_tokens`` takes too.

Owns the fields of Anthropic's API, what becomes of each, and their way to the one internal form;
``anthropic_messages`` reads the turns, ``anthropic_tools`` the tools, ``anthropic_writer`` writes the answer.
Source: Anthropic's Messages API.

Deliberate: ``max_tokens`` may be absent, though Anthropic's own server wants it; the server's default holds
then. ``thinking`` absent leaves it to the model whether it thinks, as a chat does; disabled, it does not.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from nexa_runtime.chat.grammar import GrammarKind, GrammarSource
from nexa_runtime.chat.messages import Conversation, Role, ToolMode
from nexa_runtime.errors import InvalidRequestError
from nexa_runtime.server.protocol.anthropic_messages import AnthropicMessage, SystemWire, read_messages
from nexa_runtime.server.protocol.anthropic_tools import (
    AnthropicTool,
    ToolChoiceWire,
    read_tool_choice,
    read_tools,
)
from nexa_runtime.server.protocol.chat import MAX_MESSAGES
from nexa_runtime.server.protocol.common import MAX_STOP_BYTES, MAX_STOPS, NonEmptyStop
from nexa_runtime.server.protocol.constraints import MAX_GRAMMAR_BYTES
from nexa_runtime.server.protocol.lora import LoraFields
from nexa_runtime.server.protocol.parameters import Support
from nexa_runtime.server.protocol.tools import MAX_TOOLS
from nexa_runtime.server.protocol.wire import WireModel, at_most, json_text
from nexa_runtime.serving.generation_service import GenerationOptions

_HONOURED = (
    "model", "max_tokens", "messages", "system", "tools", "tool_choice", "temperature", "top_p", "top_k",
    "stop_sequences", "stream", "thinking", "output_config", "output_format", "lora",
)  # fmt: skip
_HARMLESS = (
    "metadata", "service_tier", "cache_control", "diagnostics", "inference_geo", "speed", "user_profile_id",
    "workspace_id", "billing_policy", "fallback_credit_token",
)  # fmt: skip
_REFUSED = ("container", "mcp_servers", "context_management", "compaction", "fallbacks", "thread")

FIELDS: Mapping[str, Support] = {
    **dict.fromkeys(_HONOURED, Support.HONOURED),
    **dict.fromkeys(_HARMLESS, Support.HARMLESS),
    **dict.fromkeys(_REFUSED, Support.REFUSED),
}


class ThinkingWire(WireModel):
    """Whether the model thinks, for how many tokens at most, and whether the client sees what."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = Field(None, ge=1, le=2**20)
    display: Literal["summarized", "omitted"] | None = None


class FormatWire(WireModel):
    """What the answer must look like."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfigWire(WireModel):
    """How hard the model tries, and the form of its answer."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: FormatWire | None = None


class MessagesRequest(LoraFields):
    """A body of ``/v1/messages``, null fields left out. ``lora`` is this server's own."""

    messages: Annotated[list[AnthropicMessage], at_most(MAX_MESSAGES), Field(min_length=1)]
    model: str | None = Field(None, max_length=512)
    max_tokens: int | None = Field(None, ge=1, le=2**31)
    system: SystemWire | None = None
    tools: Annotated[list[AnthropicTool] | None, at_most(MAX_TOOLS)] = None
    tool_choice: ToolChoiceWire | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=2**31 - 1)
    stop_sequences: Annotated[list[NonEmptyStop] | None, at_most(MAX_STOPS)] = None
    stream: bool | None = None
    thinking: ThinkingWire | None = None
    output_config: OutputConfigWire | None = None
    output_format: FormatWire | None = None

    @field_validator("stop_sequences")
    @classmethod
    def _check_stops(cls, value: list[str] | None) -> list[str] | None:
        if not all(0 < len(stop.encode("utf-8", "surrogatepass")) <= MAX_STOP_BYTES for stop in value or ()):
            raise ValueError(f"must be texts of 1 to {MAX_STOP_BYTES} bytes")
        return value

    @property
    def shows_thinking(self) -> bool:
        """Whether the client wants to see what the model thinks."""
        return self.thinking is None or self.thinking.display != "omitted"

    def to_options(self) -> GenerationOptions:
        """What the client asked for. Raises ``InvalidRequestError``."""
        named = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        return GenerationOptions(
            model=self.model,
            max_tokens=self.max_tokens,
            sampling={name: value for name, value in named.items() if value is not None},
            stops=tuple(self.stop_sequences or ()),
            grammar=self._form(),
            lora=self.chosen_adapters(),
        )

    def to_conversation(self) -> Conversation:
        """The internal form. Raises ``InvalidRequestError``."""
        messages = read_messages(self.system, self.messages)
        tools = read_tools(self.tools or ())
        choice, is_parallel = read_tool_choice(self.tool_choice, tools)
        form = self._form()
        if tools and form is not None and choice.mode is not ToolMode.NONE:
            field = form.param.removesuffix(".schema")
            reason = "and tools are not supported together yet: set tool_choice to the type none"
            raise InvalidRequestError(f"{field} {reason}.", param=field)
        return Conversation(
            messages=messages,
            tools=tools,
            tool_choice=choice,
            is_parallel=is_parallel,
            template_options=self._template_options(),
            continues=messages[-1].role is Role.ASSISTANT,
            reasoning_budget=self._reasoning_budget(),
        )

    def _form(self) -> GrammarSource | None:
        asked, param = self.output_format, "output_format"
        if self.output_config is not None and self.output_config.format is not None:
            if asked is not None:
                message = f"{param}: is the older name of output_config.format; only one of them can be set."
                raise InvalidRequestError(message, param=param)
            asked, param = self.output_config.format, "output_config.format"
        if asked is None:
            return None
        text = json_text(asked.schema_, max_bytes=MAX_GRAMMAR_BYTES, param=f"{param}.schema")
        return GrammarSource(GrammarKind.JSON_SCHEMA, text, f"{param}.schema", is_strict=True)

    def _template_options(self) -> dict[str, str | bool | int | float]:
        """Families of models have two names for the switch."""
        options: dict[str, str | bool | int | float] = {}
        if self.thinking is not None:
            is_thinking = self.thinking.type != "disabled"
            options = {"enable_thinking": is_thinking, "thinking": is_thinking}
        if self.output_config is not None and self.output_config.effort is not None:
            options["reasoning_effort"] = self.output_config.effort
        return options

    def _reasoning_budget(self) -> int | None:
        thinking = self.thinking
        if thinking is None:
            return None
        if thinking.budget_tokens is not None and thinking.type != "enabled":
            param = "thinking.budget_tokens"
            raise InvalidRequestError(f"{param}: needs the type enabled.", param=param)
        return 0 if thinking.type == "disabled" else thinking.budget_tokens
