"""Inputs that are computed once, from admission to what the engine makes of them: vectors, or scores.

Owns the record, the lease and the wait for the engine of one such request. What its inputs are, ``embedding``
and ``reranking`` say, which call it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nexa_runtime.engine.embedder import Embedded, EmbeddingRequest
from nexa_runtime.engine.model_engine import News
from nexa_runtime.errors import RequestTimeoutError
from nexa_runtime.serving.call import Call
from nexa_runtime.serving.dispatcher import Dispatcher
from nexa_runtime.serving.loaded import Kind, LoadedModel
from nexa_runtime.serving.prompts import Tokens
from nexa_runtime.serving.tenants import share_of
from nexa_runtime.tenancy.tenant import Tenant

Vectors = npt.NDArray[np.float32]

Read = Callable[[LoadedModel, int], Awaitable[Sequence[Tokens]]]
"""The inputs of a request for a model, each of so many tokens at most; it raises for a longer one."""


@dataclass(frozen=True, slots=True)
class Computed:
    """``vectors``: float32 of shape (inputs, size), a row of an input's scores where the model ranks."""

    model_name: str
    vectors: Vectors
    prompt_tokens: int


async def compute(
    dispatcher: Dispatcher,
    tenant: Tenant,
    call: Call,
    kind: Kind,
    read: Read,
    *,
    model_name: str | None,
) -> Computed:
    """What the engine makes of the inputs that ``read`` gives for the model.

    Raises what ``read`` does, ``RequestError``, ``TenantLimitError``, ``BoxBusyError``,
    ``RequestTimeoutError``. Cancelling it ends the request in the engine.
    """
    request = dispatcher.admit(tenant, call, 0, model_name)
    with request.settled() as used, await dispatcher.lease(request, model_name, kind) as lease:
        model = lease.model
        max_tokens = model.max_embedding_tokens
        inputs = await read(model, min(max_tokens, tenant.limits.max_context_tokens or max_tokens))
        num_tokens = sum(map(len, inputs))
        request.reserve(num_tokens)
        vectors = await _run(dispatcher, model, EmbeddingRequest(tuple(inputs), share_of(tenant, model)))
        used.prompt_tokens = num_tokens
        return Computed(lease.name, vectors, num_tokens)


async def _run(dispatcher: Dispatcher, model: LoadedModel, request: EmbeddingRequest) -> Vectors:
    key = dispatcher.new_key()
    done: asyncio.Future[Embedded] = asyncio.get_running_loop().create_future()

    def take(news: News) -> None:
        assert isinstance(news, Embedded)
        if not done.done():
            done.set_result(news)

    dispatcher.connect(key, take)
    timeout_s = dispatcher.settings.request_timeout_s
    try:
        model.engine.submit(key, request)
        result = await asyncio.wait_for(done, timeout_s)
    except TimeoutError:
        raise RequestTimeoutError(timeout_s) from None
    finally:
        model.engine.abort(key)
        dispatcher.disconnect(key)
    if result.error is not None:
        raise result.error
    assert result.vectors is not None
    return result.vectors
