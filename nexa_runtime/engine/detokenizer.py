"""Tokens of one sequence to text, as it streams.

Owns the bytes and characters held back: a UTF-8 character is never split, and no part of a stop string is
ever shown. Pure but for the table of pieces. The engine thread calls it.
"""

import codecs
from collections.abc import Mapping
from collections.abc import Sequence as Items

from nexa_runtime.engine.stops import StopFinder


class Detokenizer:
    """``pieces``: the bytes of every token. ``stops``: texts that end the answer, none of them empty.

    ``markers``: tokens that get these texts instead; the first character of each stands for nothing else, so
    it is replaced where other tokens write it.
    """

    def __init__(
        self, pieces: Items[bytes], stops: Items[str] = (), markers: Mapping[int, str] | None = None
    ) -> None:
        self._pieces = pieces
        self._stops = StopFinder(stops)
        self._markers = markers or {}
        self._reserved = {ord(text[0]): "\ufffd" for text in self._markers.values()}
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string was found; nothing comes after it."""
        return self._stops.is_stopped

    @property
    def stop(self) -> str | None:
        """The stop string that was found."""
        return self._stops.found

    def feed(self, token: int) -> str:
        """Add a token; the text that can be shown now."""
        if not self._markers:
            return self._stops.feed(self._decoder.decode(self._pieces[token]))
        if (marker := self._markers.get(token)) is not None:
            return self._stops.feed(self._decoder.decode(b"", final=True) + marker)
        return self._stops.feed(self._decoder.decode(self._pieces[token]).translate(self._reserved))

    def flush(self) -> str:
        """The answer ends: what was held back. An unfinished character becomes U+FFFD."""
        return self._stops.feed(self._decoder.decode(b"", final=True)) + self._stops.flush()
