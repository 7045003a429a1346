"""One request to generate: from its prompt to its last token.

Owns the way from messages or prompts to running sequences, and the way back of their text.
``GenerationService`` lives on the event loop; prompts are rendered and tokenized in worker threads. It knows
no wire format: ``server/routes`` and ``cli`` call it.

The thread border is here: the engine publishes each step's deltas once, ``_dispatch`` sorts them on the event
loop.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace

import anyio
import numpy as np
import numpy.typing as npt
from anyio.to_thread import run_sync

from nexa_runtime.chat.messages import Message
from nexa_runtime.config import ServingSettings
from nexa_runtime.engine.engine import Delta, GenerationRequest
from nexa_runtime.engine.sequence import FinishReason, TenantShare
from nexa_runtime.errors import (
    ContextLengthError,
    InvalidRequestError,
    NexaError,
    QueueFullError,
    RequestTimeoutError,
    ShuttingDownError,
)
from nexa_runtime.llama import SamplingParams, Vocab
from nexa_runtime.serving.pool import LoadedModel, ModelPool
from nexa_runtime.telemetry import get_logger

Tokens = npt.NDArray[np.int32]
Prompt = str | Sequence[int]

_DEFAULT_TENANT = TenantShare("demo")
_NUM_PROMPT_THREADS = 4

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
    """One request that runs: a choice per prompt. ``close`` ends it, however far it is; call it always."""

    def __init__(
        self,
        *,
        model: LoadedModel,
        model_name: str,
        prompt_tokens: Sequence[int],
        clamped_max_tokens: int | None,
        on_close: Callable[["Generation"], None],
    ) -> None:
        self.model = model
        self.model_name = model_name
        """The name that the client used, or the model's id."""
        self.clamped_max_tokens = clamped_max_tokens
        """What ``max_tokens`` was lowered to, if it was."""
        self.usage = Usage(prompt_tokens=sum(prompt_tokens))
        self.num_choices = len(prompt_tokens)
        self.keys = [model.engine.new_key() for _ in prompt_tokens]
        self._index = {key: index for index, key in enumerate(self.keys)}
        self._num_new = [0] * self.num_choices
        self._num_open = self.num_choices
        self._inbox = _Inbox()
        self._on_close = on_close
        self._is_closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._opened_at = time.monotonic()
        self._first_text_s: float | None = None
        self._queue_s = 0.0

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
        if self._timer is not None:
            self._timer.cancel()
        self._abort()
        self._on_close(self)
        _log.info(
            "generation",
            model=self.model_name,
            prompt_tokens=self.usage.prompt_tokens,
            cached_tokens=self.usage.cached_tokens,
            completion_tokens=self.usage.completion_tokens,
            complete=not self._num_open,
            queue_ms=round(self._queue_s * 1e3, 1),
            first_text_ms=None if self._first_text_s is None else round(self._first_text_s * 1e3, 1),
            total_ms=round((time.monotonic() - self._opened_at) * 1e3, 1),
        )

    def start(self, requests: Sequence[GenerationRequest], timeout_s: float) -> None:
        """Hand the sequences to the engine; after ``timeout_s`` seconds they are aborted."""
        expire = RequestTimeoutError(timeout_s)
        self._timer = asyncio.get_running_loop().call_later(timeout_s, self.fail, expire)
        for key, request in zip(self.keys, requests, strict=True):
            self.model.engine.submit(key, request)

    def take(self, delta: Delta) -> None:
        """Take in what the engine says. On the event loop."""
        index = self._index[delta.key]
        self._num_new[index] = delta.num_new_tokens
        self.usage.completion_tokens = sum(self._num_new)
        if delta.text and self._first_text_s is None:
            self._first_text_s = time.monotonic() - self._opened_at
        if delta.finish_reason is not None:
            self._num_open -= 1
            self._queue_s = max(self._queue_s, delta.queue_s)
            self.usage.cached_tokens += delta.num_cached_tokens
        if self._inbox.error is not None:
            return
        if delta.error is not None:
            self._inbox.error = delta.error
            self._abort()
        elif delta.text or delta.finish_reason is not None:
            self._inbox.deltas.append(ChoiceDelta(index, delta.text, delta.finish_reason))
        self._inbox.news.set()

    def _abort(self) -> None:
        if self._num_open:
            for key in self.keys:
                self.model.engine.abort(key)


