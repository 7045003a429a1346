"""llama.cpp's samplers in numpy: what each of them leaves of the tokens, and with which logits.

Owns their arithmetic, and the order in which llama.cpp would have the tokens that are left, on which its draw
depends. Nothing here sorts more tokens than it must: llama.cpp sorts the whole vocabulary, 18 ms of it.
It draws nothing at random but what it is given a coin for. ``chain`` calls it, on the engine thread. Source:
``llama_sampler_top_n_sigma``, ``_typical``, ``_top_p``, ``_min_p``, ``_xtc``, ``_temp_ext``.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nexa_runtime.llama.candidates import Ids, ascending, best_ids, top_p_places
from nexa_runtime.llama.context import Logits

_LOST_MASS = 1e-7
_HEAD = 1e-6
_FIRST_DISTANCE = 14.0
_LAST_DISTANCE = 100.0
_FIRST_WIDTH = 0.25
_LAST_WIDTH = 1e4


@dataclass(frozen=True, slots=True)
class Left:
    """The tokens that are left, all with finite logits. ``size``: how many llama.cpp would still have in its
    list, those among them that it made impossible.
    """

    ids: Ids
    logits: Logits
    size: int

    def at(self, places: Ids, size: int | None = None) -> "Left":
        """Only those at some places, in this order."""
        return Left(self.ids[places], self.logits[places], len(places) if size is None else size)

    def best(self, size: int) -> "Left":
        """Only the likeliest."""
        return self.at(np.array([self.logits.argmax()]), size)

    def ordered(self) -> "Left":
        """The same, the likeliest first."""
        return self.at(ascending(-self.logits), self.size)

    def roughly_ordered(self) -> "Left":
        """The same, and the likeliest first, but of many tokens only those with more than ``_HEAD`` of the
        best one's probability: the draw is another than llama.cpp's once in a million times, and as likely.
        """
        is_head = self.logits > self.logits.max() + np.float32(math.log(_HEAD))
        head = np.flatnonzero(is_head)
        if len(head) > len(self.ids) // 2:
            return self.ordered()
        head = head[ascending(-self.logits[head])]
        return self.at(np.concatenate((head, np.flatnonzero(~is_head))), self.size)


def top_n_sigma(left: Left, n: float) -> Left:
    """Those not further below the best than ``n`` standard deviations."""
    if left.size < 2:
        return left
    deviation = float(left.logits.std(dtype=np.float64))
    return left.at(np.flatnonzero(left.logits >= left.logits.max() - n * deviation), left.size).ordered()


def top_k(left: Left, k: int) -> Left:
    """The ``k`` best."""
    size = min(k, left.size)
    if k >= len(left.ids):
        return left.at(ascending(-left.logits), size)
    places = best_ids(left.logits, k)
    return left.at(places[ascending(-left.logits[places])[:k]], size)


def typical(left: Left, p: float) -> Left:
    """Those whose surprise is nearest to the one expected, until they have ``p`` of the mass.

    A surprise and the one expected differ as a logit and the mean of the logits do.
    """
    weights, above = _weights(left.logits)
    total = float(weights.sum(dtype=np.float64))
    mean = float((weights * above).sum(dtype=np.float64)) / total
    distances = np.abs(above - np.float32(mean))
    needed, width = max(p, 0.0) * total, _FIRST_WIDTH
    while True:
        near = np.flatnonzero(distances <= (width if width < _LAST_WIDTH else math.inf))
        if width >= _LAST_WIDTH or weights[near].sum(dtype=np.float64) > needed:
            break
        width *= 2
    places = near[ascending(distances[near])]
    mass = np.cumsum(weights[places], dtype=np.float64)
    return left.at(places[: int(np.searchsorted(mass, needed, side="right")) + 1])


def top_p(left: Left, p: float) -> Left:
    """The likeliest, until they have ``p`` of the mass."""
    return left.at(top_p_places(left.logits, float(left.logits.max()), p))


def min_p(left: Left, p: float) -> Left:
    """Those with at least ``p`` of the best one's probability."""
    floor = left.logits.max() + np.float32(math.log(p))
    places = np.flatnonzero(left.logits >= floor)
    return left.at(places) if len(places) else left.best(1)


def xtc(left: Left, threshold: float, flip: Callable[[], bool]) -> Left:
    """If the coin says so: without all that reach the threshold but the least likely of these."""
    if left.size < 2 or not flip():
        return left
    left = left.roughly_ordered() if threshold > _HEAD else left.ordered()
    weights, _ = _weights(left.logits)
    num_above = int((weights >= threshold * weights.sum(dtype=np.float64)).sum())
    num_dropped = max(num_above - 1, 0)
    return Left(left.ids[num_dropped:], left.logits[num_dropped:], left.size - num_dropped)


def temperature(left: Left, value: float) -> Left:
    """The logits divided; 0: the best alone."""
    if value <= 0:
        return left.best(left.size)
    return Left(left.ids, left.logits / np.float32(value), left.size)


def dynamic_temperature(left: Left, low: float, high: float, exponent: float) -> Left:
    """A temperature that is higher the less the distribution says."""
    if left.size < 2:
        return left
    left = left.roughly_ordered()
    weights, above = _weights(left.logits)
    total = float(weights.sum(dtype=np.float64))
    mean = float((weights * above).sum(dtype=np.float64)) / total
    entropy = max(math.log(total) - mean, 0.0)
    return temperature(left, low + (high - low) * (entropy / math.log(left.size)) ** exponent)


def likely(left: Left, value: float) -> Left:
    """All but a tail that has at most ``_LOST_MASS`` of the mass at this temperature, the likeliest first.

    Not exact: every probability that is left is so much larger. ``value`` 0: the best alone.
    """
    if value <= 0:
        return temperature(left, 0.0)
    with np.errstate(over="ignore"):
        weights = np.exp((left.logits - left.logits.max()) / np.float32(value))
    needed = (1 - _LOST_MASS) * float(weights.sum(dtype=np.float64))
    distance = _FIRST_DISTANCE
    while distance < _LAST_DISTANCE:
        places = np.flatnonzero(weights >= math.exp(-distance))
        if weights[places].sum(dtype=np.float64) >= needed:
            return left.at(places).ordered()
        distance *= 1.25
    return left.ordered()


def _weights(logits: Logits) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Probabilities, the best one's being 1, and their logarithms."""
    above = logits - logits.max()
    return np.exp(above), above
