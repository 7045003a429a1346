"""``/v1/responses`` on the wire: the request.

Owns its fields, what becomes of each, that they agree with each other, and what of them an answer repeats;
``responses_input`` reads the items, ``responses_writer`` writes the answer. Source: OpenAI's Responses API;
sampling fields and forms that OpenAI does not have are those of chats.

Deliberate: nothing is kept, and what needs an earlier response is refused. ``store: true`` is not: clients
(n8n's) send it without being asked. It is named among what was ignored, and the answer says ``store: false``.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from nexa_runtime.chat.grammar import GrammarKind, GrammarSource
from nexa_runtime.chat.messages import Conversation
from nexa_runtime.errors import InvalidRequestError, UnsupportedParameterError
from nexa_runtime.server.protocol.common import MAX_LOGPROBS, NOT_ZERO, CommonRequest, StreamOptions
from nexa_runtime.server.protocol.constraints import MAX_GRAMMAR_BYTES
from nexa_runtime.server.protocol.parameters import Support, read_fields
from nexa_runtime.server.protocol.responses_input import MAX_ITEMS, NO_STATE, InputItem, read_input
from nexa_runtime.server.protocol.responses_tools import (
    ResponsesTool,
    choice_body,
    read_flat_tools,
    tools_body,
)
from nexa_runtime.server.protocol.template_options import OPTIONS_SCHEMA, read_template_options
from nexa_runtime.server.protocol.tools import FLAT_CHOICE_SCHEMA, MAX_TOOLS, read_tool_choice
from nexa_runtime.server.protocol.wire import WireModel, at_most, json_text, only
from nexa_runtime.serving.generation_service import GenerationOptions

MAX_METADATA = 16

Summary = Literal["auto", "concise", "detailed"]
Include = Literal[
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
    "message.output_text.logprobs",
]
"""All but the last are of things that no answer here has; what was thought is there in plain text."""


class TextFormat(WireModel):
    """What the text of an answer must look like."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = Field(None, max_length=64)
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextConfig(WireModel):
    """How an answer is written."""

    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = Field(None, json_schema_extra=only("medium"))


