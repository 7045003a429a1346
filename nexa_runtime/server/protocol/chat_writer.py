"""``/v1/chat/completions`` on the wire: responses and stream chunks.

Owns the shape of an answer's message, its calls and its ends. It never decides what is a call or reasoning;
``routes/generate`` makes a writer per request, ``stream`` calls it. Source: OpenAI's chat completions API;
``reasoning_content`` as llama-server has it.
"""

from collections.abc import Mapping

from nexa_runtime.chat.dialects.base import CallDelta
from nexa_runtime.engine.sequence import FinishReason
from nexa_runtime.errors import NexaError
from nexa_runtime.server.errors import error_body
from nexa_runtime.server.frames import DONE, frame
from nexa_runtime.server.protocol.answers import closing, finish_name, last_chunks
from nexa_runtime.server.protocol.logprobs import TokenTexts, chat_logprobs
from nexa_runtime.serving.choices import Choice, ChoiceDelta, Timings
from nexa_runtime.serving.generation import Usage

Body = Mapping[str, object]


class ChatWriter:
    """Writes the answers to one chat request. ``is_named``: the client named the function to call, so that
    the call is no news and its end is an ordinary one. ``wants_usage``: at the end of a stream too.
    """

    ending = DONE
    frame = staticmethod(frame)

    def __init__(
        self,
        completion_id: str,
        created: int,
        model: str,
        texts: TokenTexts,
        *,
        is_named: bool = False,
        wants_usage: bool = False,
    ) -> None:
        self._head = {"id": completion_id, "created": created, "model": model}
        self._texts = texts
        self._is_named = is_named
        self._wants_usage = wants_usage
        self._with_calls: set[int] = set()
        """Choices of a stream that have called something."""

    def response(self, choices: list[Choice], usage: Usage, timings: Timings | None) -> Body:
        """The whole answer."""
        return self._head | {
            "object": "chat.completion",
            "choices": [self._whole(index, choice) for index, choice in enumerate(choices)],
            **closing(usage, timings),
        }

    def first_chunks(self, num_choices: int, _: Usage) -> list[Body]:
        """Before any text: who speaks."""
        return [self._chunk(index, {"role": "assistant", "content": ""}) for index in range(num_choices)]

    def chunks(self, delta: ChoiceDelta) -> list[Body]:
        """The chunks of one piece of news; log-probabilities come with the first of them."""
        index, reason = delta.index, delta.finish_reason
        if reason is None and not (delta.reasoning or delta.call or delta.logprobs):
            # Nearly all of them are like this, once per token.
            return [self._chunk(index, {"content": delta.text})] if delta.text else []
        bodies: list[Body] = []
        if delta.reasoning:
            bodies.append({"reasoning_content": delta.reasoning})
        if delta.text:
            bodies.append({"content": delta.text})
        if delta.call is not None:
            self._with_calls.add(index)
            bodies += _call_bodies(delta.call)
        logprobs = chat_logprobs(delta.logprobs, self._texts) if delta.logprobs else None
        if logprobs and not bodies and reason is None:
            bodies.append({"content": ""})
        chunks: list[Body] = []
        for body in bodies:
            chunks.append(self._chunk(index, body, logprobs))
            logprobs = None
        if reason is not None:
            name = self._finish_name(reason, has_calls=index in self._with_calls)
            chunks.append(self._chunk(index, {}, logprobs, name))
        return chunks

    def last_chunks(self, usage: Usage, timings: Timings | None) -> list[Body]:
        """The chunk without choices, where the client asked for usage or timings."""
        head = self._head | {"object": "chat.completion.chunk"}
        return last_chunks(head, usage, timings, wants_usage=self._wants_usage)

    def error_chunk(self, error: NexaError) -> Body:
        """What a stream that is cut ends with."""
        return error_body(error)

    def _whole(self, index: int, choice: Choice) -> Body:
        message: dict[str, object] = {
            "role": "assistant",
            "content": choice.text or (None if choice.calls else ""),
            "refusal": None,
        }
        if choice.reasoning:
            message["reasoning_content"] = choice.reasoning
        if choice.calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in choice.calls
            ]
        return {
            "index": index,
            "message": message,
            "logprobs": chat_logprobs(choice.logprobs, self._texts) if choice.logprobs else None,
            "finish_reason": self._finish_name(choice.finish_reason, has_calls=bool(choice.calls)),
        }

    def _chunk(
        self, index: int, delta: Body, logprobs: Body | None = None, reason: str | None = None
    ) -> Body:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return self._head | {"object": "chat.completion.chunk", "choices": [choice]}

    def _finish_name(self, reason: FinishReason, *, has_calls: bool) -> str | None:
        if reason is FinishReason.STOP and has_calls and not self._is_named:
            return "tool_calls"
        return finish_name(reason)


def _call_bodies(call: CallDelta) -> list[Body]:
    """A call begins with its name and no arguments, as OpenAI's do."""
    bodies: list[Body] = []
    if call.id is not None:
        function = {"name": call.name or "", "arguments": ""}
        begun = {"index": call.index, "id": call.id, "type": "function", "function": function}
        bodies.append({"tool_calls": [begun]})
    if call.arguments:
        bodies.append({"tool_calls": [{"index": call.index, "function": {"arguments": call.arguments}}]})
    return bodies
