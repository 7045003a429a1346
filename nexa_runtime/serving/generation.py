"""One request to generate: from its prompt to its last token.

Owns the way from messages or prompts to running sequences, and the way back of their text.
``GenerationService`` lives on the event loop; prompts are rendered and tokenized in worker threads. It knows
no wire format: ``server/routes`` and ``cli`` call it.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import anyio

from nexa_runtime.chat.messages import Message
from nexa_runtime.engine.generation_lane import Delta, GenerationRequest
from nexa_runtime.engine.model_engine import News
from nexa_runtime.engine.sequence import FinishReason
from nexa_runtime.errors import NexaError, RequestTimeoutError
from nexa_runtime.llama import SamplingParams
from nexa_runtime.serving.dispatcher import Dispatcher
from nexa_runtime.serving.loaded import Kind, LoadedModel
from nexa_runtime.serving.pool import ModelLease
from nexa_runtime.serving.prompts import (
    Prompt,
    Tokens,
    check_bias,
    check_size,
    prompt_tokens,
    too_long,
    with_bos,
)
from nexa_runtime.serving.tenants import max_sequence_tokens, namespace_of, share_of
from nexa_runtime.telemetry import get_logger
from nexa_runtime.tenancy.admission import Ticket
from nexa_runtime.tenancy.tenant import Tenant

_MAX_LOGGED_CHARS = 8192

_log = get_logger("serving")


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """What a client asked for; None: it did not say. ``max_tokens`` of the answer."""

    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    repeat_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    stops: tuple[str, ...] = ()
    ignore_eos: bool = False

    def sampling(self, defaults: SamplingParams) -> SamplingParams:
        """The model's defaults with what the client said."""
        names = (
            "temperature", "top_p", "top_k", "min_p", "seed",
            "repeat_penalty", "frequency_penalty", "presence_penalty",
        )  # fmt: skip
        said = {name: value for name in names if (value := getattr(self, name)) is not None}
        return replace(defaults, logit_bias=self.logit_bias, **said)


@dataclass(frozen=True, slots=True)
class ChoiceDelta:
    """News of one choice of a request: ``text`` to append, and the end with ``finish_reason``."""

    index: int
    text: str
    finish_reason: FinishReason | None


@dataclass(slots=True)
class Usage:
    """Tokens of a request so far. ``cached_tokens``: prompt tokens whose KV was there already."""

    prompt_tokens: int
    completion_tokens: int = 0
    cached_tokens: int = 0


@dataclass(slots=True)
class _Inbox:
    """What has come for a generation and was not read yet."""

    deltas: deque[ChoiceDelta] = field(default_factory=deque)
    error: Exception | None = None
    news: asyncio.Event = field(default_factory=asyncio.Event)


