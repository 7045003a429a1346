"""``/v1/responses`` on the wire: whole responses, and their events in OpenAI's order.

Owns when an item of the output begins and ends, the numbers of events, and how a response ends. It never
decides what is a call or reasoning; ``routes/responses`` makes a writer per request, ``stream`` calls it.
Source: OpenAI's Responses API.

Deliberate: tokens of reasoning are not counted apart, so ``reasoning_tokens`` is 0; log-probabilities are of
every token of the answer up to the end of its message, reasoning too, as chats have them.
"""

import time
from collections.abc import Mapping

from nexa_runtime.chat.dialects.base import CallDelta
from nexa_runtime.engine.sequence import FinishReason
from nexa_runtime.errors import NexaError
from nexa_runtime.llama import TokenLogprobs
from nexa_runtime.server.frames import typed_frame
from nexa_runtime.server.protocol.answers import timings_body
from nexa_runtime.server.protocol.logprobs import TokenTexts
from nexa_runtime.server.protocol.responses_output import (
    MESSAGE,
    REASONING,
    SUMMARY,
    CallItem,
    Fields,
    OutputItem,
    TextItem,
    TextKind,
)
from nexa_runtime.serving.choices import Choice, ChoiceDelta, Timings
from nexa_runtime.serving.generation import Usage

Body = Mapping[str, object]


class ResponsesWriter:
    """Writes the answer to one request. ``settings``: what it repeats of that. ``shows_summary``: what was
    thought is written as a summary, all of it.
    """

    ending = b""
    frame = staticmethod(typed_frame)

    def __init__(
        self,
        response_id: str,
        created: int,
        model: str,
        texts: TokenTexts,
        settings: Body,
        *,
        shows_summary: bool = False,
    ) -> None:
        self._head = {"id": response_id, "object": "response", "created_at": created}
        self._settings = {"model": model, **settings}
        self._texts = texts
        self._reasoning = SUMMARY if shows_summary else REASONING
        self._num_events = 0
        self._output: list[Fields] = []
        """Items that have ended."""
        self._open: OutputItem | None = None
        self._logprobs: list[TokenLogprobs] = []
        """Of tokens whose text has not come yet."""
        self._ending = FinishReason.ABORT

    def response(self, choices: list[Choice], usage: Usage, timings: Timings | None) -> Body:
        """The whole answer: what was thought, then said, then called."""
        (choice,) = choices
        if choice.reasoning:
            self._write(self._reasoning, choice.reasoning)
        if choice.text or not (choice.reasoning or choice.calls):
            self._logprobs = choice.logprobs
            self._write(MESSAGE, choice.text)
        for index, call in enumerate(choice.calls):
            self._call(CallDelta(index, call.arguments, call.id, call.name))
        self._finish(choice.finish_reason)
        return self._ended(usage, timings)

    def first_chunks(self, _: int, usage: Usage) -> list[Body]:
        """Before any text: there will be a response."""
        begun = self._response("in_progress")
        names = ("response.created", "response.in_progress")
        return self._numbered([{"type": name, "response": begun} for name in names])

    def chunks(self, delta: ChoiceDelta) -> list[Body]:
        """The events of one piece of news."""
        events: list[Fields] = []
        self._logprobs += delta.logprobs
        if delta.reasoning:
            events += self._write(self._reasoning, delta.reasoning)
        if delta.text:
            events += self._write(MESSAGE, delta.text)
        if delta.call is not None:
            events += self._call(delta.call)
        if delta.finish_reason is not None:
            events += self._finish(delta.finish_reason)
        return self._numbered(events)

    def last_chunks(self, usage: Usage, timings: Timings | None) -> list[Body]:
        """The response, whole."""
        response = self._ended(usage, timings)
        return self._numbered([{"type": f"response.{response['status']}", "response": response}])

    def error_chunk(self, error: NexaError) -> Body:
        """What a stream that is cut ends with: the response as far as it came. OpenAI has one code for that;
        the error's own is its ``type``.
        """
        if self._open is not None:
            self._output.append(self._open.body("incomplete"))
            self._open = None
        failure = {"code": "server_error", "message": str(error), "type": error.code}
        response = self._response("failed", error=failure)
        return self._numbered([{"type": "response.failed", "response": response}])[0]

    def _write(self, kind: TextKind, text: str) -> list[Fields]:
        """Append to the item that is open, or begin the one of this kind."""
        item, events = self._open, []
        if not isinstance(item, TextItem) or item.kind is not kind:
            item = TextItem(kind, self._next_index(), self._texts)
            events = self._begin(item)
        logprobs: list[TokenLogprobs] = []
        if kind is MESSAGE:
            logprobs, self._logprobs = self._logprobs, []
        return [*events, item.add(text, logprobs)]

    def _call(self, call: CallDelta) -> list[Fields]:
        events: list[Fields] = []
        if call.id is not None:
            events = self._begin(CallItem(self._next_index(), call.id, call.name or ""))
        if call.arguments:
            assert isinstance(self._open, CallItem)  # a dialect writes one call after the other
            events.append(self._open.add(call.arguments))
        return events

    def _next_index(self) -> int:
        return len(self._output) + (self._open is not None)

    def _begin(self, item: OutputItem) -> list[Fields]:
        events = self._close("completed")
        self._open = item
        return [*events, *item.opened()]

    def _close(self, status: str) -> list[Fields]:
        item, self._open = self._open, None
        if item is None:
            return []
        self._output.append(item.body(status))
        return item.closed(status)

    def _finish(self, reason: FinishReason) -> list[Fields]:
        """The choice has ended. An answer of nothing is an empty message."""
        events: list[Fields] = []
        self._ending = reason
        has_rest = isinstance(self._open, TextItem) and self._open.kind is MESSAGE and bool(self._logprobs)
        if has_rest or (self._open is None and not self._output):
            events = self._write(MESSAGE, "")
        return events + self._close("completed" if reason is FinishReason.STOP else "incomplete")

    def _ended(self, usage: Usage, timings: Timings | None) -> dict[str, object]:
        is_complete = self._ending is FinishReason.STOP
        details = {"reason": "max_output_tokens"} if self._ending is FinishReason.LENGTH else None
        response = self._response(
            "completed" if is_complete else "incomplete",
            incomplete_details=details,
            usage=_usage_body(usage),
            completed_at=int(time.time()) if is_complete else None,
        )
        if timings is not None:
            response["timings"] = timings_body(usage, timings)
        return response

    def _response(self, status: str, **fields: object) -> dict[str, object]:
        nothing = {"completed_at": None, "error": None, "incomplete_details": None, "usage": None}
        return {
            **self._head,
            "status": status,
            **nothing,
            **self._settings,
            "output": list(self._output),
            **fields,
        }

    def _numbered(self, events: list[Fields]) -> list[Body]:
        first = self._num_events
        self._num_events += len(events)
        return [{**event, "sequence_number": first + number} for number, event in enumerate(events)]


def _usage_body(usage: Usage) -> dict[str, object]:
    """OpenAI's ``usage``; nothing is charged for what is written to the cache."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
