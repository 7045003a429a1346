"""A llama.cpp context that turns texts into vectors, or into a reranker's scores.

Owns a context of its own with pooling on: many inputs per call, each under a sequence id of its own, all of
them in one micro-batch. It never generates. One thread, the engine's, may call it. Source: ``llama_decode``
(which encodes where a model has no memory), ``llama_get_embeddings_seq``.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from nexa_runtime.errors import DecodeError, LlamaGuardError, ModelFileError, ShuttingDownError
from nexa_runtime.llama.context import Batch, DecodeStatus, add_abort_flag
from nexa_runtime.llama.lib import C, recent_errors
from nexa_runtime.llama.model import Model
from nexa_runtime.llama.vocab import Tokens

Vectors = npt.NDArray[np.float32]

MAX_INPUTS = 64
"""Inputs of one call."""

_MAX_DECODER_TOKENS = 2048
"""Longest input of a decoder: its buffers grow with tokens x vocabulary."""

_CHECK_INPUTS, _CHECK_TOKENS = 8, 3
_RELATIVE_TOLERANCE, _TOLERANCE_OF_MAX = 0.2, 0.02
"""How far scores may be apart that were computed together and alone: kernels round differently. The second is
a part of the largest score.
"""


def max_input_tokens(model: Model) -> int:
    """Longest input that a model embeds or ranks."""
    return model.context_tokens if model.is_encoder else min(model.context_tokens, _MAX_DECODER_TOKENS)


def check_scores(model: Model) -> None:
    """Raise ``ModelFileError`` for a reranker without a head that scores. Blocks for two small steps.

    llama.cpp takes such a file, and then reads the scores of every input of a call but the first from the
    wrong place (``extract_embeddings`` counts ``n_cls_out`` numbers an input, whatever there is).
    """
    context = EmbeddingContext(model, max_tokens=_CHECK_INPUTS * _CHECK_TOKENS, num_threads=1)
    try:
        length = min(_CHECK_TOKENS, model.context_tokens)
        inputs = [
            np.arange(start, start + length, dtype=np.int32) % model.vocab.size
            for start in range(_CHECK_INPUTS)
        ]
        together = context.embed(inputs)
        alone = np.concatenate([context.embed([one]) for one in inputs])
    finally:
        context.close()
    tolerance = _TOLERANCE_OF_MAX * float(np.abs(alone).max())
    if not np.allclose(together, alone, rtol=_RELATIVE_TOLERANCE, atol=tolerance):
        raise ModelFileError(model.path, "it pools to a score and has no head that makes one")


class EmbeddingContext:
    """``max_tokens``: tokens of one call, over all its inputs; so also of the longest input."""

    def __init__(self, model: Model, *, max_tokens: int, num_threads: int) -> None:
        self.max_tokens = max_tokens
        self._max_inputs = min(MAX_INPUTS, max_tokens)
        self._is_reranker = model.is_reranker
        self.size = model.num_scores if self._is_reranker else model.embedding_size
        """Length of a vector, or scores of an input."""
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
        """Vectors of length 1, float32 of shape (inputs, size); a reranker's scores are as it gives them.
        Blocks, off the GIL.

        Raises ``LlamaGuardError`` for what does not fit one call, ``DecodeError`` when llama.cpp fails,
        ``ShuttingDownError`` after ``request_abort``.
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
            if code == DecodeStatus.ABORTED.value:
                raise ShuttingDownError
            raise DecodeError(f"llama.cpp returned {code} for an embedding")
        vectors = np.empty((len(inputs), self.size), dtype=np.float32)
        for sequence_id in range(len(inputs)):
            pointer = C.llama_get_embeddings_seq(self.pointer, sequence_id)
            if not pointer:
                raise DecodeError("llama.cpp gave no embedding")
            vectors[sequence_id] = np.ctypeslib.as_array(pointer, shape=(self.size,))
        if not np.isfinite(vectors).all():
            raise DecodeError("an embedding is not finite")
        return vectors if self._is_reranker else normalised(vectors)

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
