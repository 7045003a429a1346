"""One request to embed: from its inputs to their vectors.

Owns the checks that an input fits, and the wait for the engine. It knows no wire format: ``server/routes``
calls it.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nexa_runtime.engine.embedder import Embedded, EmbeddingRequest
from nexa_runtime.engine.model_engine import News
from nexa_runtime.errors import InputTooLongError, InvalidRequestError, RequestTimeoutError
from nexa_runtime.llama import Vocab, normalised
from nexa_runtime.serving.dispatcher import Dispatcher
from nexa_runtime.serving.loaded import Kind, LoadedModel
from nexa_runtime.serving.prompts import Prompt, Tokens, check_size, prompt_tokens
from nexa_runtime.serving.tenants import share_of
from nexa_runtime.telemetry import get_logger
from nexa_runtime.tenancy.tenant import Tenant

_log = get_logger("serving")


@dataclass(frozen=True, slots=True)
class Embeddings:
    """``vectors``: of length 1, float32 of shape (inputs, dimensions)."""

    model_name: str
    vectors: npt.NDArray[np.float32]
    prompt_tokens: int


class EmbeddingService:
    """Embeds, on the dispatcher's event loop."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    async def embed(
        self,
        tenant: Tenant,
        inputs: Sequence[Prompt],
        *,
        model_name: str | None,
        dimensions: int | None,
        is_patient: bool = True,
    ) -> Embeddings:
        """The vectors of ``inputs``, cut to ``dimensions`` and scaled to length 1 again.

        Raises ``RequestError``, ``TenantLimitError``, ``BoxBusyError``, ``RequestTimeoutError``. Cancelling
        it ends the request in the engine.
        """
        ticket = self._dispatcher.admit(tenant, 1)
        num_used = 0
        lease = None
        try:
            lease = await self._dispatcher.lease(tenant, model_name, Kind.EMBEDDING, is_patient=is_patient)
            model = lease.model
            size = model.model.embedding_size
            if dimensions is not None and dimensions > size:
                raise InvalidRequestError(f"dimensions: this model has {size}.", param="dimensions")
            max_tokens = min(
                model.max_embedding_tokens, tenant.limits.max_context_tokens or model.max_embedding_tokens
            )
            tokens = await self._dispatcher.prepare(lambda: _tokenize(model.model.vocab, inputs, max_tokens))
            num_tokens = sum(map(len, tokens))
            ticket.reserve(num_tokens)
            vectors = await self._run(model, EmbeddingRequest(tuple(tokens), share_of(tenant, model)))
            num_used = num_tokens
        finally:
            if lease is not None:
                lease.release()
            ticket.settle(prompt_tokens=num_used)
        name = lease.name
        _log.info("embedding", tenant=tenant.id, model=name, inputs=len(inputs), prompt_tokens=num_tokens)
        if dimensions is not None:
            vectors = normalised(vectors[:, :dimensions])
        return Embeddings(name, vectors, num_tokens)

    async def _run(self, model: LoadedModel, request: EmbeddingRequest) -> npt.NDArray[np.float32]:
        key = self._dispatcher.new_key()
        done: asyncio.Future[Embedded] = asyncio.get_running_loop().create_future()

        def take(news: News) -> None:
            assert isinstance(news, Embedded)
            if not done.done():
                done.set_result(news)

        self._dispatcher.connect(key, take)
        timeout_s = self._dispatcher.settings.request_timeout_s
        try:
            model.engine.submit(key, request)
            result = await asyncio.wait_for(done, timeout_s)
        except TimeoutError:
            raise RequestTimeoutError(timeout_s) from None
        finally:
            model.engine.abort(key)
            self._dispatcher.disconnect(key)
        if result.error is not None:
            raise result.error
        assert result.vectors is not None
        return result.vectors


def _tokenize(vocab: Vocab, inputs: Sequence[Prompt], max_tokens: int) -> list[Tokens]:
    tokens = []
    for index, one in enumerate(inputs):
        param = f"input[{index}]"
        tokens.append(_input_tokens(vocab, one, max_tokens, param=param))
        if len(tokens[-1]) > max_tokens:
            raise InputTooLongError(param=param, num_tokens=len(tokens[-1]), max_tokens=max_tokens)
    return tokens


def _input_tokens(vocab: Vocab, one: Prompt, max_tokens: int, *, param: str) -> Tokens:
    """A text is data here: what looks like a control token stays text."""
    if not isinstance(one, str):
        return prompt_tokens(vocab, one, param=param)
    check_size(vocab, one, max_tokens=max_tokens + 1, param=param)
    tokens = vocab.tokenize(one, parse_special=False, add_special=True)
    if not len(tokens):
        raise InvalidRequestError(f"{param} has no tokens.", param=param)
    return tokens
