"""A llama.cpp context: batches in numpy, one decode, its logits, and the KV cells of each sequence id.

Owns the ``llama_context`` pointer and the batch buffers. What can abort and is not needed (partial copies
between streams, C grammars) is not wrapped at all. Every argument that would make llama.cpp abort the
process is refused in front of the call (``LlamaGuardError``). It never decides anything: ``engine/runner``
tells it what to compute. One thread, the engine's, may call it. Source: ``llama_decode``,
``llama_get_logits``, ``llama_memory_seq_*``.
"""

import ctypes
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

from nexa_runtime.errors import LlamaGuardError, ModelFileError
from nexa_runtime.llama.lib import C, recent_errors
from nexa_runtime.llama.model import Model
from nexa_runtime.llama.vocab import Tokens
from nexa_runtime.lora import NO_ADAPTERS, AdapterSet

MAX_SEQUENCE_IDS = 256
"""llama.cpp's ``LLAMA_MAX_SEQ``."""

ATTENTION_TILE_ROWS = 64
"""ggml's ``GGML_FA_TILE_Q``: from so many rows on a processor computes attention in tiles."""

KV_TYPES = {
    "f32": C.GGML_TYPE_F32,
    "f16": C.GGML_TYPE_F16,
    "bf16": 30,  # the binding lacks its name
    "q8_0": C.GGML_TYPE_Q8_0,
    "q5_1": C.GGML_TYPE_Q5_1,
    "q5_0": C.GGML_TYPE_Q5_0,
    "q4_1": C.GGML_TYPE_Q4_1,
    "q4_0": C.GGML_TYPE_Q4_0,
    "iq4_nl": C.GGML_TYPE_IQ4_NL,
}
"""ggml's names of types that keys and values may be kept in."""

_GGML = C._lib
_GGML.ggml_type_size.restype = ctypes.c_size_t
_GGML.ggml_blck_size.restype = ctypes.c_int64

Logits = npt.NDArray[np.float32]


class DecodeStatus(Enum):
    """What ``llama_decode`` returned."""

    OK = 0
    NO_KV_SLOT = 1
    ABORTED = 2
    INVALID_BATCH = -1
    ALLOCATION_FAILED = -2
    COMPUTE_FAILED = -3


@dataclass(frozen=True, slots=True)
class ContextParams:
    """Sizes of a context. ``num_cells`` in tokens over all sequences; ``max_rows`` tokens in one step.

    ``max_outputs`` is at least ``num_sequence_ids``: llama.cpp reserves one for each. ``is_unified``: any
    sequence may use all cells; else each has an equal part of its own. ``kv_type_k``, ``kv_type_v``: ggml's
    names of the types that keys and values are kept in.
    """

    num_cells: int
    num_sequence_ids: int
    max_rows: int
    max_outputs: int
    num_threads: int
    is_unified: bool = True
    kv_type_k: str = "f16"
    kv_type_v: str = "f16"


class Batch:
    """The rows of one step. Allocated once, overwritten step by step."""

    def __init__(self, max_rows: int, max_outputs: int, num_sequence_ids: int, vocab_size: int) -> None:
        self.max_rows = max_rows
        self.max_outputs = max_outputs
        self.num_rows = 0
        self.num_outputs = 0
        self._num_sequence_ids = num_sequence_ids
        self._vocab_size = vocab_size
        self._tokens = np.zeros(max_rows, dtype=np.int32)
        self._positions = np.zeros(max_rows, dtype=np.int32)
        self._outputs = np.zeros(max_rows, dtype=np.int8)
        self._id_counts = np.ones(max_rows, dtype=np.int32)
        self._ids = np.zeros(max_rows, dtype=np.int32)
        self._counting = np.arange(max_rows, dtype=np.int32)
        self._id_pointers = self._ids.ctypes.data + 4 * np.arange(max_rows, dtype=np.uint64)
        self.raw = C.llama_batch(
            n_tokens=0,
            token=_pointer(self._tokens, C.llama_token),
            embd=None,
            pos=_pointer(self._positions, C.llama_pos),
            n_seq_id=_pointer(self._id_counts, ctypes.c_int32),
            seq_id=_pointer(self._id_pointers, ctypes.POINTER(C.llama_seq_id)),
            logits=_pointer(self._outputs, ctypes.c_int8),
        )

    def clear(self) -> None:
        """Forget all rows."""
        self.num_rows = 0
        self.num_outputs = 0

    def add(self, sequence_id: int, tokens: Tokens, position: int, *, wants_logits: bool) -> None:
        """Append a run of one sequence's tokens from ``position`` on; logits of the last one, if wanted.

        Raises ``LlamaGuardError`` where llama.cpp would abort: too many rows or outputs, an id out of range,
        a token outside the vocabulary.
        """
        start, count = self.num_rows, len(tokens)
        end = start + count
        if not count or end > self.max_rows:
            raise LlamaGuardError(f"{end} rows in a batch of {self.max_rows}")
        if not 0 <= sequence_id < self._num_sequence_ids:
            raise LlamaGuardError(f"sequence id {sequence_id} of {self._num_sequence_ids}")
        if wants_logits and self.num_outputs == self.max_outputs:
            raise LlamaGuardError(f"more than {self.max_outputs} outputs in a batch")
        rows: int | slice = slice(start, end)
        values: int | Tokens = tokens
        positions: int | Tokens = position
        if count == 1:  # the usual case: numpy's slices and reductions would cost three times as much
            rows, values = start, int(tokens[0])
            low = high = values
        else:
            positions = self._counting[:count] + position
            low, high = int(tokens.min()), int(tokens.max())
        if position < 0 or low < 0 or high >= self._vocab_size:
            raise LlamaGuardError("a token or position is out of range")
        self._tokens[rows] = values
        self._positions[rows] = positions
        self._ids[rows] = sequence_id
        self._outputs[rows] = 0
        if wants_logits:
            self._outputs[end - 1] = 1
            self.num_outputs += 1
        self.num_rows = end
        self.raw.n_tokens = end

    def mark_all(self) -> None:
        """Ask for an output of every row, as pooled embeddings need."""
        if self.num_rows > self.max_outputs:
            raise LlamaGuardError(f"more than {self.max_outputs} outputs in a batch")
        self._outputs[: self.num_rows] = 1
        self.num_outputs = self.num_rows


