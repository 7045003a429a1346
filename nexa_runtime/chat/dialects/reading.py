"""Reading an answer as if it were all there, while it comes piece by piece.

Owns ``Reader``, the text that came and was not read yet, and ``SteppedParser``, whose ``_read`` is written
like a parser of a whole text: its steps pause where more text is needed. Knows nothing of calls. The parsers
of the dialects are built on it.
"""

import re
from abc import abstractmethod
from collections.abc import Callable, Generator, Iterable
from dataclasses import replace
from typing import TypeVar

from nexa_runtime.chat.dialects.base import ChatDelta, Parser
from nexa_runtime.chat.dialects.json_scan import SPACE, JsonScanner

T = TypeVar("T")
Steps = Generator[None, None, T]
"""Something to ``yield from``: it pauses until there is more text, and returns a T."""
Sink = Callable[[str], None]

_NAME = re.compile(r"[A-Za-z0-9_-]*")
_MAX_NAME_LENGTH = 64


class Stops:
    """Texts to look for, none of them the beginning of another."""

    def __init__(self, texts: Iterable[str]) -> None:
        texts = list(texts)
        self.pattern = re.compile("|".join(map(re.escape, texts)) or r"\Z.")
        self._longest = max(map(len, texts), default=0)
        self._beginnings = {text[:end] for text in texts for end in range(1, len(text))}

    def first_maybe(self, text: str, start: int) -> int:
        """Where, from ``start`` on, something begins that more text may turn into one of them."""
        for at in range(max(start, len(text) - self._longest + 1), len(text)):
            if text[at:] in self._beginnings:
                return at
        return len(text)


class Reader:
    """The text to come. ``taken``: what was read since somebody cleared it."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self._text = ""
        self._at = 0
        self._is_over = False

    def add(self, text: str) -> None:
        self._text = self._text[self._at :] + text
        self._at = 0

    def end(self) -> None:
        """Nothing follows."""
        self._is_over = True

    @property
    def is_at_end(self) -> bool:
        """Whether no text follows what is there."""
        return self._is_over

    def rest(self) -> str:
        """Reads all that is there."""
        return self._take(len(self._text))

    def unread(self, text: str) -> None:
        """Puts back what was read last."""
        self._text = text + self._text[self._at :]
        self._at = 0
        size = len(text)
        while size > 0:
            size -= len(self.taken.pop())

    def peek(self) -> Steps[str]:
        """The next character; empty at the end."""
        while self._at == len(self._text) and not self._is_over:
            yield
        return self._text[self._at : self._at + 1]

    def space(self) -> Steps[str]:
        """Reads over space."""
        start = len(self.taken)
        while (char := (yield from self.peek())) and char in SPACE:
            end = self._at
            while end < len(self._text) and self._text[end] in SPACE:
                end += 1
            self._take(end)
        return "".join(self.taken[start:])

    def literal(self, text: str) -> Steps[bool]:
        """Reads ``text`` if it is what follows, else nothing."""
        while not (is_next := self._text.startswith(text, self._at)):
            rest = self._text[self._at : self._at + len(text)]
            if self._is_over or len(rest) == len(text) or not text.startswith(rest):
                return False
            yield
        self._take(self._at + len(text))
        return is_next

    def name(self) -> Steps[str]:
        """Reads what may be a function's name: empty if nothing here is, too long if it goes on."""
        name = ""
        while len(name) <= _MAX_NAME_LENGTH and (yield from self.peek()):
            match = _NAME.match(self._text, self._at)
            if match is None or not match[0]:
                break
            name += match[0]
            self._take(match.end())
        return name

    def text(self, stops: Stops, sink: Sink, *, leaves_rest: bool = False) -> Steps[str | None]:
        """Reads up to the first of ``stops``, and that, which it returns; None at the end of all text, where
        ``leaves_rest`` leaves what may be the beginning of one.
        """
        while (yield from self.peek()):
            if match := stops.pattern.search(self._text, self._at):
                self._give(match.start(), sink)
                self._take(match.end())
                return match[0]
            self._give(stops.first_maybe(self._text, self._at), sink)
            if self._is_over and leaves_rest:
                return None
            if self._is_over:
                self._give(len(self._text), sink)
            elif self._at < len(self._text):
                yield
        return None

    def json(self, sink: Sink) -> Steps[bool]:
        """Reads a JSON value that begins here; False where it breaks off."""
        scanner = JsonScanner()
        while (yield from self.peek()):
            self._give(scanner.feed(self._text, self._at), sink)
            if scanner.is_complete or scanner.is_broken:
                break
        scanner.finish()
        return scanner.is_complete

    def _give(self, end: int, sink: Sink) -> None:
        if end > self._at:
            sink(self._take(end))

    def _take(self, end: int) -> str:
        text = self._text[self._at : end]
        self._at = end
        self.taken.append(text)
        return text


class TrailingSpace:
    """Holds back the space at the end of a text until it is known whether more follows."""

    def __init__(self) -> None:
        self._held: list[str] = []

    def add(self, text: str) -> str:
        """What can be handed on, now that ``text`` came."""
        kept = text.rstrip()
        if kept:
            kept = self.take() + kept
            text = text[len(text.rstrip()) :]
        if text:
            self._held.append(text)
        return kept

    def take(self) -> str:
        """What is held, which it is no longer."""
        held = "".join(self._held)
        self._held.clear()
        return held


class SteppedParser(Parser):
    """A parser whose ``_read`` reads ``_reader`` from the first character to the last."""

    def __init__(self) -> None:
        self._reader = Reader()
        self._deltas: list[ChatDelta] = []
        self._steps = self._read()

    def feed(self, text: str) -> list[ChatDelta]:
        self._reader.add(text)
        return self._run()

    def finish(self) -> list[ChatDelta]:
        self._reader.end()
        return self._run()

    @abstractmethod
    def _read(self) -> Steps[None]:
        """Reads the answer and emits what it says."""

    def _emit(self, delta: ChatDelta) -> None:
        """Adds to what this piece of text brings; what continues the last delta is put together with it."""
        last = self._deltas[-1] if self._deltas else None
        if last and delta.content and last.content:
            self._deltas[-1] = replace(last, content=last.content + delta.content)
        elif last and delta.reasoning and last.reasoning:
            self._deltas[-1] = replace(last, reasoning=last.reasoning + delta.reasoning)
        elif last and last.call and delta.call and delta.call.name is None:
            call = replace(last.call, arguments=last.call.arguments + delta.call.arguments)
            self._deltas[-1] = replace(last, call=call)
        else:
            self._deltas.append(delta)

    def _run(self) -> list[ChatDelta]:
        next(self._steps, None)
        deltas, self._deltas = self._deltas, []
        return deltas
