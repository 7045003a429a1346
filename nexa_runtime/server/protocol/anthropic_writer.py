"""``/v1/messages`` on the wire: whole messages and the events of a stream.

Owns the shape of an answer's blocks and how it ends. It never decides what is a call or thinking;
``routes/messages`` makes a writer per request, ``stream`` calls it. Source: Anthropic's Messages API.

Deliberate: what of the prompt was cached is known when an answer ends. So ``message_start`` counts all of it
as ``input_tokens``, and ``message_delta``, whose numbers replace the first ones, has the true parts.
"""

from collections.abc import Mapping

import orjson
from pydantic_core import from_json, to_json

from nexa_runtime.chat.dialects.base import CallDelta
from nexa_runtime.chat.messages import ToolCall
from nexa_runtime.engine.sequence import FinishReason
from nexa_runtime.errors import NexaError
from nexa_runtime.server.errors import anthropic_error_body
from nexa_runtime.server.frames import typed_frame
from nexa_runtime.serving.choices import Choice, ChoiceDelta, Timings
from nexa_runtime.serving.generation import Usage

Body = Mapping[str, object]

SIGNATURE = "unsigned"
"""Clients want a signature of what was thought; this server has nothing to prove."""

_STOP_REASONS: Mapping[FinishReason, str] = {
    FinishReason.STOP: "end_turn",
    FinishReason.LENGTH: "max_tokens",
    # The API has no word for these; a client must not take the answer for a whole one.
    FinishReason.ABORT: "max_tokens",
    FinishReason.ERROR: "max_tokens",
}


class AnthropicWriter:
    """Writes the answer to one request. ``shows_thinking``: else its blocks come without their text."""

    ending = b""
    frame = staticmethod(typed_frame)

    def __init__(self, message_id: str, model: str, request_id: str, *, shows_thinking: bool = True) -> None:
        self._head = {"id": message_id, "type": "message", "role": "assistant", "model": model}
        self._request_id = request_id
        self._shows_thinking = shows_thinking
        self._index = 0
        """Of the block that is open in a stream, or comes next."""
        self._open: str | None = None
        """Its type."""
        self._has_calls = False
        self._end: tuple[FinishReason, str | None] = FinishReason.ABORT, None

    def response(self, choices: list[Choice], usage: Usage, _: Timings | None) -> Body:
        """The whole answer."""
        (choice,) = choices
        content: list[Body] = []
        if choice.reasoning:
            thinking = choice.reasoning if self._shows_thinking else ""
            content.append({"type": "thinking", "thinking": thinking, "signature": SIGNATURE})
        if choice.text:
            content.append({"type": "text", "text": choice.text})
        content += [
            {"type": "tool_use", "id": call.id, "name": call.name, "input": _input(call)}
            for call in choice.calls
        ]
        ended = _ended(choice.finish_reason, choice.stop, has_calls=bool(choice.calls))
        return {**self._head, "content": content, **ended, "usage": _usage(usage)}

    def first_chunks(self, _: int, usage: Usage) -> list[Body]:
        """The message before any of it is there."""
        nothing: dict[str, object] = {"content": [], "stop_reason": None, "stop_sequence": None}
        message = {**self._head, **nothing, "usage": _usage(usage)}
        return [{"type": "message_start", "message": message}]

    def chunks(self, delta: ChoiceDelta) -> list[Body]:
        """The events of one piece of news: thinking, text, calls, each in a block of its own."""
        events: list[Body] = []
        if delta.reasoning:
            events += self._enter({"type": "thinking", "thinking": "", "signature": ""})
            if self._shows_thinking:
                events.append(self._added({"type": "thinking_delta", "thinking": delta.reasoning}))
        if delta.text:
            events += self._enter({"type": "text", "text": ""})
            events.append(self._added({"type": "text_delta", "text": delta.text}))
        if delta.call is not None:
            events += self._call(delta.call)
        if delta.finish_reason is not None:
            events += self._close()
            self._end = delta.finish_reason, delta.stop
        return events

    def last_chunks(self, usage: Usage, _: Timings | None) -> list[Body]:
        """Why it ended, what it took, and that it is over."""
        reason, stop = self._end
        ended = _ended(reason, stop, has_calls=self._has_calls)
        return [
            {"type": "message_delta", "delta": ended, "usage": _usage(usage)},
            {"type": "message_stop"},
        ]

    def error_chunk(self, error: NexaError) -> Body:
        """What a stream that is cut ends with."""
        return anthropic_error_body(error, self._request_id)

    def _call(self, call: CallDelta) -> list[Body]:
        events: list[Body] = []
        if call.id is not None:
            self._has_calls = True
            events += self._close()
            events += self._enter({"type": "tool_use", "id": call.id, "name": call.name or "", "input": {}})
        if call.arguments:
            events.append(self._added({"type": "input_json_delta", "partial_json": call.arguments}))
        return events

    def _enter(self, block: Mapping[str, object]) -> list[Body]:
        """Begin this block, unless one of its type is open."""
        kind = str(block["type"])
        if self._open == kind:
            return []
        events = self._close()
        self._open = kind
        events.append({"type": "content_block_start", "index": self._index, "content_block": block})
        return events

    def _close(self) -> list[Body]:
        """End the block that is open; thinking is signed."""
        events: list[Body] = []
        if self._open is None:
            return events
        if self._open == "thinking":
            events.append(self._added({"type": "signature_delta", "signature": SIGNATURE}))
        events.append({"type": "content_block_stop", "index": self._index})
        self._open = None
        self._index += 1
        return events

    def _added(self, delta: Body) -> Body:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}


def _ended(reason: FinishReason, stop: str | None, *, has_calls: bool) -> dict[str, object]:
    name = _STOP_REASONS[reason]
    if reason is FinishReason.STOP and stop is not None:
        name = "stop_sequence"
    elif reason is FinishReason.STOP and has_calls:
        name = "tool_use"
    return {"stop_reason": name, "stop_sequence": stop}


def _usage(usage: Usage) -> dict[str, object]:
    """``input_tokens``: those of the prompt that were not cached. Nobody pays for filling the cache."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }


def _input(call: ToolCall) -> Body:
    """The arguments as an object; of a call that was cut, as much of it as came. What is no object goes by
    the name that Anthropic gives it.
    """
    try:
        value = from_json(call.arguments or "{}", allow_inf_nan=False, allow_partial=True)
        value = orjson.loads(to_json(value))  # a number of too many digits becomes one that fits
    except ValueError:
        value = None
    return value if isinstance(value, dict) else {"INVALID_JSON": call.arguments}
