"""Whether a step of answers is faster with rows that are nobody's.

Owns what was learned of it. Pure: measured times come in. The scheduler asks it.

On a processor llama.cpp multiplies some rows at once and the rest in smaller groups or one by one, each time
with all of a matrix read anew: with a 0.5B model seven answers took 94 ms and eight took 76. How many rows go
at once depends on the types of the weights (with K-quants of 1.5B six took 107 ms and eight took 127), and
experts have theirs one by one. So for each number of answers a few steps with padding and a few without take
turns, and what was faster stays.
"""

import math
from dataclasses import dataclass, field

_ROWS_AT_ONCE = 4
"""Rows are filled up to a multiple of it: what all of llama.cpp's kernels that take several rows have."""

_NUM_TRIALS = 4
"""Steps of each kind. The fastest counts, for other work on the machine only makes a step slower."""


@dataclass(slots=True)
class _Steps:
    """The first of one kind: how many there were, and the time of the fastest, in seconds."""

    count: int = 0
    fastest_s: float = math.inf

    def add(self, elapsed_s: float) -> None:
        if self.count < _NUM_TRIALS:
            self.count += 1
            self.fastest_s = min(self.fastest_s, elapsed_s)


@dataclass(slots=True)
class _Trial:
    """Of one number of answers."""

    plain: _Steps = field(default_factory=_Steps)
    padded: _Steps = field(default_factory=_Steps)

    @property
    def is_next_padded(self) -> bool:
        if self.padded.count < _NUM_TRIALS:
            return self.padded.count < self.plain.count
        return self.padded.fastest_s < self.plain.fastest_s


class Padding:
    """``tile_rows``: as for ``PrefillBudget``; a padded step stays below it. None: nothing is ever padded."""

    def __init__(self, max_rows: int, tile_rows: int | None) -> None:
        self._most = 0 if tile_rows is None else min(tile_rows - 1, max_rows)
        self._trials: dict[int, _Trial] = {}

    def rows(self, num_answers: int) -> int:
        """Rows to add to a step of as many answers with one row each."""
        rest = -num_answers % _ROWS_AT_ONCE
        if not rest or not _ROWS_AT_ONCE < num_answers <= self._most - rest:
            return 0
        return rest if self._trials.setdefault(num_answers, _Trial()).is_next_padded else 0

    def observe(self, num_answers: int, elapsed_s: float, *, is_padded: bool) -> None:
        """Learn from the time of such a step, in seconds."""
        if (trial := self._trials.get(num_answers)) is not None:
            (trial.padded if is_padded else trial.plain).add(elapsed_s)
