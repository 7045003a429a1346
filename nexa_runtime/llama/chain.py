"""llama.cpp's sampler chain, and the array of candidates it works on.

Owns the C objects of one sequence and its random stream. It never decides which samplers are in use: the
settings do. ``sampler`` calls it, on the engine thread. What would make the chain abort is refused before,
by ``sampling_params.check``. Source: ``common_sampler_init`` (sampling.cpp), ``llama_sampler_*``.
"""

import ctypes
import math
import os
from collections.abc import Callable

import numpy as np

from nexa_runtime.errors import DecodeError, LlamaGuardError
from nexa_runtime.llama.candidates import Ids, best_id
from nexa_runtime.llama.context import Logits
from nexa_runtime.llama.dry import make_dry
from nexa_runtime.llama.lib import C
from nexa_runtime.llama.sampling_params import DEFAULT_SAMPLERS, SamplingParams, last_tokens
from nexa_runtime.llama.vocab import Tokens, Vocab

_RANDOM_SEED = 0xFFFFFFFF
"""llama.cpp's ``LLAMA_DEFAULT_SEED``: it would draw a seed of its own."""

_MIROSTAT_TOKENS = 100
"""Of how many tokens mirostat 1 estimates the distribution; the number of ``common_sampler``."""

_MIN_DYNAMIC_TEMPERATURE = 1e-3
_MAX_LOGIT = 1e20
"""What no temperature or penalty within the limits makes infinite."""

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


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

    def choose(self, ids: Ids | Tokens, logits: Logits) -> int:
        """Choose one of ``ids`` by their ``logits``. Raises ``LlamaGuardError`` where there are none."""
        count = len(ids)
        if not count:
            raise LlamaGuardError("no candidates to choose from")
        if count > len(self._ids):
            self._reserve(max(count, 2 * len(self._ids)))
        self._ids[:count] = ids
        self._logits[:count] = logits
        array = self._array
        array.data = self._data  # the chain may have pointed it elsewhere
        array.size, array.selected, array.sorted = count, -1, False
        C.llama_sampler_apply(self._pointer, self._array_reference)
        chosen = array.data[array.selected]
        if math.isnan(chosen.p):  # all that is left was made infinitely unlikely
            is_left = np.isin(ids, [array.data[at].id for at in range(array.size)])
            return int(ids[np.where(is_left, logits, -np.inf).argmax()])
        return int(chosen.id)

    def accept(self, token: int) -> None:
        """Tell the samplers that have a memory which token came."""
        C.llama_sampler_accept(self._pointer, token)

    def close(self) -> None:
        """Free the C objects."""
        if self._pointer:
            C.llama_sampler_free(self._pointer)
            self._pointer = None

    def _reserve(self, num_candidates: int) -> None:
        candidates = np.zeros(num_candidates, dtype=_CANDIDATE)
        self._ids, self._logits = candidates["id"], candidates["logit"]
        self._data = candidates.ctypes.data_as(C.llama_token_data_p)


class FullChain:
    """All samplers of llama.cpp in the order wanted, over the whole vocabulary: exact, and slow."""

    def __init__(self, params: SamplingParams, vocab: Vocab, prompt: Tokens) -> None:
        """``params``: resolved and checked. ``prompt``: its last tokens count for the penalties."""
        self._all_ids = np.arange(vocab.size, dtype=np.int32)
        self._chain = Chain(vocab.size)
        for sampler in _mirostat(params, vocab) if params.mirostat else _samplers(params, vocab):
            self._chain.add(sampler)
        self._remembers = not params.mirostat and (params.has_penalties or params.has_dry)
        if self._remembers:
            last_n = (last_tokens(params.penalty_last_n), last_tokens(params.dry_penalty_last_n))
            longest = max(last_n[0] if params.has_penalties else 0, last_n[1] if params.has_dry else 0)
            for token in prompt[-longest:].tolist():
                self._chain.accept(token)

    def choose(self, row: Logits) -> int:
        """Choose a token. One whose logit is -inf never takes part.

        Raises ``DecodeError`` when the best logit is not finite, or so large that the arithmetic overflows.
        """
        if row[best_id(row)] > _MAX_LOGIT:
            raise DecodeError("the logits are out of range")
        if row.min() > -np.inf:
            return self._chain.choose(self._all_ids, row)
        ids = np.flatnonzero(row > -np.inf)
        return self._chain.choose(ids, row[ids])

    def accept(self, token: int) -> None:
        """Remember a token for the penalties."""
        if self._remembers:
            self._chain.accept(token)

    def close(self) -> None:
        """Free the C objects. A second call does nothing."""
        self._chain.close()


