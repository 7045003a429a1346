"""Whether a step of answers is faster with rows that are nobody's.

Owns what was learned of it. Pure: measured times come in. The scheduler asks it.

On a processor llama.cpp multiplies some rows at once and the rest in smaller groups or one by one, each time
with all of a matrix read anew: with a 0.5B model seven answers took 94 ms and eight took 76. How many rows go
at once depends on the types of the weights (with K-quants of 1.5B six took 107 ms and eight took 127), and
experts have theirs one by one; and each added row costs more the more cells are held. So for each number of
answers a few steps with and without padding take turns, what was faster stays, and is tried again later.
"""

import math
from dataclasses import dataclass

ROWS_AT_ONCE = 4
"""Rows are filled up to a multiple of it, as most of llama.cpp's kernels that take several rows do."""

_NUM_TRIALS = 8
"""Steps of a trial: plain, padded, padded, plain and once more, so that a machine that slows down while it
lasts favours neither. Of each kind the fastest counts, for what else runs only makes a step slower.
"""

_STEPS_PER_TRIAL = 512
"""So many steps after a trial began the next one does: contexts grow, and so does what a row costs."""


@dataclass(slots=True)
class _Trial:
    """Of one number of answers: the steps since it began, and the fastest of either kind, in seconds."""

    num_steps: int = 0
    plain_s: float = math.inf
    padded_s: float = math.inf

    @property
    def is_next_padded(self) -> bool:
        if self.num_steps < _NUM_TRIALS:
            return self.num_steps % 4 in (1, 2)
        return self.padded_s < self.plain_s

    def add(self, elapsed_s: float) -> None:
        if self.num_steps < _NUM_TRIALS:
            if self.is_next_padded:
                self.padded_s = min(self.padded_s, elapsed_s)
            else:
                self.plain_s = min(self.plain_s, elapsed_s)
        self.num_steps += 1


class Padding:
    """``tile_rows``: as for ``PrefillBudget``; a padded step stays below it. None: nothing is ever padded."""

    def __init__(self, max_rows: int, tile_rows: int | None) -> None:
        self._most = 0 if tile_rows is None else min(tile_rows - 1, max_rows)
        self._trials: dict[int, _Trial] = {}

    def rows(self, num_answers: int) -> int:
        """Rows to add to a step of as many answers with one row each."""
        rest = -num_answers % ROWS_AT_ONCE
        if not rest or not ROWS_AT_ONCE < num_answers <= self._most - rest:
            return 0
        trial = self._trials.get(num_answers)
        if trial is None or trial.num_steps >= _STEPS_PER_TRIAL:
            trial = self._trials[num_answers] = _Trial()
        return rest if trial.is_next_padded else 0

    def observe(self, num_answers: int, elapsed_s: float, *, is_padded: bool) -> None:
        """Learn from the time of such a step, in seconds, if it was as ``rows`` wanted it."""
        trial = self._trials.get(num_answers)
        if trial is not None and trial.is_next_padded == is_padded:
            trial.add(elapsed_s)