class Generation:
    """One request that runs: a choice per prompt. ``close`` ends it, however far it is; call it always.

    What it holds (its place, its lease) is given back when the engine has ended its sequences: at once, or a
    step later.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        *,
        lease: ModelLease,
        ticket: Ticket,
        prompt_tokens: Sequence[int],
        clamped_max_tokens: int | None,
    ) -> None:
        self._dispatcher = dispatcher
        self._ticket = ticket
        self._lease = lease
        self.model = lease.model
        self.model_name = lease.name
        """The name that the client used, or the model's id."""
        self.clamped_max_tokens = clamped_max_tokens
        """What ``max_tokens`` was lowered to, for the choice with least room, if it was."""
        self.usage = Usage(prompt_tokens=sum(prompt_tokens))
        self.num_choices = len(prompt_tokens)
        self.keys = [dispatcher.new_key() for _ in prompt_tokens]
        self._index = {key: index for index, key in enumerate(self.keys)}
        self._num_new = [0] * self.num_choices
        self._num_open = 0
        """Sequences that the engine has and has not ended."""
        self._num_done_tokens = 0
        self._has_ended = False
        """Whether all of it ended before it was closed."""
        self._inbox = _Inbox()
        self._is_closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._opened_at = time.monotonic()
        self._first_text_s: float | None = None
        self._queue_s: float | None = None

    async def wait_first(self, timeout_s: float) -> None:
        """Wait for the first news, at most ``timeout_s`` seconds. Raises what ended the request before."""
        with anyio.move_on_after(timeout_s):
            await self._inbox.news.wait()
        if self._inbox.error is not None and not self._inbox.deltas:
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
        usage = self.usage
        self._lease.release()
        self._ticket.settle(
            prompt_tokens=self._num_done_tokens,
            cached_tokens=usage.cached_tokens,
            completion_tokens=usage.completion_tokens,
        )
        _log.info(
            "generation",
            tenant=self._ticket.tenant.id,
            model=self.model_name,
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            completion_tokens=usage.completion_tokens,
            ended=self._ending(),
            queue_ms=None if self._queue_s is None else round(self._queue_s * 1e3, 1),
            first_text_ms=None if self._first_text_s is None else round(self._first_text_s * 1e3, 1),
            total_ms=round((time.monotonic() - self._opened_at) * 1e3, 1),
        )

    def start(self, requests: Sequence[GenerationRequest]) -> None:
        """Hand the sequences to the engine; when the request's time is over they are aborted."""
        timeout_s = self._dispatcher.settings.request_timeout_s
        expire = RequestTimeoutError(timeout_s)
        self._timer = asyncio.get_running_loop().call_later(timeout_s, self.fail, expire)
        for key, request in zip(self.keys, requests, strict=True):
            self._dispatcher.connect(key, self._take)
            self.model.engine.submit(key, request)
            self._num_open += 1

    def _take(self, delta: News) -> None:
        assert isinstance(delta, Delta)
        index = self._index[delta.key]
        self._num_new[index] = delta.num_new_tokens
        self.usage.completion_tokens = sum(self._num_new)
        if delta.text and self._first_text_s is None:
            self._first_text_s = time.monotonic() - self._opened_at
        if delta.finish_reason is not None:
            self._num_open -= 1
            self._num_done_tokens += delta.num_done_tokens
            self._queue_s = max(self._queue_s or 0.0, delta.queue_s)
            self.usage.cached_tokens += delta.num_cached_tokens
        if self._is_closed:
            if not self._num_open:
                self._settle()
            return
        if self._inbox.error is not None:
            return
        if delta.error is not None:
            self._inbox.error = delta.error
            self._abort()
        elif delta.text or delta.finish_reason is not None:
            self._inbox.deltas.append(ChoiceDelta(index, delta.text, delta.finish_reason))
        self._inbox.news.set()

    def _ending(self) -> str:
        """For the log: complete, the code of what ended it, or that nobody waited for its end."""
        if self._inbox.error is not None:
            return getattr(self._inbox.error, "code", NexaError.code)
        return "complete" if self._has_ended else "abandoned"

    def _abort(self) -> None:
        if self._num_open:
            for key in self.keys:
                self.model.engine.abort(key)