class Context:
    """One context and its KV cache.

    One step is one micro-batch (``n_batch == n_ubatch``): bounded in time and all-or-nothing in failure.
    """

    def __init__(self, model: Model, params: ContextParams) -> None:
        if not 1 <= params.num_sequence_ids <= MAX_SEQUENCE_IDS:
            raise LlamaGuardError(f"{params.num_sequence_ids} sequence ids, not 1 to {MAX_SEQUENCE_IDS}")
        if params.max_outputs < params.num_sequence_ids:
            counts = f"{params.max_outputs} outputs for {params.num_sequence_ids} sequence ids"
            raise LlamaGuardError(counts)
        self.params = params
        self._model = model
        self._adapters = NO_ADAPTERS
        self.vocab = model.vocab
        self.vocab_size = model.vocab.size
        self._logits: Logits = np.empty((0, self.vocab_size), dtype=np.float32)
        self._logits_place = 0, 0
        """Address and rows of that view, which costs more to make than to look at; they seldom change."""
        raw = C.llama_context_default_params()
        raw.n_ctx = params.num_cells
        raw.n_batch = raw.n_ubatch = params.max_rows
        raw.n_seq_max = params.num_sequence_ids
        raw.n_outputs_max = params.max_outputs
        raw.n_threads = raw.n_threads_batch = params.num_threads
        raw.kv_unified = params.is_unified
        raw.type_k = KV_TYPES[params.kv_type_k]
        raw.type_v = KV_TYPES[params.kv_type_v]
        # A sliding-window model keeps all its cells: any prefix can be reused, not only the last part of it.
        raw.swa_full = True
        raw.no_perf = True
        self._abort_flag = add_abort_flag(raw)
        recent_errors(clear=True)
        self.pointer = C.llama_init_from_model(model.pointer, raw)
        if not self.pointer:
            reasons = recent_errors(clear=True)
            raise ModelFileError(model.path, reasons[-1] if reasons else "no context could be made")
        model.apply_adapters(self.pointer)
        self._memory = C.llama_get_memory(self.pointer)
        if not self._memory:
            self.close()
            raise ModelFileError(model.path, "it has no KV cache, so it cannot generate text")
        self.num_cells: int = C.llama_n_ctx(self.pointer)
        self.num_sequence_cells: int = C.llama_n_ctx_seq(self.pointer)
        """Cells that one sequence may have."""

    def make_batch(self) -> Batch:
        """A batch of this context's sizes."""
        params = self.params
        return Batch(params.max_rows, params.max_outputs, params.num_sequence_ids, self.vocab_size)

    def use_adapters(self, adapters: AdapterSet) -> None:
        """Compute with these of the model's named adapters from now on, beside those that always hold.

        Another set makes llama.cpp plan its graphs anew: as long as several steps of a small model. Raises
        ``LlamaGuardError`` for a name that the model has not.
        """
        if adapters != self._adapters:
            self._model.apply_adapters(self.pointer, adapters)
            self._adapters = adapters

    def decode(self, batch: Batch) -> DecodeStatus:
        """Compute the rows of ``batch``; positions must continue each sequence. Blocks, off the GIL."""
        if not 0 < batch.num_rows <= self.params.max_rows or batch.num_outputs > self.params.max_outputs:
            raise LlamaGuardError(f"{batch.num_rows} rows, {batch.num_outputs} outputs: not this context's")
        code = C.llama_decode(self.pointer, batch.raw)
        return DecodeStatus(code) if -3 <= code <= 2 else DecodeStatus.COMPUTE_FAILED

    def logits(self, num_outputs: int) -> Logits:
        """Logits of the last decode, float32 of shape (outputs, vocabulary), rows in batch order.

        A view of llama.cpp's own memory: writable, and valid until the next ``decode``.
        """
        if not 0 < num_outputs <= self.params.max_outputs:
            raise LlamaGuardError(f"logits of {num_outputs} outputs; at most {self.params.max_outputs}")
        pointer = C.llama_get_logits(self.pointer)
        place = ctypes.addressof(pointer.contents), num_outputs
        if place != self._logits_place:
            self._logits = np.ctypeslib.as_array(pointer, shape=(num_outputs, self.vocab_size))
            self._logits_place = place
        return self._logits

    def remove(self, sequence_id: int, start: int = 0) -> bool:
        """Free the cells of a sequence from position ``start`` on; False if its memory cannot drop a part."""
        self._check_id(sequence_id)
        return bool(C.llama_memory_seq_rm(self._memory, sequence_id, start, -1))

    def copy(self, source_id: int, target_id: int, num_tokens: int) -> None:
        """Let ``target_id``, which is empty, share the first ``num_tokens`` cells of ``source_id``.

        Unified KV only: between cells of their own, llama.cpp aborts on a copy of a part.
        """
        if not self.params.is_unified:
            raise LlamaGuardError("a copied prefix in a split KV cache")
        if source_id == target_id or not 0 < num_tokens <= self.num_cached(source_id):
            raise LlamaGuardError(f"a copy of {num_tokens} tokens from id {source_id} to {target_id}")
        if self.num_cached(target_id):
            raise LlamaGuardError(f"a copy onto sequence id {target_id}, which is not empty")
        C.llama_memory_seq_cp(self._memory, source_id, target_id, 0, num_tokens)

    def copy_range(self, source_id: int, target_id: int, start: int, num_tokens: int) -> None:
        """Let ``target_id`` share the cells of these positions of ``source_id``; it has none of them itself.

        Unified KV only, as ``copy``.
        """
        if not self.params.is_unified:
            raise LlamaGuardError("a copied range in a split KV cache")
        for sequence_id in (source_id, target_id):
            self._check_id(sequence_id)
        C.llama_memory_seq_cp(self._memory, source_id, target_id, start, start + num_tokens)

    def num_cached(self, sequence_id: int) -> int:
        """How many leading positions of a sequence have KV."""
        self._check_id(sequence_id)
        return int(C.llama_memory_seq_pos_max(self._memory, sequence_id)) + 1

    def first_cached(self, sequence_id: int) -> int:
        """The first position of a sequence that every layer has KV of; -1 where there is none."""
        self._check_id(sequence_id)
        return int(C.llama_memory_seq_pos_min(self._memory, sequence_id))

    def request_abort(self) -> None:
        """Make a running ``decode`` return soon (CPU only). Any thread; for shutdown, it ends everyone's
        step.
        """
        self._abort_flag[0] = b"\x01"

    def close(self) -> None:
        """Free the context. A second call does nothing."""
        if self.pointer:
            C.llama_free(self.pointer)
            self.pointer = None

    def _check_id(self, sequence_id: int) -> None:
        if not 0 <= sequence_id < self.params.num_sequence_ids:
            raise LlamaGuardError(f"sequence id {sequence_id} of {self.params.num_sequence_ids}")