class GenerationService:
    """Opens generations. Made and used on one event loop; ``start`` before the first."""

    def __init__(self, pool: ModelPool, settings: ServingSettings) -> None:
        self._pool = pool
        self._settings = settings
        self._open: dict[int, Generation] = {}
        self._num_admitted = 0
        self._is_stopping = False
        self._threads = anyio.CapacityLimiter(_NUM_PROMPT_THREADS)

    @property
    def pool(self) -> ModelPool:
        """The models served."""
        return self._pool

    @property
    def num_open(self) -> int:
        """Sequences of requests that are not closed."""
        return len(self._open)

    @property
    def is_ready(self) -> bool:
        """Whether requests are taken."""
        return not self._is_stopping

    def start(self) -> None:
        """Start the engines; their deltas come to the running event loop."""
        loop = asyncio.get_running_loop()

        def publish(deltas: list[Delta]) -> None:
            loop.call_soon_threadsafe(self._dispatch, deltas)

        for model in self._pool.models():
            model.engine.start(publish)

    async def stop(self) -> None:
        """End every request with ``ShuttingDownError`` and take no more. A second call does nothing."""
        self._is_stopping = True
        await run_sync(self._pool.stop)

    async def close(self) -> None:
        """After ``stop``: free the models, once no worker thread tokenizes any more."""
        for _ in range(_NUM_PROMPT_THREADS):
            await self._threads.acquire_on_behalf_of(object())
        await run_sync(self._pool.close)

    async def open_chat(self, messages: Sequence[Message], options: GenerationOptions) -> Generation:
        """Start the answer to a conversation. Raises ``RequestError``, ``QueueFullError``,
        ``ShuttingDownError``.
        """
        model = self._pool.resolve(options.model)

        def tokenize() -> list[Tokens]:
            prompt = model.template.render(messages)
            return [
                _with_bos(model.model.vocab, model.model.vocab.tokenize_guarded(prompt.text, prompt.guard))
            ]

        return await self._start(model, 1, tokenize, options, param="messages")

    async def open_completion(self, prompts: Sequence[Prompt], options: GenerationOptions) -> Generation:
        """Start the continuation of one or more prompts, a choice each. Raises as ``open_chat``.

        A text prompt is the client's own template: control tokens that it spells out are control tokens.
        """
        model = self._pool.resolve(options.model)

        def tokenize() -> list[Tokens]:
            return [_prompt_tokens(model.model.vocab, prompt) for prompt in prompts]

        return await self._start(model, len(prompts), tokenize, options, param="prompt")

    async def _start(
        self,
        model: LoadedModel,
        num_choices: int,
        tokenize: Callable[[], list[Tokens]],
        options: GenerationOptions,
        param: str,
    ) -> Generation:
        self._admit(model, num_choices)
        try:
            _check_bias(model.model.vocab, options)
            prompts = await run_sync(tokenize, limiter=self._threads)
            requests = [self._request(model, prompt, options, param) for prompt in prompts]
        except BaseException:
            self._num_admitted -= num_choices
            raise
        longest = max(request.max_new_tokens for request in requests)
        asked = options.max_tokens
        generation = Generation(
            model=model,
            model_name=options.model or model.id,
            prompt_tokens=[len(prompt) for prompt in prompts],
            clamped_max_tokens=longest if asked is not None and longest < asked else None,
            on_close=self._forget,
        )
        self._open.update(dict.fromkeys(generation.keys, generation))
        try:
            generation.start(requests, self._settings.request_timeout_s)
        except NexaError:
            generation.close()
            raise
        return generation

    def _admit(self, model: LoadedModel, num_choices: int) -> None:
        """The cheap check first: a full box neither renders nor tokenizes."""
        if self._is_stopping:
            raise ShuttingDownError
        if self._num_admitted + num_choices > model.slots + self._settings.max_queue:
            raise QueueFullError(self._settings.max_queue)
        self._num_admitted += num_choices

    def _request(
        self, model: LoadedModel, prompt: Tokens, options: GenerationOptions, param: str
    ) -> GenerationRequest:
        if not len(prompt):
            raise InvalidRequestError("The prompt has no tokens.", param=param)
        room = model.max_sequence_tokens - len(prompt)
        if room < 1:
            raise ContextLengthError(
                prompt_tokens=len(prompt),
                max_prompt_tokens=model.max_sequence_tokens - 1,
                context_tokens=model.max_sequence_tokens,
                param=param,
            )
        sampling = options.sampling(model.sampling)
        if options.ignore_eos:
            sampling = replace(sampling, banned=model.model.vocab.eog_tokens)
        return GenerationRequest(
            prompt=prompt,
            max_new_tokens=min(options.max_tokens or self._settings.default_max_tokens or room, room),
            sampling=sampling,
            share=_DEFAULT_TENANT,
            cache_namespace=f"{_DEFAULT_TENANT.tenant_id}/{model.id}",
            stops=options.stops,
            ignore_eos=options.ignore_eos,
        )

    def _forget(self, generation: Generation) -> None:
        for key in generation.keys:
            self._open.pop(key, None)
        self._num_admitted -= generation.num_choices

    def _dispatch(self, deltas: list[Delta]) -> None:
        for delta in deltas:
            if (generation := self._open.get(delta.key)) is not None:
                generation.take(delta)


def _prompt_tokens(vocab: Vocab, prompt: Prompt) -> Tokens:
    if isinstance(prompt, str):
        return vocab.tokenize(prompt, parse_special=True, add_special=True)
    if prompt and not 0 <= min(prompt) <= max(prompt) < vocab.size:
        raise InvalidRequestError(f"Token ids of this model are 0 to {vocab.size - 1}.", param="prompt")
    return np.array(prompt, dtype=np.int32)


def _with_bos(vocab: Vocab, tokens: Tokens) -> Tokens:
    """Some templates write the first token themselves, some leave it to the tokenizer."""
    if not vocab.adds_bos or (len(tokens) and tokens[0] == vocab.bos_token):
        return tokens
    return np.concatenate([np.array([vocab.bos_token], dtype=np.int32), tokens])


def _check_bias(vocab: Vocab, options: GenerationOptions) -> None:
    for token, _ in options.logit_bias:
        if not 0 <= token < vocab.size:
            message = f"logit_bias names the token {token}; this model has 0 to {vocab.size - 1}."
            raise InvalidRequestError(message, param="logit_bias")
