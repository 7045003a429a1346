"""From messages or prompts to sequences that run.

Owns what a request asks for and what its tenant may have. ``GenerationService`` lives on the event loop;
prompts are rendered and tokenized in worker threads. It knows no wire format: ``server/routes`` and ``cli``
call it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from nexa_runtime.chat.grammar import GrammarSource
from nexa_runtime.chat.messages import Message
from nexa_runtime.engine.generation_lane import GenerationRequest
from nexa_runtime.errors import NexaError
from nexa_runtime.llama import SamplingParams
from nexa_runtime.serving.dispatcher import Dispatcher
from nexa_runtime.serving.generation import Generation
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
    """What a client asked for; None: it did not say. ``max_tokens`` of each answer.

    ``sampling``: fields of ``SamplingParams`` that it named. ``num_choices`` answers to each prompt, the best
    of ``best_of``. ``grammar``: what an answer must look like. ``echo``: the prompt comes first.
    """

    model: str | None = None
    max_tokens: int | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    stops: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    num_choices: int = 1
    best_of: int | None = None
    grammar: GrammarSource | None = None
    echo: bool = False
    suffix: str | None = None


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