class GenerationService:
    """Opens generations, on the dispatcher's event loop."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    async def open_chat(
        self,
        tenant: Tenant,
        messages: Sequence[Message],
        options: GenerationOptions,
        *,
        is_patient: bool = True,
    ) -> Generation:
        """Start the answer to a conversation. ``is_patient``: wait while the model is loaded.

        Raises ``RequestError``, ``TenantLimitError``, ``BoxBusyError``.
        """

        def tokenize(model: LoadedModel, max_tokens: int) -> list[Tokens]:
            vocab = model.model.vocab
            prompt = model.template.render(messages)
            check_size(vocab, prompt.text, max_tokens=max_tokens, param="messages")
            return [with_bos(vocab, vocab.tokenize_guarded(prompt.text, prompt.guard))]

        ticket = self._dispatcher.admit(tenant, 1)
        with _settled_on_error(ticket):
            lease = await self._dispatcher.lease(tenant, options.model, Kind.CHAT, is_patient=is_patient)
            _log_prompt(tenant, [message.content or "" for message in messages])
            return await self._start(ticket, lease, tokenize, options, param="messages")

    async def open_completion(
        self,
        tenant: Tenant,
        prompts: Sequence[Prompt],
        options: GenerationOptions,
        *,
        is_patient: bool = True,
    ) -> Generation:
        """Start the continuation of one or more prompts, a choice each. As ``open_chat``.

        A text prompt is the client's own template: control tokens that it spells out are control tokens.
        """

        def tokenize(model: LoadedModel, max_tokens: int) -> list[Tokens]:
            vocab = model.model.vocab
            for prompt in prompts:
                if isinstance(prompt, str):
                    check_size(vocab, prompt, max_tokens=max_tokens, param="prompt")
            return [prompt_tokens(vocab, prompt, param="prompt") for prompt in prompts]

        ticket = self._dispatcher.admit(tenant, len(prompts))
        with _settled_on_error(ticket):
            lease = await self._dispatcher.lease(
                tenant, options.model, Kind.COMPLETION, is_patient=is_patient
            )
            _log_prompt(tenant, [prompt for prompt in prompts if isinstance(prompt, str)])
            return await self._start(ticket, lease, tokenize, options, param="prompt")

    async def _start(
        self,
        ticket: Ticket,
        lease: ModelLease,
        tokenize: Callable[[LoadedModel, int], list[Tokens]],
        options: GenerationOptions,
        param: str,
    ) -> Generation:
        model, tenant = lease.model, ticket.tenant
        try:
            check_bias(model.model.vocab, options.logit_bias)
            max_tokens = max_sequence_tokens(tenant, model)
            prompts = await self._dispatcher.prepare(lambda: tokenize(model, max_tokens))
            requests = [self._request(tenant, model, prompt, options, param) for prompt in prompts]
            ticket.reserve(sum(len(one.prompt) + one.max_new_tokens for one in requests))
        except BaseException:
            lease.release()
            raise
        shortest = min(request.max_new_tokens for request in requests)
        asked = options.max_tokens
        generation = Generation(
            self._dispatcher,
            lease=lease,
            ticket=ticket,
            prompt_tokens=[len(prompt) for prompt in prompts],
            clamped_max_tokens=shortest if asked is not None and shortest < asked else None,
        )
        try:
            generation.start(requests)
        except NexaError:
            generation.close()
            raise
        return generation

    def _request(
        self, tenant: Tenant, model: LoadedModel, prompt: Tokens, options: GenerationOptions, param: str
    ) -> GenerationRequest:
        limits = tenant.limits
        max_tokens = max_sequence_tokens(tenant, model)
        room = max_tokens - len(prompt)
        if room < 1:
            raise too_long(len(prompt), max_tokens, param)
        if limits.temperature is not None and options.temperature is None:
            options = replace(options, temperature=limits.temperature)
        sampling = options.sampling(model.sampling)
        if options.ignore_eos:
            sampling = replace(sampling, banned=model.model.vocab.eog_tokens)
        room = min(room, limits.max_output_tokens or room)
        default = self._dispatcher.settings.default_max_tokens
        return GenerationRequest(
            prompt=prompt,
            max_new_tokens=min(options.max_tokens or default or room, room),
            sampling=sampling,
            share=share_of(tenant, model),
            cache_namespace=namespace_of(tenant, model),
            stops=options.stops,
            ignore_eos=options.ignore_eos,
            queue_timeout_s=limits.queue_timeout_s,
        )


@contextmanager
def _settled_on_error(ticket: Ticket) -> Iterator[None]:
    """What was not started has used nothing."""
    try:
        yield
    except BaseException:
        ticket.settle()
        raise


def _log_prompt(tenant: Tenant, texts: Sequence[str]) -> None:
    """Only where the tenant's limits say so: prompts are never logged otherwise."""
    if tenant.limits.logs_prompts:
        _log.info("prompt", tenant=tenant.id, texts=[text[:_MAX_LOGGED_CHARS] for text in texts])
