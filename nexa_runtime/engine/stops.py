"""Texts that end an answer, found as it comes.

Owns what is held back until it is known not to be part of one. Pure. The detokenizer uses it on the engine
thread; ``serving`` does, where only an answer's content may be stopped and not the calls in it.
"""

from collections.abc import Sequence


class StopFinder:
    """``stops``: none of them empty."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None
        """The one that ended the text; nothing comes after it."""

    @property
    def is_stopped(self) -> bool:
        """Whether one was found."""
        return self.found is not None

    def feed(self, text: str) -> str:
        """Add text; what can be shown now."""
        if self.found is not None:
            return ""
        if not self._stops:
            return text
        self._held += text
        if hits := [(at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]:
            end, self.found = min(hits)
            shown, self._held = self._held[:end], ""
            return shown
        keep = self._num_open()
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown

    def flush(self) -> str:
        """What was held back: nothing that goes on from it comes."""
        held, self._held = self._held, ""
        return held

    def _num_open(self) -> int:
        """Length of the longest end of the held text that a stop string starts with."""
        held = self._held
        return max(
            (
                size
                for stop in self._stops
                for size in range(1, min(len(stop), len(held) + 1))
                if held.endswith(stop[:size])
            ),
            default=0,
        )
