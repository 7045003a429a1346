"""``/v1/chat/completions`` on the wire: the request.

Owns the fields that only chats have, and that they agree with each other; ``chat_writer`` writes the answer.
Source: OpenAI's chat completions API; llama-server and vLLM for what OpenAI does not have.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from nexa_runtime.chat.messages import Conversation, Message, Role
from nexa_runtime.errors import InvalidRequestError
from nexa_runtime.server.protocol.common import MAX_LOGPROBS, NOT_ZERO, CommonRequest
from nexa_runtime.server.protocol.messages import MessageWire, read_message
from nexa_runtime.server.protocol.template_options import OPTIONS_SCHEMA, read_template_options
from nexa_runtime.server.protocol.tools import (
    MAX_TOOLS,
    TOOL_CHOICE_SCHEMA,
    ToolWire,
    read_tool_choice,
    read_tools,
)
from nexa_runtime.server.protocol.wire import at_most
from nexa_runtime.serving.generation_service import GenerationOptions

MAX_MESSAGES = 2048


class ChatRequest(CommonRequest):
    """A body of ``/v1/chat/completions``, null fields left out. Budgets of -1: none."""

    messages: Annotated[list[MessageWire], at_most(MAX_MESSAGES), Field(min_length=1)]
    max_completion_tokens: int | None = Field(None, ge=-1, le=2**31, json_schema_extra=NOT_ZERO)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    tools: Annotated[list[ToolWire] | None, at_most(MAX_TOOLS)] = None
    tool_choice: Any = Field(None, json_schema_extra=TOOL_CHOICE_SCHEMA)
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    reasoning_budget_tokens: int | None = Field(None, ge=-1, le=2**20)
    thinking_budget_tokens: int | None = Field(None, ge=-1, le=2**20)
    chat_template_kwargs: dict[str, Any] | None = Field(None, json_schema_extra=OPTIONS_SCHEMA)
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None

    @field_validator("tool_choice", mode="before")
    @classmethod
    def _text_or_object(cls, value: object) -> object:
        if not (value is None or isinstance(value, (str, dict))):
            raise ValueError("must be a text or an object")
        return value

    def to_options(self) -> GenerationOptions:
        """``max_completion_tokens`` is the newer name of ``max_tokens`` and wins."""
        if self.max_completion_tokens == 0:
            message = "max_completion_tokens: must be at least 1, or -1 for no cap."
            raise InvalidRequestError(message, param="max_completion_tokens")
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequestError("top_logprobs: needs logprobs to be true.", param="top_logprobs")
        num_logprobs = (self.top_logprobs or 0) if self.logprobs else None
        return self.options(max_tokens=self.max_completion_tokens, num_logprobs=num_logprobs)

    def to_conversation(self) -> Conversation:
        """The internal form. Raises ``InvalidRequestError``."""
        messages = tuple(read_message(index, wire) for index, wire in enumerate(self.messages))
        tools = read_tools(self.tools or ())
        choice = read_tool_choice(self.tool_choice, tools)
        self.check_constraint(tools, choice)
        return Conversation(
            messages=messages,
            tools=tools,
            tool_choice=choice,
            is_parallel=self.parallel_tool_calls is not False,
            template_options=read_template_options(self.chat_template_kwargs, self.reasoning_effort),
            continues=self._continues(messages[-1]),
            reasoning_budget=self._reasoning_budget(),
        )

    def _continues(self, last: Message) -> bool:
        continues = bool(self.continue_final_message)
        if self.add_generation_prompt is not None and self.add_generation_prompt == continues:
            param = "add_generation_prompt"
            raise InvalidRequestError(
                f"{param}: must be the opposite of continue_final_message.", param=param
            )
        if continues and (last.role is not Role.ASSISTANT or not last.content or last.tool_calls):
            param = "continue_final_message"
            reason = "needs a last message that is an assistant's, with content and without tool_calls"
            raise InvalidRequestError(f"{param}: {reason}.", param=param)
        return continues

    def _reasoning_budget(self) -> int | None:
        budget = self.reasoning_budget_tokens
        if budget is None:
            budget = self.thinking_budget_tokens
        return None if budget is None or budget < 0 else budget
