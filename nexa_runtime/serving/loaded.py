"""A model that is loaded and answers: what every request gets a lease on.

Owns the end of its life. ``loading`` makes it, ``pool`` keeps it.
"""

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from nexa_runtime.chat.constraint import ConstraintCompiler
from nexa_runtime.chat.dialects.base import Dialect
from nexa_runtime.chat.pairs import PairTemplate
from nexa_runtime.chat.template import ChatTemplate
from nexa_runtime.engine.model_engine import ModelEngine
from nexa_runtime.engine.sequence import Tokens
from nexa_runtime.llama import Context, Model, SamplingParams
from nexa_runtime.telemetry import get_logger

_log = get_logger("serving")


class Kind(Enum):
    """What a model can be asked for."""

    CHAT = "chat"
    COMPLETION = "completion"
    EMBEDDING = "embedding"
    RERANK = "rerank"


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """``names``: all that it is served under, the id first.

    ``context``: None for a model that only embeds or ranks. ``max_sequence_tokens``: prompt and answer of one
    sequence. ``max_embedding_tokens``: one input to embed, or one pair to rank. ``sampling``: what holds
    where a client is silent. ``memory_bytes``: weights, the KV cells that it has, and buffers.
    ``public_prefixes``: what every tenant may share. ``tool_template``: for conversations with tools, where
    the file has one of their own. ``pair_template``: for a query and a document, likewise.
    ``adapters``: those that a request may ask for, and the scale of each where it names none.
    """

    names: tuple[str, ...]
    kinds: frozenset[Kind]
    created: int
    model: Model
    context: Context | None
    engine: ModelEngine
    template: ChatTemplate
    dialect: Dialect
    constraints: ConstraintCompiler
    sampling: SamplingParams
    slots: int
    max_sequence_tokens: int
    max_embedding_tokens: int
    memory_bytes: int
    public_prefixes: tuple[Tokens, ...] = ()
    tool_template: ChatTemplate | None = None
    pair_template: PairTemplate | None = None
    adapters: Mapping[str, float] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The name in answers to requests that name none."""
        return self.names[0]

    @property
    def num_cells(self) -> int:
        """KV cells over all sequences."""
        return 0 if self.context is None else self.context.num_cells

    def close(self) -> None:
        """Stop its part of the engine and give the memory back. Blocks for a step at most."""
        if not self.engine.stop():
            # Freeing memory under a thread that still computes would crash, so the process's end does it.
            _log.error("engine_did_not_stop", model=self.id)
            return
        if self.engine.embedding is not None:
            self.engine.embedding.close()
        if self.context is not None:
            self.context.close()
        self.model.close()
        _trim()


def _trim() -> None:
    """Let glibc give freed memory back to the system; other C libraries do so, or not, by themselves."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return
