"""How much of a prompt may ride in a step beside running answers.

Owns what was learned of the machine's speed. Pure: measured times come in. The scheduler asks it.
"""

import itertools
from dataclasses import dataclass

from nexa_runtime.engine.padding import ROWS_AT_ONCE
from nexa_runtime.engine.sequence import StepPlan

MIN_PREFILL_TOKENS = 32
"""Prefill's part of a mixed step; prompts never starve. Also the grain of the budget, so that step shapes
recur.
"""

PREFILL_STEP_S = 1.0
"""About how long prompts hold a step: whoever answers waits for it, and so does whoever arrives. Half as long
again where nobody answers and a prompt ends with it.
"""
FIRST_STEP_TOKENS = 128
"""The size of a step of prompts alone, until the machine's speed is known."""

FAR_TOKENS = 1024
"""From here on attention weighs so much that a prompt is computed tile by tile, whoever is answering."""
FEW_ANSWERS = 1
"""As many may ride with a prompt: row by row, attention passes over every cell that anyone has."""

DEFAULT_DECODE_WORK = 2.0
MAX_DECODE_WORK = 8.0

_SMOOTHING = 0.2


@dataclass(frozen=True, slots=True)
class PromptRows:
    """Rows of a step that prompts get: ``wanted``, and up to ``most`` where a prompt ends with them."""

    wanted: int
    most: int


@dataclass(frozen=True, slots=True)
class PendingPrompt:
    """What is to come of a prompt: ``count`` tokens after the ``start`` that are computed or cached. ``own``:
    how many it had to compute in all, without what was cached.
    """

    start: int
    count: int
    own: int


