"""The KV of a range of positions, in host memory and back.

Owns the format's guard: llama.cpp restores a damaged state without a word, so each copy has a checksum, which
is looked at before the copy is used. Needs a unified KV cache and an empty sequence id to copy over. It
never decides what is kept; ``engine/runner`` calls it, on the engine thread. Source:
``llama_state_seq_get_data``, ``llama_state_seq_set_data``.
"""

import ctypes
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xxhash

from nexa_runtime.errors import LlamaGuardError
from nexa_runtime.llama.context import Context
from nexa_runtime.llama.lib import C


@dataclass(frozen=True, slots=True)
class SavedRange:
    """The KV of ``num_tokens`` positions of one sequence, from ``start`` on. ``data``: uint8, llama.cpp's."""

    start: int
    num_tokens: int
    data: npt.NDArray[np.uint8]
    checksum: int

    @property
    def is_sound(self) -> bool:
        """Whether it is what was saved."""
        return xxhash.xxh3_64_intdigest(self.data.data) == self.checksum


def save_range(context: Context, sequence_id: int, start: int, num_tokens: int, *, via: int) -> SavedRange:
    """Copy a range of a sequence's KV. ``via``: an id that is empty, before and after.

    Raises ``LlamaGuardError`` when the sequence has not all of these positions.
    """
    _check(context, via)
    if not 0 <= start < start + num_tokens <= context.num_cached(sequence_id):
        raise LlamaGuardError(f"positions {start} to {start + num_tokens} of sequence id {sequence_id}")
    context.copy_range(sequence_id, via, start, num_tokens)
    try:
        if context.first_cached(via) != start:  # a sliding window may have lost some
            raise LlamaGuardError(f"sequence id {sequence_id} has no position {start} any more")
        data = np.empty(C.llama_state_seq_get_size(context.pointer, via), dtype=np.uint8)
        size = C.llama_state_seq_get_data(context.pointer, _bytes(data), len(data), via)
    finally:
        context.remove(via)
    if size != len(data):
        raise LlamaGuardError(f"llama.cpp saved {size} bytes of a state of {len(data)}")
    return SavedRange(start, num_tokens, data, xxhash.xxh3_64_intdigest(data.data))


def restore_range(
    context: Context, saved: SavedRange, sequence_id: int, num_tokens: int, *, via: int
) -> bool:
    """Give a sequence that ends at ``saved.start`` the first ``num_tokens`` of a saved range.

    False, and nothing is changed, when the range is damaged or llama.cpp has no cells for all of it. Raises
    ``LlamaGuardError`` when it does not continue the sequence.
    """
    _check(context, via)
    if context.num_cached(sequence_id) != saved.start or not 0 < num_tokens <= saved.num_tokens:
        raise LlamaGuardError(f"a range from {saved.start} on for sequence id {sequence_id}")
    if not saved.is_sound:
        return False
    if not C.llama_state_seq_set_data(context.pointer, _bytes(saved.data), len(saved.data), via):
        context.remove(via)
        return False
    context.copy_range(via, sequence_id, saved.start, num_tokens)
    context.remove(via)
    return True


def _check(context: Context, via: int) -> None:
    if context.num_cached(via):
        raise LlamaGuardError(f"sequence id {via} is to be copied over, and is not empty")


def _bytes(data: npt.NDArray[np.uint8]) -> object:
    return data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