class Reasoning(WireModel):
    """How much is thought, and where an answer has it. ``generate_summary``: an older name of ``summary``."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Summary | None = None
    generate_summary: Summary | None = None
    context: str | None = Field(default=None, json_schema_extra=only("auto"))
    mode: str | None = Field(default=None, json_schema_extra=only("standard"))


class ResponsesStreamOptions(StreamOptions):
    """Options of a stream; usage is always at its end."""

    include_obfuscation: bool | None = None


class ResponsesRequest(CommonRequest):
    """A body of ``/v1/responses``, null fields left out. ``max_output_tokens`` -1: no cap."""

    input: Annotated[str | list[InputItem], at_most(MAX_ITEMS), Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=-1, le=2**31, json_schema_extra=NOT_ZERO)
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    include: Annotated[list[Include] | None, at_most(64)] = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    tools: Annotated[list[ResponsesTool] | None, at_most(MAX_TOOLS)] = None
    tool_choice: Any = Field(None, json_schema_extra=FLAT_CHOICE_SCHEMA)
    parallel_tool_calls: bool | None = None
    stream_options: ResponsesStreamOptions | None = None
    metadata: Annotated[dict[str, str] | None, at_most(MAX_METADATA)] = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    store: bool | None = None
    truncation: Literal["auto", "disabled"] | None = Field(None, json_schema_extra=only("disabled"))
    reasoning_budget_tokens: int | None = Field(None, ge=-1, le=2**20)
    chat_template_kwargs: dict[str, Any] | None = Field(None, json_schema_extra=OPTIONS_SCHEMA)

    @field_validator("tool_choice", mode="before")
    @classmethod
    def _text_or_object(cls, value: object) -> object:
        if not (value is None or isinstance(value, (str, dict))):
            raise ValueError("must be a text or an object")
        return value

    @field_validator("max_output_tokens")
    @classmethod
    def _has_room(cls, value: int | None) -> int | None:
        if value == 0:
            raise ValueError("must be at least 1, or -1 for no cap")
        return value

    @property
    def num_logprobs(self) -> int | None:
        """Log-probabilities of each token beside its own; None: none were asked for."""
        if self.top_logprobs or "message.output_text.logprobs" in (self.include or ()):
            return self.top_logprobs or 0
        return None

    @property
    def shows_summary(self) -> bool:
        """Whether what was thought is written as a summary: who asks for one looks nowhere else."""
        return bool(self.reasoning and (self.reasoning.summary or self.reasoning.generate_summary))

    def to_options(self) -> GenerationOptions:
        """What the client asked for. Raises ``InvalidRequestError``."""
        return self.options(max_tokens=self.max_output_tokens, num_logprobs=self.num_logprobs)

    def to_conversation(self) -> Conversation:
        """The internal form. Raises ``InvalidRequestError``."""
        self._check_settings()
        tools = read_flat_tools(self.tools or ())
        choice = read_tool_choice(self.tool_choice, tools, is_flat=True)
        self.check_constraint(tools, choice)
        budget = self.reasoning_budget_tokens
        effort = None if self.reasoning is None else self.reasoning.effort
        return Conversation(
            messages=read_input(self.input, self.instructions),
            tools=tools,
            tool_choice=choice,
            is_parallel=self.parallel_tool_calls is not False,
            template_options=read_template_options(self.chat_template_kwargs, effort),
            reasoning_budget=None if budget is None or budget < 0 else budget,
            param="input",
        )

    def ignored(self) -> list[str]:
        """Fields that are known and ask for what is not done."""
        found = []
        if self.store:
            found.append("store")
        if self.stream_options and self.stream_options.include_obfuscation:
            found.append("stream_options.include_obfuscation")
        return found

    def settings(self, conversation: Conversation, clamped_max_tokens: int | None) -> dict[str, object]:
        """What an answer repeats of the request and its ``conversation``; a cap as it holds. What was left
        to the model is null.
        """
        cap = self.max_output_tokens if clamped_max_tokens is None else clamped_max_tokens
        reasoning = self.reasoning or Reasoning()
        return {
            "background": False,
            "instructions": self.instructions,
            "max_output_tokens": None if cap is None or cap < 0 else cap,
            "max_tool_calls": None,
            "metadata": self.metadata or {},
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "previous_response_id": None,
            "prompt_cache_key": self.prompt_cache_key,
            "reasoning": {
                "effort": reasoning.effort,
                "summary": reasoning.summary or reasoning.generate_summary,
            },
            "safety_identifier": self.safety_identifier,
            "service_tier": "default",
            "store": False,
            "temperature": self.temperature,
            "text": {"format": self._format_body(), "verbosity": "medium"},
            "tool_choice": choice_body(conversation.tool_choice),
            "tools": tools_body(conversation.tools),
            "top_logprobs": self.top_logprobs or 0,
            "top_p": self.top_p,
            "truncation": "disabled",
            "user": self.user,
        }

    def _check_settings(self) -> None:
        if self.truncation == "auto":
            raise UnsupportedParameterError(
                "truncation", "nothing is ever truncated here, so only 'disabled' is"
            )
        if self.text and self.text.verbosity not in (None, "medium"):
            raise UnsupportedParameterError("text.verbosity", "only 'medium' is")
        if self.reasoning and self.reasoning.context not in (None, "auto"):
            raise UnsupportedParameterError("reasoning.context", "the model's chat template decides, 'auto'")
        if self.reasoning and self.reasoning.mode not in (None, "standard"):
            raise UnsupportedParameterError("reasoning.mode", "only 'standard' is")

    def _format(self) -> GrammarSource | None:
        param = "text.format"
        asked = self.text and self.text.format
        if not asked or asked.type == "text":
            return None
        if asked.type == "json_object":
            return GrammarSource(GrammarKind.JSON_OBJECT, "", param)
        for name, value in (("name", asked.name), ("schema", asked.schema_)):
            if value is None:
                raise InvalidRequestError(f"{param}.{name}: is required.", param=f"{param}.{name}")
        param += ".schema"
        text = json_text(asked.schema_, max_bytes=MAX_GRAMMAR_BYTES, param=param)
        return GrammarSource(GrammarKind.JSON_SCHEMA, text, param, bool(asked.strict))

    def _format_body(self) -> Mapping[str, object]:
        asked = self.text and self.text.format
        if not asked or asked.type != "json_schema":
            return {"type": asked.type if asked else "text"}
        return {
            "type": asked.type,
            "name": asked.name,
            "description": asked.description,
            "schema": asked.schema_,
            "strict": bool(asked.strict),
        }


_REASONS = {
    "previous_response_id": NO_STATE,
    "conversation": NO_STATE,
    "prompt": NO_STATE,
    "background": "this server keeps no responses to ask for later",
    "messages": "use input instead",
    "max_tokens": "use max_output_tokens instead",
    "max_completion_tokens": "use max_output_tokens instead",
    "n": "a response is one answer",
    "response_format": "use text.format instead",
    "reasoning_effort": "use reasoning.effort instead",
    "verbosity": "use text.verbosity instead",
    "functions": "use tools instead",
    "function_call": "use tool_choice instead",
}
"""Of what needs an earlier response, and of fields of chats that are others here: what a client can do."""

FIELDS: Mapping[str, Support] = {
    **dict.fromkeys(ResponsesRequest.model_fields, Support.HONOURED),
    "max_tool_calls": Support.HARMLESS,  # of the tools that OpenAI runs itself
    "prompt_cache_options": Support.HARMLESS,
    "prompt_cache_retention": Support.HARMLESS,
    "service_tier": Support.HARMLESS,
    **dict.fromkeys(_REASONS, Support.REFUSED),
    "access_programs": Support.REFUSED,
    "context_management": Support.REFUSED,
    "image": Support.REFUSED,
    "moderation": Support.REFUSED,
}


def read_request(body: Mapping[str, object]) -> tuple[ResponsesRequest, list[str]]:
    """A request, and the names of the fields that are ignored. Raises ``InvalidRequestError``."""
    wire, ignored = read_fields(ResponsesRequest, body, FIELDS, _REASONS)
    return wire, [*ignored, *wire.ignored()]
