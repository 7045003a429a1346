"""One request that generates: its sequences in the engine, and the way back of their text.

Owns when it ends and that what it held is given back once, however it ends. Lives on the event loop.
``generation_service`` makes it; ``server`` and ``cli`` read it.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field

import anyio

from nexa_runtime.chat.dialects.base import Parser
from nexa_runtime.engine.generation_lane import Delta, GenerationRequest
from nexa_runtime.engine.model_engine import News
from nexa_runtime.engine.sequence import FinishReason
from nexa_runtime.engine.stops import StopFinder
from nexa_runtime.errors import ClientDisconnectedError, NexaError, RequestTimeoutError
from nexa_runtime.lora import NO_ADAPTERS, AdapterSet
from nexa_runtime.serving.choices import Choice, ChoiceDelta, Timings
from nexa_runtime.serving.dispatcher import Dispatcher
from nexa_runtime.serving.open_request import OpenRequest, Used
from nexa_runtime.serving.pool import ModelLease
from nexa_runtime.telemetry import get_logger

_log = get_logger("serving")


@dataclass(frozen=True, slots=True)
class PromptChoices:
    """One prompt and its choices: what reads the text of each, and the text that comes before it.
    ``stops`` end the content that the parsers find.
    """

    num_tokens: int
    parsers: tuple[Parser | None, ...]
    echo: str = ""
    stops: tuple[str, ...] = ()


@dataclass(slots=True)
class Usage:
    """Tokens of a request so far; a prompt counts once, however many choices it has. ``cached_tokens``: those
    of prompts whose KV was there before any choice was begun.
    """

    prompt_tokens: int
    completion_tokens: int = 0
    cached_tokens: int = 0


@dataclass(slots=True)
class _Inbox:
    """What has come for a generation and was not read yet."""

    deltas: deque[ChoiceDelta] = field(default_factory=deque)
    error: Exception | None = None
    news: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True)
class _Running:
    """One choice. ``prompt``: which one it answers. ``stops``: looked for in its content. ``num_cached`` and
    ``num_done`` of its tokens. ``finish_reason``: as OpenAI has it, once it is there.
    """

    prompt: int
    parser: Parser | None
    stops: StopFinder
    num_new: int = 0
    num_cached: int = 0
    num_done: int = 0
    has_called: bool = False
    finish_reason: str | None = None


class Generation:
    """One request that runs: choices per prompt. ``close`` ends it, however far it is; call it always.

    What it holds (its place, its lease) is given back when the engine has ended its sequences: at once, or a
    step later.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        *,
        lease: ModelLease,
        request: OpenRequest,
        prompts: Sequence[PromptChoices],
        num_kept: int,
        shows_logprobs: bool,
        clamped_max_tokens: int | None,
        adapters: AdapterSet = NO_ADAPTERS,
    ) -> None:
        """``num_kept``: of the choices of each prompt, how many ``best`` is to leave. ``shows_logprobs``:
        whether the client asked for log-probabilities, which may also be there to find the best.
        """
        self._dispatcher = dispatcher
        self._request = request
        request.adapters = adapters
        self._lease = lease
        self.model = lease.model
        self.model_name = lease.name
        """The name that the client used, or the model's id."""
        self.clamped_max_tokens = clamped_max_tokens
        """What ``max_tokens`` was lowered to, for the choice with least room, if it was."""
        self.adapters = adapters
        """What it is computed with."""
        self.usage = Usage(prompt_tokens=sum(one.num_tokens for one in prompts))
        self._prompts = prompts
        self._num_kept = num_kept
        self._shows_logprobs = shows_logprobs
        self._running = [
            _Running(number, parser, StopFinder(one.stops))
            for number, one in enumerate(prompts)
            for parser in one.parsers
        ]
        self.num_choices = len(self._running)
        self.keys = [dispatcher.new_key() for _ in self._running]
        self._index = {key: index for index, key in enumerate(self.keys)}
        self._num_open = 0
        """Sequences that the engine has and has not ended."""
        self._has_ended = False
        """Whether all of it ended before it was closed."""
        self._inbox = _Inbox()
        self._is_closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._opened_at = time.monotonic()
        self._has_begun = False
        """Whether the engine has said anything of an answer."""
        self._first_text_at: float | None = None
        self._queue_s: float | None = None

    async def wait_first(self, timeout_s: float) -> None:
        """Wait for the first news, at most ``timeout_s`` seconds. Raises what ended the request before."""
        with anyio.move_on_after(timeout_s):
            await self._inbox.news.wait()
        if self._inbox.error is not None and not self._has_begun:
            raise self._inbox.error

    async def deltas(self) -> AsyncIterator[list[ChoiceDelta]]:
        """What came since the last time, until every choice has ended. Raises what ended it early."""
        inbox = self._inbox
        num_open = self.num_choices
        while num_open:
            await inbox.news.wait()
            inbox.news.clear()
            batch, inbox.deltas = list(inbox.deltas), deque()
            num_open -= sum(delta.finish_reason is not None for delta in batch)
            if batch:
                yield batch
            if inbox.error is not None:
                raise inbox.error

    def fail(self, error: Exception) -> None:
        """End the request with ``error``: whoever reads it gets that, and its sequences are aborted."""
        if not self._num_open:
            return
        self._inbox.error = self._inbox.error or error
        self._inbox.news.set()
        self._abort()

    def close(self) -> None:
        """End the request and release all it holds. A second call does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        self._has_ended = not self._num_open
        if self._timer is not None:
            self._timer.cancel()
        self._abort()
        if not self._num_open:
            self._settle()

    def _settle(self) -> None:
        """Every sequence has ended: give back what the request held, and account for what it used."""
        for key in self.keys:
            self._dispatcher.disconnect(key)
        self._lease.release()
        used = Used(
            prompt_tokens=sum(max(one.num_done for one in group) for group in self._groups()),
            cached_tokens=self.usage.cached_tokens,
            completion_tokens=self.usage.completion_tokens,
            finish_reason=self._running[0].finish_reason if self._has_ended else None,
            queue_s=self._queue_s,
            first_text_at=self._first_text_at,
        )
        left = None if self._has_ended else ClientDisconnectedError()
        self._request.settle(used, self._inbox.error or left)

    def start(self, requests: Sequence[GenerationRequest]) -> None:
        """Hand the sequences to the engine; when the request's time is over they are aborted."""
        timeout_s = self._dispatcher.settings.request_timeout_s
        expire = RequestTimeoutError(timeout_s)
        self._timer = asyncio.get_running_loop().call_later(timeout_s, self.fail, expire)
        for key, request in zip(self.keys, requests, strict=True):
            self._dispatcher.connect(key, self._take)
            self.model.engine.submit(key, request)
            self._num_open += 1
        for index, one in enumerate(self._running):
            if echo := self._prompts[one.prompt].echo:
                self._inbox.deltas.append(ChoiceDelta(index, echo))

    @property
    def pieces(self) -> Sequence[bytes]:
        """The bytes of each token, control tokens spelled out."""
        return self.model.model.vocab.special_pieces

    def timings(self) -> Timings:
        """Where the time went up to now."""
        total_s = time.monotonic() - self._opened_at
        queue_s = self._queue_s or 0.0
        first_at = self._first_text_at
        first_s = total_s if first_at is None else first_at - self._opened_at
        return Timings(queue_s, max(first_s - queue_s, 0.0), max(total_s - first_s, 0.0))

    def best(self, choices: Sequence[Choice]) -> list[Choice]:
        """Of the choices of each prompt the likeliest per token, as many as the client wants."""
        kept: list[Choice] = []
        for number in range(len(self._prompts)):
            group = [
                choice for one, choice in zip(self._running, choices, strict=True) if one.prompt == number
            ]
            if len(group) > self._num_kept:
                group.sort(key=lambda choice: choice.mean_logprob, reverse=True)
            kept += group[: self._num_kept]
        if not self._shows_logprobs:
            for choice in kept:
                choice.logprobs.clear()
        return kept

    def _groups(self) -> list[list[_Running]]:
        """The choices of each prompt."""
        groups: list[list[_Running]] = [[] for _ in self._prompts]
        for one in self._running:
            groups[one.prompt].append(one)
        return groups

    def _take(self, delta: News) -> None:
        assert isinstance(delta, Delta)
        index = self._index[delta.key]
        one = self._running[index]
        self.usage.completion_tokens += delta.num_new_tokens - one.num_new
        one.num_new = delta.num_new_tokens
        if delta.text and self._first_text_at is None:
            self._first_text_at = time.monotonic()
        if delta.finish_reason is not None:
            self._num_open -= 1
            one.num_cached, one.num_done = delta.num_cached_tokens, delta.num_done_tokens
            self._queue_s = max(self._queue_s or 0.0, delta.queue_s)
            if not self._num_open:
                # What one choice has computed is cached for the next; that says nothing of the prompt.
                self.usage.cached_tokens = sum(
                    min(each.num_cached for each in group) for group in self._groups()
                )
        if self._is_closed:
            if not self._num_open:
                self._settle()
            return
        if self._inbox.error is not None:
            return
        if delta.error is not None:
            self._inbox.error = delta.error
            self._abort()
        else:
            self._read(index, one, delta)
        self._inbox.news.set()

    def _read(self, index: int, one: _Running, delta: Delta) -> None:
        """Put what a sequence's news say of its choice where the reader finds it.

        A parser that fails, which none should, ends this request and nobody else's.
        """
        try:
            deltas = list(_parts(index, one, delta))
        except Exception:  # noqa: BLE001 - what comes behind it is other requests' news
            _log.exception("parser_failed", model=self.model_name)
            self._inbox.error = NexaError("The answer could not be read.")
            self._abort()
            return
        if deltas and (reason := deltas[-1].finish_reason) is not None:
            is_call = one.has_called and reason is FinishReason.STOP
            one.finish_reason = "tool_calls" if is_call else reason.value
        if one.stops.is_stopped:
            self.model.engine.abort(delta.key)
        self._has_begun = self._has_begun or bool(deltas)
        self._inbox.deltas += deltas

    def _abort(self) -> None:
        if self._num_open:
            for key in self.keys:
                self.model.engine.abort(key)


def _parts(index: int, one: _Running, delta: Delta) -> Iterator[ChoiceDelta]:
    """What a sequence's news say of its choice."""
    reason, logprobs, stops = delta.finish_reason, delta.logprobs, one.stops
    if one.parser is None:
        if delta.text or logprobs or reason is not None:
            yield ChoiceDelta(index, delta.text, finish_reason=reason, logprobs=logprobs, stop=delta.stop)
        return
    parts = one.parser.feed(delta.text) if delta.text else []
    if reason is not None:
        parts += one.parser.finish()
    for part in parts:
        if stops.is_stopped:
            break
        text = stops.flush() if part.call is not None else stops.feed(part.content)
        one.has_called = one.has_called or part.call is not None
        if text or part.reasoning or part.call is not None:
            yield ChoiceDelta(index, text, part.reasoning, part.call, logprobs=logprobs)
            logprobs = ()
    if reason is not None and stops.is_stopped:
        reason = FinishReason.STOP  # it was ended for that
    rest = stops.flush() if reason is not None else ""
    if rest or logprobs or reason is not None:
        stop = None if reason is None else delta.stop or stops.found
        yield ChoiceDelta(index, rest, finish_reason=reason, logprobs=logprobs, stop=stop)
