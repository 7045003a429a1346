"""How much of a prompt may ride in a step beside running answers.

Owns what was learned of the machine's speed. Pure: measured times come in. The scheduler asks it.
"""

from nexa_runtime.engine.sequence import StepPlan

MIN_PREFILL_TOKENS = 32
"""Prefill's part of a mixed step; prompts never starve. Also the grain of the budget, so that step shapes
recur.
"""

PREFILL_STEP_S = 0.5
FIRST_STEP_TOKENS = 128
"""The size of a step of prompts alone, until the machine's speed is known."""

DEFAULT_DECODE_WORK = 2.0
MAX_DECODE_WORK = 8.0

_SMOOTHING = 0.2


class PrefillBudget:
    """How many prompt tokens may ride with the decode rows: as many as keep the step inside its target.

    ``target_s``: seconds that a mixed step may take; None: twice the time of a decode-only step. Learned
    online from measured steps: the time of decode-only steps, and the time a prompt token adds.
    """

    def __init__(self, max_tokens: int, target_s: float | None = None) -> None:
        self._max_tokens = max_tokens
        self._target_s = target_s
        self._decode_step_s: float | None = None
        self._decode_row_s: float | None = None
        self._prefill_token_s: float | None = None

    def tokens(self) -> int:
        """The budget of the next mixed step, a multiple of ``MIN_PREFILL_TOKENS``."""
        if self._decode_step_s is None or self._prefill_token_s is None:
            return MIN_PREFILL_TOKENS
        target_s = 2 * self._decode_step_s if self._target_s is None else self._target_s
        affordable = int(max(target_s - self._decode_step_s, 0.0) / self._prefill_token_s)
        grains = max(1, affordable // MIN_PREFILL_TOKENS)
        return min(grains * MIN_PREFILL_TOKENS, self._max_tokens)

    @property
    def decode_work(self) -> float:
        """Work of a decode row, where a prompt token is 1: what it costs this machine in time, within
        reason.
        """
        if self._decode_row_s is None or self._prefill_token_s is None:
            return DEFAULT_DECODE_WORK
        return min(max(self._decode_row_s / self._prefill_token_s, 1.0), MAX_DECODE_WORK)

    def whole_step(self) -> int:
        """Prompt tokens of a step in which nobody is answering: as many as take ``PREFILL_STEP_S``.

        Whoever arrives meanwhile waits for the step to end, and on a processor larger ones are no faster.
        """
        if self._prefill_token_s is None:
            return min(FIRST_STEP_TOKENS, self._max_tokens)
        grains = int(PREFILL_STEP_S / self._prefill_token_s) // MIN_PREFILL_TOKENS
        return min(max(grains, 2) * MIN_PREFILL_TOKENS, self._max_tokens)

    def observe(self, plan: StepPlan, elapsed_s: float) -> None:
        """Learn from a step's time, in seconds."""
        num_prefill = plan.num_rows - plan.num_decode_rows
        if not num_prefill:
            self._decode_step_s = _smooth(self._decode_step_s, elapsed_s)
            self._decode_row_s = _smooth(self._decode_row_s, elapsed_s / plan.num_decode_rows)
        elif num_prefill >= MIN_PREFILL_TOKENS:
            decode_s = (self._decode_step_s or 0.0) if plan.num_decode_rows else 0.0
            per_token_s = max(elapsed_s - decode_s, 0.1 * elapsed_s) / num_prefill
            self._prefill_token_s = _smooth(self._prefill_token_s, per_token_s)


def _smooth(old: float | None, new: float) -> float:
    return new if old is None else old + _SMOOTHING * (new - old)
