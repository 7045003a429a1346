"""One request to rank documents by a query: from their texts to scores, best first.

Owns how a query and a document become one input, the check that it fits, and what its score means. It knows
no wire format: ``server/routes`` calls it.

A score is the first of those that the model gives. Where the model ends in a softmax it is a probability and
stays as it is; any other number goes through a sigmoid, as the rerankers in use were trained and as their
makers' own libraries do it, so that clients find 0 to 1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from nexa_runtime.errors import InputTooLongError, InvalidRequestError
from nexa_runtime.llama import Vocab
from nexa_runtime.serving.call import Call
from nexa_runtime.serving.dispatcher import Dispatcher
from nexa_runtime.serving.inputs import compute
from nexa_runtime.serving.loaded import Kind, LoadedModel
from nexa_runtime.serving.prompts import Tokens, least_tokens, with_bos
from nexa_runtime.tenancy.tenant import Tenant

_SLICE_DOCUMENTS = 64
"""So many are tokenized in a row; then whoever else waits for a thread has a turn."""

MAX_TOKENS = 2**21
"""Of all pairs of a request: each has the whole query, so that a small body could fill much memory."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """A document by its place in the request, and how relevant it is."""

    index: int
    score: float


@dataclass(frozen=True, slots=True)
class Ranking:
    """``ranked``: the best first."""

    model_name: str
    ranked: tuple[Ranked, ...]
    prompt_tokens: int


class RerankService:
    """Ranks, on the dispatcher's event loop."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    async def rerank(
        self,
        tenant: Tenant,
        call: Call,
        query: str,
        documents: Sequence[str],
        *,
        model_name: str | None,
        top_n: int | None = None,
        is_raw: bool = False,
    ) -> Ranking:
        """The ``top_n`` best of ``documents``, all of them for None. ``is_raw``: scores as the model gives
        them.

        Raises ``RequestError``, ``TenantLimitError``, ``BoxBusyError``, ``RequestTimeoutError``. Cancelling
        it ends the request in the engine.
        """
        has_probabilities = False

        async def read(model: LoadedModel, max_tokens: int) -> list[Tokens]:
            nonlocal has_probabilities
            has_probabilities = model.model.has_probabilities
            pairs = _Pairs(model, query, max_tokens)
            inputs: list[Tokens] = []
            for first in range(0, len(documents), _SLICE_DOCUMENTS):
                part = partial(pairs.tokens, first, documents[first : first + _SLICE_DOCUMENTS])
                inputs += await self._dispatcher.prepare_in_turn(tenant, part)
                if sum(map(len, inputs)) > MAX_TOKENS:
                    message = f"documents: each with the query, they have more than {MAX_TOKENS} tokens."
                    raise InvalidRequestError(message, param="documents")
            return inputs

        computed = await compute(self._dispatcher, tenant, call, Kind.RERANK, read, model_name=model_name)
        raw = computed.vectors[:, 0]
        order = np.argsort(-raw, kind="stable")[:top_n]
        scale = float if is_raw or has_probabilities else _sigmoid
        ranked = tuple(Ranked(int(index), scale(float(raw[index]))) for index in order)
        return Ranking(computed.model_name, ranked, computed.prompt_tokens)


class _Pairs:
    """A query with one document after the other, as inputs of one model. Used in worker threads."""

    def __init__(self, model: LoadedModel, query: str, max_tokens: int) -> None:
        self._vocab = model.model.vocab
        self._template = model.pair_template
        self._query = query
        self._max_tokens = max_tokens

    def tokens(self, first: int, documents: Sequence[str]) -> list[Tokens]:
        """The inputs for documents of which the first has that place in the request.

        Raises ``InvalidRequestError``.
        """
        return [self._checked(first + offset, document) for offset, document in enumerate(documents)]

    def _checked(self, index: int, document: str) -> Tokens:
        param, max_tokens = f"documents[{index}]", self._max_tokens
        at_least = self._least_query_tokens + least_tokens(self._vocab, document)
        if at_least > max_tokens:
            raise InputTooLongError(
                param=param, num_tokens=at_least, max_tokens=max_tokens, is_pair=True, is_lower_bound=True
            )
        tokens = self._pair(document)
        if len(tokens) > max_tokens:
            raise InputTooLongError(param=param, num_tokens=len(tokens), max_tokens=max_tokens, is_pair=True)
        if not len(tokens):
            raise InvalidRequestError(f"{param} with the query has no tokens.", param=param)
        return tokens

    def _pair(self, document: str) -> Tokens:
        """By the model's own template; else as encoders are trained, with what parts the two texts."""
        vocab = self._vocab
        if self._template is not None:
            prompt = self._template.render(self._query, document)
            return with_bos(vocab, vocab.tokenize_guarded(prompt.text, prompt.guard))
        first, between, last = self._marks
        tokens = vocab.tokenize(document, parse_special=False)
        return np.concatenate([first, self._query_tokens, between, tokens, last])

    @cached_property
    def _least_query_tokens(self) -> int:
        return least_tokens(self._vocab, self._query)

    @cached_property
    def _query_tokens(self) -> Tokens:
        return self._vocab.tokenize(self._query, parse_special=False)

    @cached_property
    def _marks(self) -> tuple[Tokens, Tokens, Tokens]:
        return pair_marks(self._vocab)


def pair_marks(vocab: Vocab) -> tuple[Tokens, Tokens, Tokens]:
    """What stands before a query, between it and a document, and behind that, by the vocabulary's flags.

    As llama-server does it (``format_prompt_rerank``), but for older files of bert, whose flags name a
    separator and no end: the document has one there too, which bert was trained with.
    """
    end = vocab.eos_token if vocab.eos_token >= 0 else vocab.sep_token
    first = [vocab.bos_token] if vocab.adds_bos else []
    between = [end] * vocab.adds_eos + [vocab.sep_token] * vocab.adds_sep
    last = between[:1]
    marks = (np.array([one for one in part if one >= 0], dtype=np.int32) for part in (first, between, last))
    before, inside, behind = marks
    return before, inside, behind


def _sigmoid(value: float) -> float:
    if value >= 0:
        return 1 / (1 + math.exp(-value))
    power = math.exp(value)
    return power / (1 + power)
