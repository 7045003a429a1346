"""Choosing the next token of one sequence from its logits.

Owns the sampling settings, each sequence's random stream, and the C sampler chain. Numpy preselects the few
tokens that can still win, llama.cpp's chain (top-k → top-p → min-p → temperature → distribution) decides
among them: exact, and twenty times cheaper than a chain over the whole vocabulary. It never sees text. The
engine thread calls it.

Order as in llama.cpp's ``common_sampler``: bias → penalties → top-k → top-p → min-p → temperature → draw.
Source: ``llama_sampler_*`` (llama-sampler.cpp).
"""

import ctypes
import math
import os
from collections import Counter, deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nexa_runtime.errors import DecodeError, LlamaGuardError
from nexa_runtime.llama.context import Logits
from nexa_runtime.llama.lib import C

_RANDOM_SEED = 0xFFFFFFFF
"""llama.cpp's ``LLAMA_DEFAULT_SEED``: it would draw a seed of its own."""

_FIRST_THRESHOLD = 14.0
"""Logits this far below the best one have e^-14 of its probability; widened until top-p is exact."""

_LAST_THRESHOLD = 1e4
"""Beyond any logit that is not -inf."""

_LOWEST = np.finfo(np.float32).min

_MARGIN = 0.25
_MANY = 16
"""The next row's floor lies so much of the distance from best to last below the last token kept; it is good
while no more than so many times the tokens wanted lie above it.
"""

_MAX_TABLE_ROWS = 128
_COLUMNS_PER_CANDIDATE = 16
"""With columns enough, the best tokens rarely share one; with fewer of them there is less to sort."""

MIN_TEMPERATURE = 1e-5

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])

Ids = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose tokens; the defaults are llama.cpp's.

    ``temperature`` 0 takes the best token. ``top_k`` 0 or less: off. ``repeat_penalty`` 1: off.
    ``logit_bias``: (token, added to its logit). ``banned``: tokens that are never chosen. ``seed`` None: a
    fresh random one. ``min_tokens``: before so many are out, none of ``end_tokens`` is chosen.
    ``num_logprobs``: of how many best tokens log-probabilities are told, beside the chosen one's; None: none.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    penalty_last_n: int = 64
    logit_bias: tuple[tuple[int, float], ...] = ()
    banned: frozenset[int] = frozenset()
    seed: int | None = None
    min_tokens: int = 0
    end_tokens: frozenset[int] = frozenset()
    num_logprobs: int | None = None
    typical_p: float = 1.0
    top_n_sigma: float = -1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    samplers: tuple[str, ...] | None = None

    @property
    def is_greedy(self) -> bool:
        """Whether the best token is taken; a tinier temperature would overflow the arithmetic."""
        return self.temperature < MIN_TEMPERATURE

    @property
    def has_penalties(self) -> bool:
        """Whether tokens already seen weigh on the next one."""
        return self.penalty_last_n > 0 and (
            self.repeat_penalty != 1.0 or self.frequency_penalty != 0.0 or self.presence_penalty != 0.0
        )

    @property
    def is_plain_greedy(self) -> bool:
        """Whether the choice is the largest raw logit and nothing else."""
        return self.is_greedy and not (self.logit_bias or self.banned or self.has_penalties)


def sample_greedy(logits: Logits) -> list[int]:
    """The largest logit of each row; of equal ones the first, as in ``llama_sampler_init_greedy``."""
    return [int(token) for token in logits.argmax(axis=1)]


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """What the model itself thought, before bias, penalties and constraints: natural logarithms of
    probabilities over the whole vocabulary. ``best``: the likeliest tokens, (token, log-probability) each.
    """

    token: int
    logprob: float
    best: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """``tokens``: the one sampled, then those that a constraint says must follow it. ``is_last``: nothing may
    come after them.
    """

    tokens: tuple[int, ...]
    is_last: bool = False
    logprobs: TokenLogprobs | None = None


