"""One request to embed: from its inputs to their vectors.

Owns the checks that an input fits, and the cut to fewer dimensions. It knows no wire format:
``server/routes`` calls it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nexa_runtime.errors import InputTooLongError, InvalidRequestError
from nexa_runtime.llama import Vocab, normalised
from nexa_runtime.serving.call import Call
from nexa_runtime.serving.dispatcher import Dispatcher
from nexa_runtime.serving.inputs import compute
from nexa_runtime.serving.loaded import Kind, LoadedModel
from nexa_runtime.serving.prompts import Prompt, Tokens, check_size, prompt_tokens
from nexa_runtime.tenancy.tenant import Tenant


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
        call: Call,
        inputs: Sequence[Prompt],
        *,
        model_name: str | None,
        dimensions: int | None,
    ) -> Embeddings:
        """The vectors of ``inputs``, cut to ``dimensions`` and scaled to length 1 again.

        Raises ``RequestError``, ``TenantLimitError``, ``BoxBusyError``, ``RequestTimeoutError``. Cancelling
        it ends the request in the engine.
        """

        async def read(model: LoadedModel, max_tokens: int) -> list[Tokens]:
            size = model.model.embedding_size
            if dimensions is not None and dimensions > size:
                raise InvalidRequestError(f"dimensions: this model has {size}.", param="dimensions")
            return await self._dispatcher.prepare(lambda: _tokenize(model.model.vocab, inputs, max_tokens))

        computed = await compute(self._dispatcher, tenant, call, Kind.EMBEDDING, read, model_name=model_name)
        vectors = computed.vectors
        if dimensions is not None:
            vectors = normalised(vectors[:, :dimensions])
        return Embeddings(computed.model_name, vectors, computed.prompt_tokens)


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
