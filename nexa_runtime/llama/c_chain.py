"""A chain of llama.cpp's samplers, and the array of candidates it works on.

Owns the C objects. It never decides which samplers are in it: ``chain`` and ``penalties`` do, on the engine
thread. Source: ``llama_sampler_*``.
"""

import ctypes
import math

import numpy as np

from nexa_runtime.errors import LlamaGuardError
from nexa_runtime.llama.candidates import Ids
from nexa_runtime.llama.context import Logits
from nexa_runtime.llama.lib import C
from nexa_runtime.llama.vocab import Tokens

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
_BYTES = ctypes.POINTER(ctypes.c_uint8)


class Chain:
    """Chooses among candidates. ``close`` frees it; a second call does nothing."""

    def __init__(self, num_candidates: int) -> None:
        """``num_candidates``: how many there is room for at first."""
        self._pointer = C.llama_sampler_chain_init(C.llama_sampler_chain_default_params())
        self._array = C.llama_token_data_array()
        self._array_reference = ctypes.byref(self._array)
        self._reserve(num_candidates)

    def add(self, sampler: object) -> None:
        """Append one of llama.cpp's samplers, which is the chain's from now on."""
        C.llama_sampler_chain_add(self._pointer, sampler)

    def choose(self, ids: Ids | Tokens, logits: Logits, *, is_sorted: bool = False) -> int:
        """Choose one of ``ids`` by their ``logits``. Raises ``LlamaGuardError`` where there are none.

        ``is_sorted``: the likeliest come first, so that llama.cpp need not sort them.
        """
        self._apply(ids, logits, is_sorted=is_sorted)
        array = self._array
        chosen = array.data[array.selected]
        if math.isnan(chosen.p):  # all that is left was made infinitely unlikely
            is_left = np.isin(ids, [array.data[at].id for at in range(array.size)])
            return int(ids[np.where(is_left, logits, -np.inf).argmax()])
        return int(chosen.id)

    def applied(self, ids: Ids, logits: Logits) -> tuple[Ids, Logits]:
        """What a chain that chooses nothing leaves of ``ids``, and their new logits."""
        self._apply(ids, logits, is_sorted=False)
        count = self._array.size
        data = np.ctypeslib.as_array(ctypes.cast(self._array.data, _BYTES), (count * _CANDIDATE.itemsize,))
        left = data.view(_CANDIDATE)
        return left["id"].astype(np.intp), left["logit"].copy()

    def accept(self, token: int) -> None:
        """Tell the samplers that have a memory which token came."""
        C.llama_sampler_accept(self._pointer, token)

    def close(self) -> None:
        """Free the C objects."""
        if self._pointer:
            C.llama_sampler_free(self._pointer)
            self._pointer = None

    def _apply(self, ids: Ids | Tokens, logits: Logits, *, is_sorted: bool) -> None:
        count = len(ids)
        if not count:
            raise LlamaGuardError("no candidates to choose from")
        if count > len(self._ids):
            self._reserve(max(count, 2 * len(self._ids)))
        self._ids[:count] = ids
        self._logits[:count] = logits
        array = self._array
        array.data = self._data  # the chain may have pointed it elsewhere
        array.size, array.selected, array.sorted = count, -1, is_sorted
        C.llama_sampler_apply(self._pointer, self._array_reference)

    def _reserve(self, num_candidates: int) -> None:
        candidates = np.zeros(num_candidates, dtype=_CANDIDATE)
        self._ids, self._logits = candidates["id"], candidates["logit"]
        self._data = candidates.ctypes.data_as(C.llama_token_data_p)