class Sampler:
    """The sampler of one sequence. ``close`` frees the C chain; a second call does nothing."""

    def __init__(self, params: SamplingParams, vocab_size: int, prompt: npt.NDArray[np.int32]) -> None:
        """``prompt``, int32 of shape (n,): its last ``penalty_last_n`` tokens count for penalties."""
        self.params = params
        self._vocab_size = vocab_size
        for token, _ in params.logit_bias:
            if not 0 <= token < vocab_size:
                raise LlamaGuardError(
                    f"a bias on token {token}, outside the vocabulary of {vocab_size} tokens"
                )
        self._bias_ids = np.array([token for token, _ in params.logit_bias], dtype=np.intp)
        self._bias = np.array([bias for _, bias in params.logit_bias], dtype=np.float32)
        self._banned = np.array(sorted(params.banned), dtype=np.intp)
        self._recent: deque[int] = deque(maxlen=params.penalty_last_n)
        self._counts: Counter[int] = Counter()
        if params.has_penalties:
            for token in prompt[-params.penalty_last_n :]:
                self.accept(int(token))
        self._top_k = params.top_k if 0 < params.top_k < vocab_size else 0
        self._floor = math.inf
        """What the best tokens of the next row will probably be above."""
        self._array = C.llama_token_data_array()
        self._array_reference = ctypes.byref(self._array)
        # Whoever keeps every token needs room for all of them, else a few hundred do.
        self._reserve(1024)
        self._chain = _make_chain(params, self._top_k)

    def sample(self, row: Logits) -> int:
        """Choose a token from one row of logits, shape (vocabulary,), which is changed in place.

        Raises ``DecodeError`` when no token has a finite logit.
        """
        self._apply_bias(row)
        self._apply_penalties(row)
        if self.params.is_greedy:
            return _best_id(row)
        ids = self._best_ids(row) if self._top_k else self._likely_ids(row)
        count = len(ids)
        if count > len(self._ids):
            self._reserve(max(count, 2 * len(self._ids)))
        self._ids[:count] = ids
        self._logits[:count] = row[ids]
        array = self._array
        array.data = self._data  # the chain may have pointed it elsewhere
        array.size, array.selected, array.sorted = count, -1, False
        C.llama_sampler_apply(self._chain, self._array_reference)
        return int(array.data[array.selected].id)

    def accept(self, token: int) -> None:
        """Remember a token for the penalties."""
        if not self.params.has_penalties:
            return
        if len(self._recent) == self._recent.maxlen:
            oldest = self._recent[0]
            self._counts[oldest] -= 1
            if not self._counts[oldest]:
                del self._counts[oldest]
        self._recent.append(token)
        self._counts[token] += 1

    def close(self) -> None:
        """Free the C chain."""
        if self._chain:
            C.llama_sampler_free(self._chain)
            self._chain = None

    def _apply_bias(self, row: Logits) -> None:
        if len(self._bias_ids):
            np.add.at(row, self._bias_ids, self._bias)
        if len(self._banned):
            row[self._banned] = -np.inf

    def _apply_penalties(self, row: Logits) -> None:
        """As ``llama_sampler_penalties_apply``: repetition scales towards unlikely, the others subtract."""
        if not self._counts:
            return
        params = self.params
        ids = np.fromiter(self._counts.keys(), dtype=np.intp, count=len(self._counts))
        counts = np.fromiter(self._counts.values(), dtype=np.float32, count=len(self._counts))
        values = row[ids]
        repeat = np.float32(params.repeat_penalty)
        values = np.where(values <= 0, values * repeat, values / repeat)
        row[ids] = values - (
            counts * np.float32(params.frequency_penalty) + np.float32(params.presence_penalty)
        )

    def _reserve(self, num_candidates: int) -> None:
        candidates = np.zeros(num_candidates, dtype=_CANDIDATE)
        self._ids, self._logits = candidates["id"], candidates["logit"]
        self._data = candidates.ctypes.data_as(C.llama_token_data_p)

    def _best_ids(self, row: Logits) -> Ids:
        """As ``best_ids``, but mostly cheaper: rows of one sequence are alike.

        With at least ``top_k`` tokens above the floor, whatever it is, none of those below can be chosen.
        """
        is_below = row <= self._floor
        ids = np.logical_not(is_below, out=is_below).nonzero()[0]  # NaN is among them
        if self._top_k <= len(ids) <= _MANY * self._top_k:
            _check_finite(row[ids].max())
            return ids
        ids = best_ids(row, self._top_k)
        ordered = np.sort(row[ids])
        best, last = float(ordered[-1]), float(ordered[-self._top_k :][0])
        self._floor = max(last - _MARGIN * (best - last), float(_LOWEST))
        return ids

    def _likely_ids(self, row: Logits) -> Ids:
        """Ids that can still be chosen, without top-k; never drops one that the full chain would keep."""
        params = self.params
        best = float(row[_best_id(row)])
        if params.top_p < 1.0:
            # The chain's top-p needs the whole mass, so that cut is made here (and the chain leaves it out).
            return _top_p(row, best, params.top_p)
        if params.min_p > 0.0:
            return np.flatnonzero(row >= best + math.log(params.min_p) - 1e-4)
        return np.flatnonzero(row > -np.inf)


