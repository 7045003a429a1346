"""The models that are loaded, by the names they are served under.

One model for now. It never loads and never sees requests; ``generation`` and ``embedding`` resolve names
here, ``server`` and ``cli`` stop it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from nexa_runtime.chat.template import ChatTemplate
from nexa_runtime.engine.engine import Engine
from nexa_runtime.engine.sequence import Tokens
from nexa_runtime.errors import ModelKindError, ModelNotFoundError
from nexa_runtime.llama import Context, Model, SamplingParams
from nexa_runtime.telemetry import get_logger

_log = get_logger("serving.pool")


class Kind(Enum):
    """What a model can be asked for."""

    CHAT = "chat"
    COMPLETION = "completion"
    EMBEDDING = "embedding"


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that answers. ``names``: all that it is served under, the id first.

    ``context``: None for a model that only embeds. ``max_sequence_tokens``: prompt and answer of one
    sequence. ``max_embedding_tokens``: one input to embed. ``sampling``: what holds where a client is silent.
    ``public_prefixes``: what every tenant may share.
    """

    names: tuple[str, ...]
    kinds: frozenset[Kind]
    created: int
    model: Model
    context: Context | None
    engine: Engine
    template: ChatTemplate
    sampling: SamplingParams
    slots: int
    max_sequence_tokens: int
    max_embedding_tokens: int
    public_prefixes: tuple[Tokens, ...] = ()

    @property
    def id(self) -> str:
        """The name in answers to requests that name none."""
        return self.names[0]

    @property
    def num_cells(self) -> int:
        """KV cells over all sequences."""
        return 0 if self.context is None else self.context.num_cells

    def close(self) -> None:
        """Stop the engine and free the memory. Blocks for a step at most."""
        if not self.engine.stop():
            # Freeing memory under a thread that still computes would crash, so the process's end does it.
            _log.error("engine_did_not_stop", model=self.id)
            return
        if self.engine.embedding is not None:
            self.engine.embedding.close()
        if self.context is not None:
            self.context.close()
        self.model.close()


class ModelPool:
    """Resolves names to loaded models."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = model

    @property
    def default(self) -> LoadedModel:
        """The model of a request that names none."""
        return self._model

    def models(self) -> Sequence[LoadedModel]:
        """All that are loaded."""
        return [self._model]

    def find(self, name: str) -> LoadedModel:
        """The model of that name. Raises ``ModelNotFoundError``."""
        if name in self._model.names:
            return self._model
        raise ModelNotFoundError(name, self._model.names)

    def resolve(self, name: str | None, kind: Kind) -> LoadedModel:
        """The model of that name, the default if there is none; one that can do ``kind``.

        Raises ``ModelNotFoundError`` and ``ModelKindError``.
        """
        model = self.find(name) if name else self._model
        if kind not in model.kinds:
            raise ModelKindError(name or model.id, kind.value)
        return model

    def stop(self) -> None:
        """Stop every engine; their requests end with ``ShuttingDownError``."""
        self._model.engine.stop()

    def close(self) -> None:
        """Stop every engine and free the memory."""
        self._model.close()
