"""One generation to one response: a stream of events, or a single body.

Owns how an answer is written while it grows, and that it ends in exactly one way: complete as its API says
(``[DONE]``), with an error frame, or with the client gone. Whatever happens, the generation is closed. Routes
call it.

Deliberate: the status of a stream is withheld until its first token, for ``WITHHOLD_S`` at most, so that a
refusal is a real status; from then on comments keep the connection alive and a failure is an error frame.

Deliberate: a generation's frames are sent while sse-starlette waits for an item that never comes. It puts a
cancel scope with a timer around each item, a third of what a token costs the event loop. A client that takes
nothing is found by its connection (``edge``).
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Protocol, TypeVar

from sse_starlette import EventSourceResponse
from sse_starlette.sse import AppStatus
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from nexa_runtime.errors import ClientDisconnectedError, NexaError
from nexa_runtime.server.errors import json_response
from nexa_runtime.serving.choices import Choice, ChoiceDelta, Timings
from nexa_runtime.serving.generation import Generation, Usage

ResultT = TypeVar("ResultT")

WITHHOLD_S = 10.0
KEEP_ALIVE_S = 10.0

# At the end of the server ``app`` waits for streams, and the engine ends the rest with an error frame.
# sse-starlette would cut them first.
AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]


class Writer(Protocol):
    """How an endpoint writes its answers; ``protocol`` has one per endpoint.

    A stream is ``first_chunks``, ``chunks`` of each delta, ``last_chunks`` and ``ending``; or it is cut by
    ``error_chunk``. ``frame`` puts a chunk on the wire.
    """

    ending: bytes

    def frame(self, content: Mapping[str, object], /) -> bytes: ...

    def response(
        self, choices: list[Choice], usage: Usage, timings: Timings | None
    ) -> Mapping[str, object]: ...

    def first_chunks(self, num_choices: int, usage: Usage) -> Sequence[Mapping[str, object]]: ...

    def chunks(self, delta: ChoiceDelta) -> Sequence[Mapping[str, object]]: ...

    def last_chunks(self, usage: Usage, timings: Timings | None) -> Sequence[Mapping[str, object]]: ...

    def error_chunk(self, error: NexaError) -> Mapping[str, object]: ...


async def respond(
    request: Request,
    generation: Generation,
    writer: Writer,
    headers: dict[str, str],
    *,
    wants_timings: bool = False,
) -> Response:
    """The whole answer in one body; the generation ends with the client."""
    try:
        parts: list[list[ChoiceDelta]] = [[] for _ in range(generation.num_choices)]
        async with _watch_client(request, lambda: generation.fail(ClientDisconnectedError())):
            async for batch in generation.deltas():
                for delta in batch:
                    parts[delta.index].append(delta)
        timings = generation.timings() if wants_timings else None
        best = generation.best([Choice.of(one) for one in parts])
        return json_response(writer.response(best, generation.usage, timings), headers=headers)
    finally:
        generation.close()


async def while_connected(request: Request, work: Coroutine[None, None, ResultT]) -> ResultT:
    """The result of ``work``, which is cancelled when the client leaves; then ``ClientDisconnectedError``."""
    task = asyncio.ensure_future(work)
    async with _watch_client(request, task.cancel):
        try:
            return await task
        except asyncio.CancelledError:
            if task.cancelled() and not _is_cancelling():
                raise ClientDisconnectedError from None
            task.cancel()
            raise


async def stream(
    request: Request,
    generation: Generation,
    writer: Writer,
    headers: dict[str, str],
    *,
    wants_timings: bool = False,
) -> Response:
    """A stream of events, once the first token is there. Raises what ends the request before that."""
    try:
        async with _watch_client(request, lambda: generation.fail(ClientDisconnectedError())):
            await generation.wait_first(WITHHOLD_S)
    except BaseException:
        generation.close()
        raise
    return _GenerationResponse(generation, _events(generation, writer, wants_timings=wants_timings), headers)


class _GenerationResponse(EventSourceResponse):
    """Closes the generation even when the client leaves before the first event was asked for."""

    def __init__(
        self, generation: Generation, events: AsyncGenerator[bytes], headers: dict[str, str]
    ) -> None:
        super().__init__(events, headers=headers, ping=KEEP_ALIVE_S, sep="\n")
        self._generation = generation
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.body_iterator = _sending(self._events, send)
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._generation.close()


async def _sending(events: AsyncGenerator[bytes], send: Send) -> AsyncIterator[bytes]:
    """Sends ``events`` and yields nothing; see the module."""
    async with aclosing(events):
        async for body in events:
            await send({"type": "http.response.body", "body": body, "more_body": True})
    return
    yield b""  # this is what makes it an iterator


async def _events(
    generation: Generation, writer: Writer, *, wants_timings: bool = False
) -> AsyncGenerator[bytes]:
    """The frames of a stream; what is there at the same time is one piece, and one send."""

    def frames(chunks: Iterable[Mapping[str, object]]) -> bytes:
        return b"".join(map(writer.frame, chunks))

    try:
        if first := frames(writer.first_chunks(generation.num_choices, generation.usage)):
            yield first
        async for batch in generation.deltas():
            if piece := frames(chunk for delta in batch for chunk in writer.chunks(delta)):
                yield piece
        timings = generation.timings() if wants_timings else None
        yield frames(writer.last_chunks(generation.usage, timings)) + writer.ending
    except NexaError as error:
        yield writer.frame(writer.error_chunk(error))


def _is_cancelling() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


@asynccontextmanager
async def _watch_client(request: Request, on_leave: Callable[[], object]) -> AsyncIterator[None]:
    """While inside, ``on_leave`` is called as soon as the client is gone."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        on_leave()

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()