def make_short_chain(params: SamplingParams, top_k: int) -> Chain:
    """What is left to do with the tokens that ``Preselection`` gives. ``top_k`` 0: off."""
    chain = Chain(1024)  # whoever keeps every token needs room for all of them, else a few hundred do
    if top_k:
        chain.add(C.llama_sampler_init_top_k(top_k))
        if params.top_p < 1.0:
            chain.add(C.llama_sampler_init_top_p(params.top_p, 1))
    if params.min_p > 0.0:
        chain.add(C.llama_sampler_init_min_p(params.min_p, 1))
    chain.add(C.llama_sampler_init_temp(params.temperature))
    chain.add(C.llama_sampler_init_dist(_seed(params)))
    return chain


def _samplers(params: SamplingParams, vocab: Vocab) -> list[object]:
    """``common_sampler_init`` without mirostat; xtc and the draw have one seed."""
    seed = _seed(params)
    temperature, dynatemp_range = _temperature(params)
    makers: dict[str, Callable[[], object]] = {
        "penalties": lambda: C.llama_sampler_init_penalties(
            vocab.size,
            last_tokens(params.penalty_last_n),
            params.repeat_penalty,
            params.frequency_penalty,
            params.presence_penalty,
        ),
        "dry": lambda: make_dry(params, vocab),
        "top_n_sigma": lambda: C.llama_sampler_init_top_n_sigma(params.top_n_sigma),
        "top_k": lambda: C.llama_sampler_init_top_k(max(0, min(params.top_k, vocab.size))),
        "typ_p": lambda: C.llama_sampler_init_typical(params.typical_p, 1),
        "top_p": lambda: C.llama_sampler_init_top_p(params.top_p, 1),
        "min_p": lambda: C.llama_sampler_init_min_p(params.min_p, 1),
        "xtc": lambda: C.llama_sampler_init_xtc(params.xtc_probability, params.xtc_threshold, 1, seed),
        "temperature": lambda: C.llama_sampler_init_temp_ext(
            temperature, dynatemp_range, params.dynatemp_exponent
        ),
    }
    names = DEFAULT_SAMPLERS if params.samplers is None else params.samplers
    used = [name for name in names if name != "dry" or params.has_dry]
    return [*(makers[name]() for name in used), C.llama_sampler_init_dist(seed)]


def _mirostat(params: SamplingParams, vocab: Vocab) -> list[object]:
    temperature = C.llama_sampler_init_temp(0.0 if params.is_greedy else params.temperature)
    seed, tau, eta = _seed(params), params.mirostat_tau, params.mirostat_eta
    if params.mirostat == 1:
        return [temperature, C.llama_sampler_init_mirostat(vocab.size, seed, tau, eta, _MIROSTAT_TOKENS)]
    return [temperature, C.llama_sampler_init_mirostat_v2(seed, tau, eta)]


def _temperature(params: SamplingParams) -> tuple[float, float]:
    """Temperature and range; the lowest dynamic one is above 0, near which logits would overflow."""
    temperature, distance = params.temperature, params.dynatemp_range
    if distance <= 0.0:
        return (0.0 if params.is_greedy else temperature), 0.0
    temperature = max(temperature, 0.0)
    low, high = temperature - distance, temperature + distance
    if low >= _MIN_DYNAMIC_TEMPERATURE:
        return temperature, distance
    high = max(high, _MIN_DYNAMIC_TEMPERATURE)
    return (high + _MIN_DYNAMIC_TEMPERATURE) / 2, (high - _MIN_DYNAMIC_TEMPERATURE) / 2


def _seed(params: SamplingParams) -> int:
    seed = params.seed if params.seed is not None else int.from_bytes(os.urandom(4), "little")
    return seed % _RANDOM_SEED
