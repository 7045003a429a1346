"""From conversations or prompts to sequences that run.

Owns what a request asks for and what its tenant may have. ``GenerationService`` lives on the event loop;
prompts are rendered and tokenized, and grammars compiled, in worker threads. It knows no wire format:
``server/routes`` and ``cli`` call it.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nexa_runtime.chat.constraint import Constraint
from nexa_runtime.chat.grammar import GrammarSource
from nexa_runtime.chat.messages import Conversation, Tool
from nexa_runtime.engine.generation_lane import GenerationRequest
from nexa_runtime.errors import InvalidRequestError
from nexa_runtime.llama import SamplingParams, prepare_dry
from nexa_runtime.lora import AdapterChoice, AdapterSet
from nexa_runtime.serving.adapters import adapters_for
from nexa_runtime.serving.answering import Answering, answer_chat, grammar_of, loosened, render_chat
from nexa_runtime.serving.call import Call
from nexa_runtime.serving.dispatcher import Dispatcher
from nexa_runtime.serving.generation import Generation, PromptChoices
from nexa_runtime.serving.loaded import Kind, LoadedModel
from nexa_runtime.serving.open_request import OpenRequest
from nexa_runtime.serving.pool import ModelLease
from nexa_runtime.serving.prompts import Prompt, check_tokens, prompt_text, read_prompt, too_long
from nexa_runtime.serving.tenants import max_sequence_tokens, namespace_of, share_of
from nexa_runtime.telemetry import get_logger
from nexa_runtime.tenancy.tenant import Limits, Tenant

_MAX_LOGGED_CHARS = 8192

_log = get_logger("serving")


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """What a client asked for; None: it did not say. ``max_tokens`` of each answer.

    ``sampling``: fields of ``SamplingParams`` that it named. ``num_choices`` answers to each prompt, the best
    of ``best_of``. ``grammar``: what an answer must look like. ``echo``: the prompt comes first. ``lora``:
    adapters, where it may be empty.
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
    lora: AdapterChoice | None = None

    @property
    def num_sequences(self) -> int:
        """Sequences that run for each prompt."""
        return max(self.num_choices, self.best_of or 0)


