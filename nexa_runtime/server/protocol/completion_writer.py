"""``/v1/completions`` on the wire: responses and stream chunks.

Owns their shape. ``routes/generate`` makes a writer per request, ``stream`` calls it. Source: OpenAI's legacy
completions API. What a choice has beside its text (reasoning, calls) is a chat's and not written here.
"""

from collections.abc import Mapping

from nexa_runtime.engine.sequence import FinishReason
from nexa_runtime.errors import NexaError
from nexa_runtime.server.errors import error_body
from nexa_runtime.server.frames import DONE, frame
from nexa_runtime.server.protocol.answers import closing, finish_name, last_chunks
from nexa_runtime.server.protocol.logprobs import CompletionLogprobs, TokenTexts
from nexa_runtime.serving.choices import Choice, ChoiceDelta, Timings
from nexa_runtime.serving.generation import Usage

Body = Mapping[str, object]


class CompletionWriter:
    """Writes the answers to one completion request. ``wants_usage``: at the end of a stream too."""

    ending = DONE
    frame = staticmethod(frame)

    def __init__(
        self, completion_id: str, created: int, model: str, texts: TokenTexts, *, wants_usage: bool = False
    ) -> None:
        self._head = {
            "id": completion_id,
            "object": "text_completion",
            "created": created,
            "model": model,
        }
        self._texts = texts
        self._wants_usage = wants_usage
        self._logprobs: dict[int, CompletionLogprobs] = {}
        """Per choice of a stream."""

    def response(self, choices: list[Choice], usage: Usage, timings: Timings | None) -> Body:
        """The whole answer."""
        bodies = [
            _choice(
                index,
                choice.text,
                CompletionLogprobs(self._texts).body(choice.logprobs) if choice.logprobs else None,
                choice.finish_reason,
            )
            for index, choice in enumerate(choices)
        ]
        return self._head | {"choices": bodies, **closing(usage, timings)}

    def first_chunks(self, _num_choices: int, _usage: Usage) -> list[Body]:
        """Completions have none."""
        return []

    def chunks(self, delta: ChoiceDelta) -> list[Body]:
        """The chunks of one piece of news: its text, then its end."""
        index, reason = delta.index, delta.finish_reason
        logprobs = None
        if delta.logprobs:
            state = self._logprobs.setdefault(index, CompletionLogprobs(self._texts))
            logprobs = state.body(delta.logprobs)
        chunks: list[Body] = []
        if delta.text or (logprobs and reason is None):
            chunks.append(self._chunk(index, delta.text, logprobs, None))
            logprobs = None
        if reason is not None:
            chunks.append(self._chunk(index, "", logprobs, reason))
        return chunks

    def last_chunks(self, usage: Usage, timings: Timings | None) -> list[Body]:
        """The chunk without choices, where the client asked for usage or timings."""
        return last_chunks(self._head, usage, timings, wants_usage=self._wants_usage)

    def error_chunk(self, error: NexaError) -> Body:
        """What a stream that is cut ends with."""
        return error_body(error)

    def _chunk(self, index: int, text: str, logprobs: Body | None, reason: FinishReason | None) -> Body:
        return self._head | {"choices": [_choice(index, text, logprobs, reason)]}


def _choice(index: int, text: str, logprobs: Body | None, reason: FinishReason | None) -> dict[str, object]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_name(reason)}