class PrefillBudget:
    """How many prompt tokens a step gets, learned online from measured steps: the time of decode-only steps,
    and the time a prompt token adds.

    ``target_s``: seconds that a step may take beside running answers; None: twice the time of a decode-only
    step. ``tile_rows``: None, or the rows from which on llama.cpp computes attention in tiles of as many, as
    it does on a processor (``GGML_FA_TILE_Q``). A tile costs as if each of its rows saw what any of them
    sees: cheap for rows of one prompt, dear where answers lie between. So a step has fewer rows, or rows of
    prompts alone.
    """

    def __init__(self, max_tokens: int, target_s: float | None = None, tile_rows: int | None = None) -> None:
        self._max_tokens = max_tokens
        self._target_s = target_s
        self._tile_rows = tile_rows
        self._decode_step_s: float | None = None
        self._decode_row_s: float | None = None
        self._prefill_token_s: float | None = None

    def mixed(self, num_decode_rows: int) -> PromptRows:
        """For a step with so many decode rows: as many as keep it inside its target, in grains of
        ``MIN_PREFILL_TOKENS``; without a target what fits under a tile, for ``PREFILL_STEP_S`` or so.
        """
        wanted = self._affordable()
        if self._tile_rows is None or wanted >= self._tile_rows:
            return PromptRows(wanted, min(wanted + MIN_PREFILL_TOKENS, self._max_tokens))
        most = max(self._tile_rows - 1 - num_decode_rows, MIN_PREFILL_TOKENS)
        if self._target_s is None and self._prefill_token_s is not None:
            wanted = max(wanted, min(most, int(PREFILL_STEP_S / self._prefill_token_s)))
        wanted -= (num_decode_rows + wanted) % ROWS_AT_ONCE
        return PromptRows(wanted, min(wanted + MIN_PREFILL_TOKENS, most))

    def answer_rows(self, max_rows: int) -> int:
        """Most rows that answers take in a step of ``max_rows``: fewer than a tile, in which each of them
        would cost as much as if it saw the cells of all.
        """
        return max_rows if self._tile_rows is None else min(max_rows, self._tile_rows - 1)

    def _affordable(self) -> int:
        if self._decode_step_s is None or self._prefill_token_s is None:
            return MIN_PREFILL_TOKENS
        target_s = 2 * self._decode_step_s if self._target_s is None else self._target_s
        affordable = int(max(target_s - self._decode_step_s, 0.0) / self._prefill_token_s)
        grains = max(1, affordable // MIN_PREFILL_TOKENS)
        return min(grains * MIN_PREFILL_TOKENS, self._max_tokens)

    def turn(self, num_answers: int, prompts: list[PendingPrompt]) -> int | None:
        """Where prompts and answers have steps of their own: rows that prompts, in their order, take between
        two steps of answers. None: they share steps.

        Larger turns waste less: what is alike from step to step is not built anew. More than one step of
        answers between would be taken by few of them, while those that wait have none.
        """
        if self._tile_rows is None or self._prefill_token_s is None:
            return None
        limit_s = PREFILL_STEP_S if self._target_s is None else self._target_s
        num_tiles = round(limit_s / self._prefill_token_s / self._tile_rows)
        num_pending = sum(one.count for one in prompts)
        num_near = sum(one.count for one in itertools.takewhile(lambda one: one.start < FAR_TOKENS, prompts))
        if not num_near:
            # A tile takes ever longer there, which what was learned does not tell; a rest takes longer still.
            is_asked_for_less = self._target_s is not None and not num_tiles
            is_rest = num_pending < self._tile_rows
            return MIN_PREFILL_TOKENS if is_rest or is_asked_for_less else self._tile_rows
        is_cheap_together = len(prompts) <= num_answers <= FEW_ANSWERS
        is_small = num_pending <= min(MIN_PREFILL_TOKENS, self._tile_rows - 1 - num_answers)
        if not num_tiles or is_cheap_together or is_small:
            return None
        if num_near < num_pending:
            num_tiles = min(num_tiles, max(num_near // self._tile_rows, 1))
        return num_tiles * self._tile_rows

    @property
    def decode_work(self) -> float:
        """Work of a decode row, where a prompt token is 1: what it costs this machine in time, within
        reason.
        """
        if self._decode_row_s is None or self._prefill_token_s is None:
            return DEFAULT_DECODE_WORK
        return min(max(self._decode_row_s / self._prefill_token_s, 1.0), MAX_DECODE_WORK)

    def prompts_alone(self, prompts: list[PendingPrompt], limit: int | None = None) -> PromptRows:
        """For a step of prompts, in their order: as many rows as take about ``PREFILL_STEP_S``, in whole
        tiles, and up to half as many more where a prompt ends with them. A short one before longer ones gets
        a step of one tile: it need not wait for theirs.

        ``limit``: what is left of the prompts' turn, which no step goes beyond.
        """
        wanted = FIRST_STEP_TOKENS
        if self._tile_rows is not None and _is_short_before_long(prompts, self._tile_rows):
            wanted = self._tile_rows
        elif self._prefill_token_s is not None:
            grain = self._tile_rows or 2 * MIN_PREFILL_TOKENS
            wanted = max(round(PREFILL_STEP_S / self._prefill_token_s / grain), 1) * grain
        most = min(limit or self._max_tokens, self._max_tokens)
        wanted = min(wanted, most)
        return PromptRows(wanted, min(wanted + wanted // 2, most))

    def observe(self, plan: StepPlan, elapsed_s: float) -> None:
        """Learn from a step's time, in seconds."""
        num_prefill = plan.num_rows - plan.num_decode_rows
        if not num_prefill:
            self._decode_step_s = _smooth(self._decode_step_s, elapsed_s)
            self._decode_row_s = _smooth(self._decode_row_s, elapsed_s / plan.num_decode_rows)
        elif num_prefill > MIN_PREFILL_TOKENS - ROWS_AT_ONCE:  # a grain, in fours with the answers
            decode_s = (self._decode_step_s or 0.0) if plan.num_decode_rows else 0.0
            per_token_s = max(elapsed_s - decode_s, 0.1 * elapsed_s) / num_prefill
            self._prefill_token_s = _smooth(self._prefill_token_s, per_token_s)


def _smooth(old: float | None, new: float) -> float:
    return new if old is None else old + _SMOOTHING * (new - old)


def _is_short_before_long(prompts: list[PendingPrompt], num_rows: int) -> bool:
    """Whether the first is one of at most ``num_rows``, and another has more."""
    return bool(prompts) and prompts[0].own <= num_rows < max(one.count for one in prompts)