class GenerationService:
    """Opens generations, on the dispatcher's event loop."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    async def open_chat(
        self,
        tenant: Tenant,
        call: Call,
        conversation: Conversation,
        options: GenerationOptions,
    ) -> Generation:
        """Start the answers to a conversation.

        Raises ``RequestError``, ``TenantLimitError``, ``BoxBusyError``.
        """

        async def prepare(model: LoadedModel) -> list[Answering]:
            max_tokens = max_sequence_tokens(tenant, model)
            chat = await self._dispatcher.prepare(lambda: render_chat(model, conversation, max_tokens))
            if chat.tools:
                constraint = await self._compile_tools(tenant, model, conversation, chat.tools)
            else:
                constraint = await self._compile(tenant, model, options.grammar)
            return [answer_chat(model, conversation, chat, constraint)]

        request = self._dispatcher.admit(tenant, call, options.num_sequences, options.model)
        with request.settled_on_error():
            lease = await self._dispatcher.lease(request, options.model, Kind.CHAT)
            _log_prompt(tenant, [message.content or "" for message in conversation.messages])
            return await self._start(request, lease, prepare, options, conversation.param)

    async def open_completion(
        self,
        tenant: Tenant,
        call: Call,
        prompts: Sequence[Prompt],
        options: GenerationOptions,
    ) -> Generation:
        """Start the continuations of one or more prompts. As ``open_chat``.

        A text prompt is the client's own template: control tokens that it spells out are control tokens.
        """

        async def prepare(model: LoadedModel) -> list[Answering]:
            max_tokens = max_sequence_tokens(tenant, model)
            vocab = model.model.vocab
            read = await self._dispatcher.prepare(
                lambda: [read_prompt(vocab, one, options.suffix, max_tokens=max_tokens) for one in prompts]
            )
            constraint = await self._compile(tenant, model, options.grammar)
            start_mask = None if constraint is None else lambda _: constraint.start()
            echoes = [prompt_text(vocab, one) if options.echo else "" for one in prompts]
            return [Answering(one, start_mask, echo=echo) for one, echo in zip(read, echoes, strict=True)]

        num_sequences = len(prompts) * options.num_sequences
        request = self._dispatcher.admit(tenant, call, num_sequences, options.model)
        with request.settled_on_error():
            lease = await self._dispatcher.lease(request, options.model, Kind.COMPLETION)
            _log_prompt(tenant, [prompt for prompt in prompts if isinstance(prompt, str)])
            return await self._start(request, lease, prepare, options, param="prompt")

    async def _compile(
        self, tenant: Tenant, model: LoadedModel, source: GrammarSource | None
    ) -> Constraint | None:
        if source is None:
            return None
        if (known := model.constraints.cached(source, tenant.id)) is not None:
            return known
        return await self._dispatcher.compile(tenant, lambda: model.constraints.compile(source, tenant.id))

    async def _compile_tools(
        self, tenant: Tenant, model: LoadedModel, conversation: Conversation, tools: tuple[Tool, ...]
    ) -> Constraint | None:
        """The form of an answer that may call ``tools``; of those that must not be held to their schemas to
        the letter, with looser ones if need be.
        """
        try:
            return await self._compile(tenant, model, grammar_of(model.dialect, conversation, tools))
        except InvalidRequestError:
            loose = await self._dispatcher.compile(
                tenant, lambda: loosened(model.constraints, conversation, tools, tenant.id)
            )
            if loose == tools:
                raise
            names = [tool.name for tool, new in zip(tools, loose, strict=True) if new is not tool]
            _log.info("tool_schemas_loosened", tenant=tenant.id, tools=names)
            return await self._compile(tenant, model, grammar_of(model.dialect, conversation, loose))

    async def _start(
        self,
        request: OpenRequest,
        lease: ModelLease,
        prepare: Callable[[LoadedModel], Awaitable[list[Answering]]],
        options: GenerationOptions,
        param: str,
    ) -> Generation:
        model, tenant = lease.model, request.tenant
        try:
            adapters = adapters_for(tenant, model, options.lora)
            check_tokens(model.model.vocab, options.sampling.get("logit_bias", ()), options.stop_token_ids)
            sampling = _sampling(options, model, tenant.limits)
            if sampling.has_dry:
                asked_for = sampling
                sampling = await self._dispatcher.prepare(lambda: prepare_dry(asked_for, model.model.vocab))
            answerings = await prepare(model)
            groups = [
                self._requests(tenant, model, one, options, sampling, adapters, param) for one in answerings
            ]
            request.reserve(
                sum(len(one[0].prompt) + sum(each.max_new_tokens for each in one) for one in groups)
            )
            shortest = min(one.max_new_tokens for group in groups for one in group)
            asked = options.max_tokens
            generation = Generation(
                self._dispatcher,
                lease=lease,
                request=request,
                prompts=[
                    PromptChoices(
                        len(one.prompt),
                        tuple(None if one.make_parser is None else one.make_parser() for _ in group),
                        one.echo,
                        options.stops if one.may_call and not one.ignores_stops else (),
                    )
                    for one, group in zip(answerings, groups, strict=True)
                ],
                num_kept=options.num_choices,
                shows_logprobs=options.sampling.get("num_logprobs") is not None,
                clamped_max_tokens=shortest if asked is not None and shortest < asked else None,
                adapters=adapters,
            )
        except BaseException:
            lease.release()
            raise
        try:
            generation.start([one for group in groups for one in group])
        except BaseException:
            generation.close()
            raise
        return generation

    def _requests(
        self,
        tenant: Tenant,
        model: LoadedModel,
        one: Answering,
        options: GenerationOptions,
        sampling: SamplingParams,
        adapters: AdapterSet,
        param: str,
    ) -> list[GenerationRequest]:
        """The sequences of one prompt, which the engine computes once for all of them."""
        limits = tenant.limits
        max_tokens = max_sequence_tokens(tenant, model)
        room = max_tokens - len(one.prompt)
        if room < 1:
            raise too_long(len(one.prompt), max_tokens, param)
        room = min(room, limits.max_output_tokens or room)
        default = self._dispatcher.settings.default_max_tokens
        max_new_tokens = min(options.max_tokens or default or room, room)
        return [
            GenerationRequest(
                prompt=one.prompt,
                max_new_tokens=max_new_tokens,
                sampling=_with_seed(sampling, number),
                share=share_of(tenant, model),
                cache_namespace=namespace_of(tenant, model),
                adapters=adapters,
                mask=None if one.start_mask is None else one.start_mask(max_new_tokens),
                stops=() if one.may_call else options.stops,
                stop_tokens=frozenset(() if one.ignores_stops else options.stop_token_ids),
                markers=one.markers,
                ignore_eos=options.ignore_eos,
                queue_timeout_s=limits.queue_timeout_s,
            )
            for number in range(options.num_sequences)
        ]


def _sampling(options: GenerationOptions, model: LoadedModel, limits: Limits) -> SamplingParams:
    """The model's defaults, the tenant's, and what the client said."""
    end_tokens = model.model.vocab.eog_tokens
    said = dict(options.sampling)
    if limits.temperature is not None:
        said.setdefault("temperature", limits.temperature)
    if options.ignore_eos:
        said["banned"] = end_tokens
    if options.num_sequences > options.num_choices:
        said.setdefault("num_logprobs", 0)
    if said.get("penalty_last_n") == -1:
        said["penalty_last_n"] = model.model.context_tokens
    return replace(model.sampling, end_tokens=end_tokens | frozenset(options.stop_token_ids), **said)


def _with_seed(sampling: SamplingParams, number: int) -> SamplingParams:
    """Choices with the same seed would be the same."""
    return sampling if sampling.seed is None or not number else replace(sampling, seed=sampling.seed + number)


def _log_prompt(tenant: Tenant, texts: Sequence[str]) -> None:
    """Only where the tenant's limits say so: prompts are never logged otherwise."""
    if tenant.limits.logs_prompts:
        _log.info("prompt", tenant=tenant.id, texts=[text[:_MAX_LOGGED_CHARS] for text in texts])
