"""Which tokens of a row of logits can still win, and what the row says of them, in numpy alone.

Owns the preselection in front of the C chain and the arithmetic of log-probabilities. It chooses nothing at
random and knows nothing of C. ``sampler`` calls it, on the engine thread.
"""

import math

import numpy as np
import numpy.typing as npt

from nexa_runtime.errors import DecodeError
from nexa_runtime.llama.context import Logits
from nexa_runtime.llama.sampling_params import SamplingParams, TokenLogprobs

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

_MANY_VALUES = 2000
_MAX_TABLE_ROWS = 128
_COLUMNS_PER_CANDIDATE = 16
"""With columns enough, the best tokens rarely share one; with fewer of them there is less to sort."""

Ids = npt.NDArray[np.intp]


class Preselection:
    """The tokens of each row of one sequence that top-k, top-p and min-p can leave."""

    def __init__(self, params: SamplingParams, top_k: int) -> None:
        """``top_k``: 0, or less than the vocabulary's size."""
        self._params = params
        self._top_k = top_k
        self._floor = math.inf
        """What the best tokens of the next row will probably be above."""

    def ids(self, row: Logits, *, is_masked: bool = False) -> Ids:
        """Never without one that the full chain would keep. ``is_masked``: the row is unlike the others.

        Raises ``DecodeError`` unless the largest logit is finite.
        """
        if not self._top_k:
            return self._likely_ids(row)
        return best_ids(row, self._top_k) if is_masked else self._best_ids(row)

    def _best_ids(self, row: Logits) -> Ids:
        """As ``best_ids``, but mostly cheaper: rows of one sequence are alike.

        With at least ``top_k`` tokens above the floor, whatever it is, none of those below can be chosen.
        """
        is_below = row <= self._floor
        ids = np.logical_not(is_below, out=is_below).nonzero()[0]  # NaN is among them
        if self._top_k <= len(ids) <= _MANY * self._top_k:
            check_finite(row[ids].max())
            return ids
        ids = best_ids(row, self._top_k)
        ordered = np.sort(row[ids])
        best, last = float(ordered[-1]), float(ordered[-self._top_k :][0])
        self._floor = max(last - _MARGIN * (best - last), float(_LOWEST))
        return ids

    def _likely_ids(self, row: Logits) -> Ids:
        params = self._params
        best = float(row[best_id(row)])
        if params.top_p < 1.0:
            # The chain's top-p needs the whole mass, so that cut is made here (and the chain leaves it out).
            return top_p_places(row, best, params.top_p)
        if params.min_p > 0.0:
            return np.flatnonzero(row >= best + math.log(min(params.min_p, 1.0)) - 1e-4)
        return np.flatnonzero(row > -np.inf)


class RowLogprobs:
    """Log-probabilities of one row, kept before anything changes it."""

    def __init__(self, row: Logits, num_best: int) -> None:
        """``num_best``: of how many tokens ``of`` tells beside its own. Raises as ``best_id`` does."""
        self._row = row.copy()
        best = float(row[best_id(row)])
        mass = np.exp(row - np.float32(best)).sum(dtype=np.float64)
        self._log_sum = best + math.log(float(mass))
        ids = best_ids(row, min(num_best, len(row))) if num_best else np.empty(0, dtype=np.intp)
        ordered = ids[np.argsort(-row[ids], kind="stable")][:num_best]
        self._best = tuple((int(token), self._logprob(int(token))) for token in ordered)

    def of(self, token: int) -> TokenLogprobs:
        """What is told of ``token``."""
        return TokenLogprobs(token, self._logprob(token), self._best)

    def _logprob(self, token: int) -> float:
        return float(self._row[token]) - self._log_sum


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
    check_finite(largest.max())
    floor = max(largest[0], _LOWEST)
    columns = (maxima[:num_columns] >= floor).nonzero()[0]
    places = (table[:, columns].ravel() >= floor).nonzero()[0]
    rows = places // len(columns)
    ids = rows * num_columns + columns[places - rows * len(columns)]
    return np.concatenate((ids, np.arange(num_inside, len(row)))) if num_rest else ids


def ascending(values: Logits) -> Ids:
    """Where the values stand, the smallest first, and of equal ones the first one.

    Sorts by the lower halves of the values, then by the upper ones: numpy has a radix sort for 16 bits.
    150,000 values take 4 ms and not 15.
    """
    if len(values) < _MANY_VALUES:
        return np.argsort(values, kind="stable")
    bits = (values + np.float32(0.0)).view(np.int32)  # no minus zero
    keys = np.where(bits < 0, bits ^ np.int32(0x7FFFFFFF), bits)  # in the order of the values
    order = np.argsort(keys.astype(np.uint16), kind="stable")
    return order[np.argsort((keys >> 16).astype(np.int16)[order], kind="stable")]


def best_id(row: Logits) -> int:
    """The largest logit's id, of equal ones the first. Raises ``DecodeError`` unless it is finite."""
    token = int(row.argmax())
    check_finite(row[token])
    return token


def check_finite(best: np.float32) -> None:
    """Raise ``DecodeError`` unless the best logit, which is NaN where any is, can be reckoned with."""
    if not math.isfinite(best):
        raise DecodeError("no token has a finite logit")


def top_p_places(row: Logits, best: float, top_p: float) -> Ids:
    """Where the likeliest tokens of a row are, until they have ``top_p`` of the mass, the likeliest first."""
    weights = np.exp(row - np.float32(best))
    needed = top_p * float(weights.sum(dtype=np.float64))
    threshold = _FIRST_THRESHOLD
    while True:
        ids = np.flatnonzero(row >= best - threshold)  # among enormous ones, the best alone
        order = ids[ascending(-row[ids])]
        mass = np.cumsum(weights[order], dtype=np.float64)
        if mass[-1] >= needed or threshold > _LAST_THRESHOLD:
            return order[: int(np.searchsorted(mass, needed)) + 1]
        threshold *= 1.5