def best_ids(row: Logits, top_k: int) -> Ids:
    """Ids of the ``top_k`` largest logits, of those that share the last place, and of a few more.

    ``top_k`` from 1 to the row's length. Raises ``DecodeError`` unless the largest logit is finite.

    Reads the whole row once, for the largest logit of each column of a table it is laid out in. At least
    ``top_k`` logits reach the ``top_k``-th of those maxima: whatever does not is beaten by all of them, and
    whatever does lies in a column whose maximum does. What fills no row of the table stays as it is.
    """
    num_rows = min(max(len(row) // (_COLUMNS_PER_CANDIDATE * top_k), 1), _MAX_TABLE_ROWS)
    num_columns, num_rest = divmod(len(row), num_rows)
    num_inside = len(row) - num_rest
    table = row[:num_inside].reshape(num_rows, num_columns)
    maxima = np.empty(num_columns + num_rest, dtype=np.float32)
    np.maximum.reduce(table, axis=0, out=maxima[:num_columns])
    maxima[num_columns:] = row[num_inside:]
    ordered = maxima.copy()
    ordered.partition(len(ordered) - top_k)
    largest = ordered[-top_k:]  # NaN counts as larger than all
    _check_finite(largest.max())
    floor = max(largest[0], _LOWEST)
    columns = (maxima[:num_columns] >= floor).nonzero()[0]
    places = (table[:, columns].ravel() >= floor).nonzero()[0]
    rows = places // len(columns)
    ids = rows * num_columns + columns[places - rows * len(columns)]
    return np.concatenate((ids, np.arange(num_inside, len(row)))) if num_rest else ids


def _top_p(row: Logits, best: float, top_p: float) -> Ids:
    weights = np.exp(row - np.float32(best))
    needed = top_p * float(weights.sum(dtype=np.float64))
    threshold = _FIRST_THRESHOLD
    while True:
        ids = np.flatnonzero(row > best - threshold)
        order = ids[np.argsort(-row[ids], kind="stable")]
        mass = np.cumsum(weights[order], dtype=np.float64)
        if mass[-1] >= needed or threshold > _LAST_THRESHOLD:
            return order[: int(np.searchsorted(mass, needed)) + 1]
        threshold *= 1.5


def _best_id(row: Logits) -> int:
    token = int(row.argmax())
    _check_finite(row[token])
    return token


def _check_finite(best: np.float32) -> None:
    """Raise ``DecodeError`` unless the best logit, which is NaN where any is, can be reckoned with."""
    if not math.isfinite(best):
        raise DecodeError("no token has a finite logit")


def _make_chain(params: SamplingParams, top_k: int) -> object:
    seed = params.seed if params.seed is not None else int.from_bytes(os.urandom(4), "little")
    chain = C.llama_sampler_chain_init(C.llama_sampler_chain_default_params())
    if params.is_greedy:
        return chain
    if top_k:
        C.llama_sampler_chain_add(chain, C.llama_sampler_init_top_k(top_k))
        if params.top_p < 1.0:
            C.llama_sampler_chain_add(chain, C.llama_sampler_init_top_p(params.top_p, 1))
    if params.min_p > 0.0:
        C.llama_sampler_chain_add(chain, C.llama_sampler_init_min_p(params.min_p, 1))
    C.llama_sampler_chain_add(chain, C.llama_sampler_init_temp(params.temperature))
    C.llama_sampler_chain_add(chain, C.llama_sampler_init_dist(seed % _RANDOM_SEED))
    return chain