def kv_cell_bytes(model: Model, type_k: str, type_v: str) -> int:
    """Memory of one KV cell over all layers, in bytes, as if keys and values were of one length.

    Source: ``ggml_type_size``, ``ggml_blck_size``.
    """
    scale = (_bytes_per_number(type_k) + _bytes_per_number(type_v)) / (2 * _bytes_per_number("f16"))
    return max(round(model.kv_cell_bytes * scale), 1)


def _bytes_per_number(kv_type: str) -> float:
    number = KV_TYPES[kv_type]
    return float(_GGML.ggml_type_size(number) / _GGML.ggml_blck_size(number))


def add_abort_flag(raw: Any) -> "ctypes.Array[ctypes.c_char]":
    """Give raw context parameters an abort callback: a 1 in the first byte of the buffer stops a decode.

    The callback is C's ``strlen`` over that buffer, so it needs no GIL. Keep it as long as the context.
    """
    flag = ctypes.create_string_buffer(2)
    raw.abort_callback = ctypes.cast(ctypes.CDLL(None).strlen, C.ggml_abort_callback)
    raw.abort_callback_data = ctypes.cast(flag, ctypes.c_void_p)
    return flag


def _pointer(array: npt.NDArray[np.generic], kind: type) -> object:
    return array.ctypes.data_as(ctypes.POINTER(kind))
