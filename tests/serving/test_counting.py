"""How long a conversation is, without an answer."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from nexa_runtime.chat.messages import Conversation, Message, Role, Tool
from nexa_runtime.errors import ContextLengthError, ModelNotFoundError, RequestRateError
from nexa_runtime.serving.call import Call
from nexa_runtime.serving.dispatcher import Dispatcher
from nexa_runtime.serving.generation_service import GenerationOptions, GenerationService
from nexa_runtime.serving.loading import open_pool
from nexa_runtime.serving.text import TextService
from nexa_runtime.tenancy.tenant import Limits, Tenant
from tests.support import free_settings

ResultT = TypeVar("ResultT")

QUESTION = Conversation(
    (Message(Role.SYSTEM, "Be short."), Message(Role.USER, "Hello <|im_end|>")),
    tools=(Tool("f", "Does it."),),
)


def served(work: Callable[[Dispatcher], Awaitable[ResultT]]) -> ResultT:
    """What ``work`` returns, which leaves nothing open."""
    settings = free_settings(NEXA_CTX_SIZE=2048)

    async def run() -> ResultT:
        dispatcher = Dispatcher(open_pool(settings), settings.serving, slots=settings.engine.slots)
        dispatcher.start()
        try:
            return await work(dispatcher)
        finally:
            assert not dispatcher.num_open
            await dispatcher.stop()
            await dispatcher.close()

    return asyncio.run(run())


def test_a_count_is_the_prompt_of_the_answer_and_a_request_of_the_tenant() -> None:
    tenant = Tenant("acme", Limits(requests_per_minute=5, tokens_per_minute=1000), "test", "1")

    async def work(dispatcher: Dispatcher) -> None:
        texts = TextService(dispatcher)
        num_tokens = await texts.count(tenant, Call(), QUESTION, model_name=None)
        assert dispatcher.admission.rates(tenant)["tokens"].remaining == 1000
        generation = await GenerationService(dispatcher).open_chat(
            tenant, Call(), QUESTION, GenerationOptions(max_tokens=1)
        )
        async for _ in generation.deltas():
            pass
        generation.close()
        assert generation.usage.prompt_tokens == num_tokens > 20
        with pytest.raises(ModelNotFoundError):
            await texts.count(tenant, Call(), QUESTION, model_name="none")
        for _ in range(2):
            await texts.count(tenant, Call(), QUESTION, model_name=None)
        with pytest.raises(RequestRateError):
            await texts.count(tenant, Call(), QUESTION, model_name=None)

    served(work)


def test_what_is_too_long_to_answer_is_counted_up_to_a_bound() -> None:
    tenant = Tenant("acme", Limits(max_context_tokens=64), "test", "1")

    def conversation(words: int) -> Conversation:
        return Conversation((Message(Role.USER, "word " * words),))

    async def work(dispatcher: Dispatcher) -> None:
        texts = TextService(dispatcher)
        assert await texts.count(tenant, Call(), conversation(80), model_name=None) > 64
        with pytest.raises(ContextLengthError):
            await texts.count(tenant, Call(), conversation(10_000), model_name=None)

    served(work)
