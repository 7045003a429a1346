"""How the source of limits does, as the metrics show it.

Owns what is counted of its answers. ``directory`` notes each question's end, ``server/readings`` reads.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SourceHealth:
    """``is_up``: whether it has answered the last question. ``age_s``: since its last answer; None before the
    first. ``num_errors``: questions without one.
    """

    name: str
    is_up: bool
    age_s: float | None
    num_errors: int


class SourceWatch:
    """The counts of one source, on the event loop."""

    def __init__(self) -> None:
        self._is_up = False
        self._answered_at: float | None = None
        self._num_errors = 0

    def note_answer(self, now: float) -> None:
        """A question was answered."""
        self._is_up, self._answered_at = True, now

    def note_failure(self) -> None:
        """A question was not."""
        self._is_up = False
        self._num_errors += 1

    def health(self, name: str, now: float) -> SourceHealth:
        """How the source of that name does."""
        age_s = None if self._answered_at is None else now - self._answered_at
        return SourceHealth(name, self._is_up, age_s, self._num_errors)
