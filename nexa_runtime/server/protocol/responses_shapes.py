"""The shapes of answers of ``/v1/responses``, for the API's document.

Owns a type per body and event that ``responses_writer`` makes; ``endpoints`` names them, a test holds real
answers to them. It never makes an answer. Source: OpenAI's Responses API.
"""

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from nexa_runtime.server.protocol.shapes import CachedTokens, ChosenToken, Timing

Progress = Literal["in_progress", "completed", "incomplete"]


class OutputText(TypedDict):
    """What the model says."""

    type: Literal["output_text"]
    text: str
    annotations: list[object]
    logprobs: list[ChosenToken]


class ReasoningText(TypedDict):
    """What the model thought."""

    type: Literal["reasoning_text"]
    text: str


class SummaryText(TypedDict):
    """The same, where a summary was asked for."""

    type: Literal["summary_text"]
    text: str


class OutputMessage(TypedDict):
    """A message of the model."""

    id: str
    type: Literal["message"]
    status: Progress
    role: Literal["assistant"]
    content: list[OutputText]


class OutputReasoning(TypedDict):
    """A reasoning; its text is in ``content``, or in ``summary`` where one was asked for."""

    id: str
    type: Literal["reasoning"]
    status: Progress
    summary: list[SummaryText]
    content: NotRequired[list[ReasoningText]]


class OutputCall(TypedDict):
    """A call of a function. ``arguments``: JSON text. ``call_id``: what its output names."""

    id: str
    type: Literal["function_call"]
    status: Progress
    call_id: str
    name: str
    arguments: str


OutputItem = OutputMessage | OutputReasoning | OutputCall


class ResponseFailure(TypedDict):
    """Why a stream was cut; ``type`` is the code of the error."""

    code: Literal["server_error"]
    message: str
    type: str


class IncompleteDetails(TypedDict):
    """Why an answer has no end of its own."""

    reason: Literal["max_output_tokens"]


class WrittenTokens(TypedDict):
    """Tokens of reasoning are not counted apart."""

    reasoning_tokens: int


class ReadTokens(CachedTokens):
    """Prompt tokens that were not computed again; nothing is charged for the cache."""

    cache_write_tokens: int


class ResponseUsage(TypedDict):
    """Tokens of one response."""

    input_tokens: int
    input_tokens_details: ReadTokens
    output_tokens: int
    output_tokens_details: WrittenTokens
    total_tokens: int


class ReasoningSettings(TypedDict):
    """As asked for."""

    effort: str | None
    summary: str | None


class Response(TypedDict):
    """An answer of ``/v1/responses``: what was thought, said and called, and what the request asked for."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    error: ResponseFailure | None
    incomplete_details: IncompleteDetails | None
    model: str
    output: list[OutputItem]
    usage: ResponseUsage | None
    timings: NotRequired[Timing]
    background: Literal[False]
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    previous_response_id: None
    prompt_cache_key: str | None
    reasoning: ReasoningSettings
    safety_identifier: str | None
    service_tier: Literal["default"]
    store: Literal[False]
    temperature: float | None
    text: dict[str, object]
    tool_choice: str | dict[str, object]
    tools: list[dict[str, object]]
    top_logprobs: int
    top_p: float | None
    truncation: Literal["disabled"]
    user: str | None


class ResponseEvent(TypedDict):
    """A stream begins with the first two, and ends with one of the others."""

    type: Literal[
        "response.created",
        "response.in_progress",
        "response.completed",
        "response.incomplete",
        "response.failed",
    ]
    sequence_number: int
    response: Response


class ItemEvent(TypedDict):
    """An item begins or has ended."""

    type: Literal["response.output_item.added", "response.output_item.done"]
    sequence_number: int
    output_index: int
    item: OutputItem


class PartEvent(TypedDict):
    """The text of an item begins or has ended; ``summary_index`` is of summaries."""

    type: Literal[
        "response.content_part.added",
        "response.content_part.done",
        "response.reasoning_summary_part.added",
        "response.reasoning_summary_part.done",
    ]
    sequence_number: int
    item_id: str
    output_index: int
    content_index: NotRequired[int]
    summary_index: NotRequired[int]
    part: OutputText | ReasoningText | SummaryText


class TextDeltaEvent(TypedDict):
    """Text is new; ``logprobs`` are of messages."""

    type: Literal[
        "response.output_text.delta",
        "response.reasoning_text.delta",
        "response.reasoning_summary_text.delta",
    ]
    sequence_number: int
    item_id: str
    output_index: int
    content_index: NotRequired[int]
    summary_index: NotRequired[int]
    delta: str
    logprobs: NotRequired[list[ChosenToken]]


class TextDoneEvent(TypedDict):
    """All of the text once more."""

    type: Literal[
        "response.output_text.done",
        "response.reasoning_text.done",
        "response.reasoning_summary_text.done",
    ]
    sequence_number: int
    item_id: str
    output_index: int
    content_index: NotRequired[int]
    summary_index: NotRequired[int]
    text: str
    logprobs: NotRequired[list[ChosenToken]]


class ArgumentsDeltaEvent(TypedDict):
    """Arguments of a call are new."""

    type: Literal["response.function_call_arguments.delta"]
    sequence_number: int
    item_id: str
    output_index: int
    delta: str


class ArgumentsDoneEvent(TypedDict):
    """All of the arguments once more."""

    type: Literal["response.function_call_arguments.done"]
    sequence_number: int
    item_id: str
    output_index: int
    arguments: str


Event = (
    ResponseEvent
    | ItemEvent
    | PartEvent
    | TextDeltaEvent
    | TextDoneEvent
    | ArgumentsDeltaEvent
    | ArgumentsDoneEvent
)
