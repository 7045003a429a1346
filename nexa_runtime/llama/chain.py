"""What llama.cpp's ``common_sampler`` does to a row, in the order wanted, and the draw at its end.

Owns the samplers of one sequence that its settings ask for, and its random stream. All that can take long is
done in numpy (``narrowing``); llama.cpp draws, flips xtc's coin, and has mirostat and DRY. ``sampler`` calls
it, on the engine thread. What would make llama.cpp abort is refused before, by ``sampling_params.check``.
Source: ``common_sampler_init`` (sampling.cpp).
"""

import os
from collections.abc import Callable
from functools import partial

import numpy as np

from nexa_runtime.errors import DecodeError
from nexa_runtime.llama import narrowing
from nexa_runtime.llama.c_chain import Chain
from nexa_runtime.llama.candidates import best_id
from nexa_runtime.llama.context import Logits
from nexa_runtime.llama.lib import C
from nexa_runtime.llama.narrowing import Left
from nexa_runtime.llama.penalties import Dry, Penalties
from nexa_runtime.llama.sampling_params import DEFAULT_SAMPLERS, SamplingParams
from nexa_runtime.llama.vocab import Tokens, Vocab

_RANDOM_SEED = 0xFFFFFFFF
"""llama.cpp's ``LLAMA_DEFAULT_SEED``: it would draw a seed of its own."""

_MIROSTAT_TOKENS = 100
"""Of how many tokens mirostat 1 estimates the distribution; the number of ``common_sampler``."""

_MIN_DYNAMIC_TEMPERATURE = 1e-3
_MAX_LOGIT = 1e20
"""What no temperature or penalty within the limits makes infinite."""

_Step = Callable[[Left], Left]


class FullChain:
    """All samplers of llama.cpp in the order wanted, over the whole vocabulary.

    Exact, but for mirostat: of that, a tail is left out that has a ten-millionth of the mass (``likely``).
    """

    def __init__(self, params: SamplingParams, vocab: Vocab, prompt: Tokens) -> None:
        """``params``: resolved and checked. ``prompt``: its last tokens count for the penalties."""
        self._all_ids = np.arange(vocab.size, dtype=np.intp)
        self._draw = Chain(1024)
        self._coin: Chain | None = None
        self._memories: list[Penalties | Dry] = []
        self._is_sorted = bool(params.mirostat)
        seed = _seed(params)
        if params.mirostat:
            self._draw.add(C.llama_sampler_init_temp(0.0 if params.is_greedy else params.temperature))
            self._draw.add(_mirostat(params, vocab, seed))
            heat = 0.0 if params.is_greedy else params.temperature
            self._steps: list[_Step] = [lambda left: narrowing.likely(left, heat)]
            return
        self._draw.add(C.llama_sampler_init_dist(seed))
        makers = self._makers(params, vocab, prompt, seed)
        names = DEFAULT_SAMPLERS if params.samplers is None else params.samplers
        self._steps = [makers[name]() for name in names if name in makers]

    def choose(self, row: Logits) -> int:
        """Choose a token, and leave ``row`` as it is. One whose logit is -inf never takes part.

        Raises ``DecodeError`` when the best logit is not finite, or so large that the arithmetic overflows.
        """
        if row[best_id(row)] > _MAX_LOGIT:
            raise DecodeError("the logits are out of range")
        ids = self._all_ids
        if row.min() == -np.inf:
            ids = np.flatnonzero(row > -np.inf)
            row = row[ids]
        left = Left(ids, row, len(ids))
        for step in self._steps:
            left = step(left)
        return self._draw.choose(left.ids, left.logits, is_sorted=self._is_sorted)

    def accept(self, token: int) -> None:
        """Remember a token for the penalties."""
        for memory in self._memories:
            memory.accept(token)

    def close(self) -> None:
        """Free the C objects. A second call does nothing."""
        self._draw.close()
        if self._coin is not None:
            self._coin.close()
        for memory in self._memories:
            memory.close()

    def _makers(
        self, params: SamplingParams, vocab: Vocab, prompt: Tokens, seed: int
    ) -> dict[str, Callable[[], _Step]]:
        """What makes the samplers that change anything, by name; xtc and the draw have one seed."""
        makers: dict[str, Callable[[], _Step]] = {"temperature": lambda: _heat(params)}
        if params.has_penalties:
            makers["penalties"] = lambda: self._remembering(Penalties(params, prompt))
        if params.has_dry:
            makers["dry"] = lambda: self._remembering(Dry(params, vocab, prompt))
        if params.top_n_sigma > 0.0:
            makers["top_n_sigma"] = lambda: partial(narrowing.top_n_sigma, n=params.top_n_sigma)
        if params.top_k > 0:
            makers["top_k"] = lambda: partial(narrowing.top_k, k=params.top_k)
        if params.typical_p < 1.0:
            makers["typ_p"] = lambda: partial(narrowing.typical, p=params.typical_p)
        if params.top_p < 1.0:
            makers["top_p"] = lambda: partial(narrowing.top_p, p=params.top_p)
        if params.min_p > 0.0:
            makers["min_p"] = lambda: partial(narrowing.min_p, p=params.min_p)
        if params.xtc_probability > 0.0 and params.xtc_threshold <= 0.5:
            makers["xtc"] = lambda: partial(
                narrowing.xtc, threshold=params.xtc_threshold, flip=self._make_coin(params, seed)
            )
        return makers

    def _remembering(self, memory: Penalties | Dry) -> _Step:
        self._memories.append(memory)
        return lambda left: Left(left.ids, memory.changed(left.ids, left.logits), left.size)

    def _make_coin(self, params: SamplingParams, seed: int) -> Callable[[], bool]:
        """Whether llama.cpp's xtc, with its random stream, would act: of two equal tokens it takes one."""
        coin = self._coin = Chain(2)
        coin.add(C.llama_sampler_init_xtc(params.xtc_probability, 0.5, 1, seed))
        both, equal = np.arange(2), np.zeros(2, dtype=np.float32)
        return lambda: len(coin.applied(both, equal)[0]) == 1


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


def _mirostat(params: SamplingParams, vocab: Vocab, seed: int) -> object:
    tau, eta = params.mirostat_tau, params.mirostat_eta
    if params.mirostat == 1:
        return C.llama_sampler_init_mirostat(vocab.size, seed, tau, eta, _MIROSTAT_TOKENS)
    return C.llama_sampler_init_mirostat_v2(seed, tau, eta)


def _heat(params: SamplingParams) -> _Step:
    value, distance = _temperature(params)
    if distance <= 0.0:
        return partial(narrowing.temperature, value=value)
    low, high, exponent = max(value - distance, 0.0), value + distance, params.dynatemp_exponent
    return partial(narrowing.dynamic_temperature, low=low, high=high, exponent=exponent)


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
