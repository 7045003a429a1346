"""Tokens of one sequence to text, as it streams.

Owns the bytes and characters held back: a UTF-8 character is never split, and no part of a stop string is
ever shown. Pure but for the table of pieces. The engine thread calls it.
"""

import codecs
from collections.abc import Mapping
from collections.abc import Sequence as Items


class Detokenizer:
    """``pieces``: the bytes of every token. ``stops``: texts that end the answer, none of them empty.

    ``markers``: tokens that get these texts instead; the first character of each stands for nothing else, so
    it is replaced where other tokens write it.
    """

    def __init__(
        self, pieces: Items[bytes], stops: Items[str] = (), markers: Mapping[int, str] | None = None
    ) -> None:
        self._pieces = pieces
        self._stops = tuple(stops)
        self._markers = markers or {}
        self._reserved = {ord(text[0]): "\ufffd" for text in self._markers.values()}
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.is_stopped = False
        """Whether a stop string was found; nothing comes after it."""

    def feed(self, token: int) -> str:
        """Add a token; the text that can be shown now."""
        if not self._markers:
            return self._take(self._decoder.decode(self._pieces[token]))
        if (marker := self._markers.get(token)) is not None:
            return self._take(self._decoder.decode(b"", final=True) + marker)
        return self._take(self._decoder.decode(self._pieces[token]).translate(self._reserved))

    def flush(self) -> str:
        """The answer ends: what was held back. An unfinished character becomes U+FFFD."""
        text = self._take(self._decoder.decode(b"", final=True))
        held, self._held = self._held, ""
        return text if self.is_stopped else text + held

    def _take(self, text: str) -> str:
        if self.is_stopped:
            return ""
        if not self._stops:
            return text
        self._held += text
        end = min((at for stop in self._stops if (at := self._held.find(stop)) >= 0), default=-1)
        if end >= 0:
            self.is_stopped = True
            shown, self._held = self._held[:end], ""
            return shown
        keep = self._num_open()
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown

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
