"""What a stream sends, and when, without a server: batches of news in, pieces of bytes out."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import cast

import pytest

from nexa_runtime.engine.sequence import FinishReason
from nexa_runtime.errors import DecodeError
from nexa_runtime.server.protocol.chat_writer import ChatWriter
from nexa_runtime.server.protocol.logprobs import TokenTexts
from nexa_runtime.server.stream import _events
from nexa_runtime.serving.choices import ChoiceDelta, Timings
from nexa_runtime.serving.generation import Generation, Usage

STOP = FinishReason.STOP


class FakeGeneration:
    """Batches of news, then perhaps an error."""

    def __init__(self, *batches: list[ChoiceDelta], error: Exception | None = None) -> None:
        self.num_choices = 1
        self.usage = Usage(prompt_tokens=10, completion_tokens=4)
        self._batches = batches
        self._error = error

    async def deltas(self) -> AsyncIterator[list[ChoiceDelta]]:
        for batch in self._batches:
            yield batch
        if self._error is not None:
            raise self._error

    def timings(self) -> Timings:
        return Timings(queue_s=0.5, prompt_s=0.25, predicted_s=2.0)


def written(
    generation: FakeGeneration, *, wants_usage: bool = False, wants_timings: bool = False
) -> list[bytes]:
    """The sends of a stream."""
    writer = ChatWriter("chatcmpl-1", 7, "demo", TokenTexts(()), wants_usage=wants_usage)

    async def collect() -> list[bytes]:
        events = _events(cast(Generation, generation), writer, wants_timings=wants_timings)
        return [piece async for piece in events]

    return asyncio.run(collect())


def test_what_is_there_at_the_same_time_is_one_send() -> None:
    batches = (
        [ChoiceDelta(0, "a"), ChoiceDelta(0, "b")],
        [ChoiceDelta(0)],
        [ChoiceDelta(0, "c", finish_reason=STOP)],
    )
    sends = written(FakeGeneration(*batches))
    assert [send.count(b"data: ") for send in sends] == [1, 2, 2, 1]
    assert sends[-1] == b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("wants", "keys"),
    [
        ({"wants_usage": True}, {"usage"}),
        ({"wants_timings": True}, {"timings"}),
        ({"wants_usage": True, "wants_timings": True}, {"usage", "timings"}),
    ],
)
def test_the_last_chunk_says_what_was_asked(wants: dict[str, bool], keys: set[str]) -> None:
    last = written(FakeGeneration([ChoiceDelta(0, "a", finish_reason=STOP)]), **wants)[-1]
    chunk, done = last.split(b"\n\n", 1)
    assert done == b"data: [DONE]\n\n"
    body = json.loads(chunk.removeprefix(b"data: "))
    assert set(body) == {"id", "object", "created", "model", "choices"} | keys
    assert body["choices"] == []


def test_an_error_is_the_last_frame() -> None:
    last = written(FakeGeneration([ChoiceDelta(0, "a")], error=DecodeError("broken")), wants_usage=True)[-1]
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == DecodeError.code
