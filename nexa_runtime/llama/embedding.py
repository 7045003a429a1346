"""A llama.cpp context that turns texts into vectors.

Owns a context of its own with pooling on: many inputs per call, each under a sequence id of its own, all of
them in one micro-batch. It never generates. One thread, the engine's, may call it. Source: ``llama_decode``
(which encodes where a model has no memory), ``llama_get_embeddings_seq``.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from nexa_runtime.errors import DecodeError, LlamaGuardError, ModelFileError
from nexa_runtime.llama.context import Batch, add_abort_flag
from nexa_runtime.llama.lib import C, recent_errors
from nexa_runtime.llama.model import Model
from nexa_runtime.llama.vocab import Tokens

Vectors = npt.NDArray[np.float32]

MAX_INPUTS = 64
"""Inputs of one call."""


class EmbeddingContext:
    """``max_tokens``: tokens of one call, over all its inputs; so also of the longest input."""

    def __init__(self, model: Model, *, max_tokens: int, num_threads: int) -> None:
        self.max_tokens = max_tokens
        self._max_inputs = min(MAX_INPUTS, max_tokens)
        self.size: int = C.llama_model_n_embd_out(model.pointer)
        """Length of a vector."""
        raw = C.llama_context_default_params()
        raw.n_ctx = raw.n_batch = raw.n_ubatch = max_tokens
        raw.n_seq_max = self._max_inputs  # with fewer tokens than these llama.cpp aborts
        raw.n_threads = raw.n_threads_batch = num_threads
        raw.embeddings = True
        raw.kv_unified = True
        raw.no_perf = True
        raw.pooling_type = model.pooling_type
        self._abort_flag = add_abort_flag(raw)
        recent_errors(clear=True)
        self.pointer = C.llama_init_from_model(model.pointer, raw)
        if not self.pointer:
            reasons = recent_errors(clear=True)
            raise ModelFileError(model.path, reasons[-1] if reasons else "no context could be made")
        model.apply_adapters(self.pointer)
        self._memory = C.llama_get_memory(self.pointer)
        self._batch = Batch(max_tokens, max_tokens, self._max_inputs, model.vocab.size)

    def embed(self, inputs: Sequence[Tokens]) -> Vectors:
        """Vectors of length 1, float32 of shape (inputs, size). Blocks, off the GIL.

        Raises ``LlamaGuardError`` for what does not fit one call, ``DecodeError`` when llama.cpp fails.
        """
        if not 0 < len(inputs) <= self._max_inputs:
            raise LlamaGuardError(f"{len(inputs)} inputs in a call of at most {self._max_inputs}")
        batch = self._batch
        batch.clear()
        for sequence_id, tokens in enumerate(inputs):
            batch.add(sequence_id, tokens, 0, wants_logits=False)
        batch.mark_all()
        if self._memory:
            C.llama_memory_clear(self._memory, False)
        if code := C.llama_decode(self.pointer, batch.raw):
            raise DecodeError(f"llama.cpp returned {code} for an embedding")
        vectors = np.empty((len(inputs), self.size), dtype=np.float32)
        for sequence_id in range(len(inputs)):
            pointer = C.llama_get_embeddings_seq(self.pointer, sequence_id)
            if not pointer:
                raise DecodeError("llama.cpp gave no embedding")
            vectors[sequence_id] = np.ctypeslib.as_array(pointer, shape=(self.size,))
        if not np.isfinite(vectors).all():
            raise DecodeError("an embedding is not finite")
        return normalised(vectors)

    def request_abort(self) -> None:
        """Make a running ``embed`` fail soon (CPU only). Any thread; for shutdown."""
        self._abort_flag[0] = b"\x01"

    def close(self) -> None:
        """Free the context. A second call does nothing."""
        if self.pointer:
            C.llama_free(self.pointer)
            self.pointer = None


def normalised(vectors: Vectors) -> Vectors:
    """Rows scaled to length 1; a row of zeros stays as it is."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)
