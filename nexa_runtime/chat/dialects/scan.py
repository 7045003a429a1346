"""Reading an answer as it comes, for the families whose calls are not plain JSON.

Owns the cursor over the answer, the search for what opens a call, and what becomes of the text around calls
and of calls that turn out to be none. It knows no family's format: the parsers of the families are written as
generators that wait for more text where they need it.
"""

import re
from abc import abstractmethod
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

from nexa_runtime.chat.dialects.base import MARK, CallDelta, ChatDelta, Parser, new_call_id
from nexa_runtime.chat.messages import Tool

_T = TypeVar("_T")
Waiting = Generator[None, None, _T]
"""Reads; stops at a ``yield`` until there is more text."""

_SPACE = re.compile(r"\s*")
_NAME = re.compile(r"[A-Za-z0-9_-]*")
_MAX_NAME = 64


class AnswerEndedError(Exception):
    """There is no more text, and the reader needs some."""


class NotACallError(Exception):
    """What looked like a call is none."""


class Stops:
    """Texts to look for. None of them is inside another, but at its end."""

    def __init__(self, *texts: str) -> None:
        self._texts = texts
        self._longest = max(map(len, texts), default=0)
        self._pattern = re.compile("|".join(map(re.escape, texts)) if texts else r"(?!)")

    def find(self, text: str, start: int) -> re.Match[str] | None:
        """The first of them in ``text``."""
        return self._pattern.search(text, start)

    def begun(self, text: str, start: int) -> int:
        """How many characters at the end of ``text`` may be the beginning of one."""
        for length in range(min(self._longest - 1, len(text) - start), 0, -1):
            if any(one.startswith(text[-length:]) for one in self._texts):
                return length
        return 0


class Cursor:
    """The text of an answer and how far it is read. A reader that finds no text waits for it."""

    def __init__(self) -> None:
        self.is_ended = False
        self._text = ""
        self._at = 0
        self._read: list[str] = []

    def feed(self, text: str) -> None:
        """``text`` comes after what is there."""
        self._text = self._text[self._at :] + text
        self._at = 0

    def forget(self) -> str:
        """What was read since the last time."""
        text = "".join(self._read)
        self._read.clear()
        return text

    def rest(self) -> str:
        """Reads all that is left."""
        return self._take(len(self._text) - self._at)

    def peek(self) -> Waiting[str]:
        """The next character."""
        while self._at == len(self._text):
            yield from self._more()
        return self._text[self._at]

    def char(self) -> Waiting[str]:
        """Reads the next character."""
        yield from self.peek()
        return self._take(1)

    def literal(self, text: str) -> Waiting[bool]:
        """Reads ``text`` if it comes next."""
        while not self._text.startswith(text, self._at):
            if not text.startswith(self._text[self._at : self._at + len(text)]):
                return False
            yield from self._more()
        self._take(len(text))
        return True

    def expect(self, text: str) -> Waiting[None]:
        """Reads ``text``, without which this is no call."""
        if not (yield from self.literal(text)):
            raise NotACallError

    def space(self) -> Waiting[None]:
        """Reads white space up to what is none."""
        yield from self.run(_SPACE)

    def run(self, pattern: re.Pattern[str], limit: int | None = None) -> Waiting[str]:
        """Reads characters that fit ``pattern``, which is for any number of them, at most ``limit``."""
        parts: list[str] = []
        length = 0
        while True:
            match = pattern.match(self._text, self._at)
            part = self._take(len(match[0]) if match else 0)
            parts.append(part)
            length += len(part)
            if limit is not None and length > limit:
                raise NotACallError
            if self._at < len(self._text):
                return "".join(parts)
            yield from self._more()

    def name(self) -> Waiting[str]:
        """Reads the name of a function."""
        return (yield from self.run(_NAME, _MAX_NAME))

    def until(self, stops: Stops, sink: Callable[[str], None]) -> Waiting[str]:
        """Reads up to and with one of ``stops``, which it returns; ``sink`` gets what is before it."""
        stop = yield from self.before(stops, sink)
        self._take(len(stop))
        return stop

    def before(self, stops: Stops, sink: Callable[[str], None]) -> Waiting[str]:
        """As ``until``, but what it returns is left to be read."""
        while True:
            match = stops.find(self._text, self._at)
            end = match.start() if match else len(self._text) - stops.begun(self._text, self._at)
            if end > self._at:
                sink(self._take(end - self._at))
            if match:
                return match[0]
            yield from self._more()

    def word(self, stop: Stops, limit: int) -> Waiting[str]:
        """What is before ``stop``, which is read too; at most ``limit`` characters."""
        parts: list[str] = []
        length = 0

        def add(part: str) -> None:
            nonlocal length
            parts.append(part)
            length += len(part)
            if length > limit:
                raise NotACallError

        yield from self.until(stop, add)
        return plain("".join(parts))

    def _take(self, length: int) -> str:
        text = self._text[self._at : self._at + length]
        self._at += length
        if text:
            self._read.append(text)
        return text

    def _more(self) -> Waiting[None]:
        if self.is_ended:
            raise AnswerEndedError
        yield


class SpaceKeeper:
    """Text of which white space at the end is kept back, until it is known whether it is wanted."""

    def __init__(self) -> None:
        self.skips_leading = False
        self._kept: list[str] = []

    def feed(self, text: str) -> str:
        """What can be handed on."""
        if self.skips_leading:
            text = text.lstrip()
        bare = text.rstrip()
        if not bare:
            self._kept.append(text)
            return ""
        self.skips_leading = False
        ready = "".join(self._kept) + bare
        self._kept = [text[len(bare) :]]
        return ready

    def flush(self) -> str:
        """The white space that was kept."""
        text = "".join(self._kept)
        self._kept.clear()
        return text

    def drop(self) -> None:
        """The white space that was kept, and any that comes now, is not wanted."""
        self._kept.clear()
        self.skips_leading = True


class CallParser(Parser):
    """Content with calls in it. The families say what opens a call, and read one.

    A call is handed on as it comes where the answer is constrained; else when it is whole.
    """

    def __init__(self, tools: Sequence[Tool], openers: Sequence[str], *, is_constrained: bool) -> None:
        self.cursor = Cursor()
        self.tools = {tool.name: tool for tool in tools}
        self._is_constrained = is_constrained
        self._openers = Stops(*(openers if tools else ()))
        self._deltas: list[ChatDelta] = []
        self._held: list[ChatDelta] = []
        self._calls = 0
        self._is_begun = False
        self._space = SpaceKeeper()
        self._reader = self._answer()

    def feed(self, text: str) -> list[ChatDelta]:
        self.cursor.feed(text)
        next(self._reader, None)
        return self._taken()

    def finish(self) -> list[ChatDelta]:
        self.cursor.is_ended = True
        next(self._reader, None)
        return self._taken()

    @abstractmethod
    def read_calls(self, opener: str) -> Waiting[None]:
        """Reads what follows an opener; ``begin`` and ``add`` what is known of it."""

    def read_closing(self) -> Waiting[None]:
        """Reads what may follow calls that are whole, and says nothing."""
        yield from ()

    def read_start(self) -> Waiting[None]:
        """Reads calls at the very start of the answer that have no opener: for those that write so."""
        yield from ()

    def begin(self, name: str) -> None:
        """A call of this function follows."""
        if name not in self.tools:
            raise NotACallError
        if self._is_constrained:
            self._space.drop()
        self._call(CallDelta(self._calls, "", new_call_id(), name))
        self._calls += 1

    def add(self, arguments: str) -> None:
        """More of the arguments of the call that has begun."""
        if arguments:
            self._call(CallDelta(self._calls - 1, arguments))

    def attempt(self, calls: Waiting[None]) -> Waiting[None]:
        """Reads what may be calls; if it is none, it is content."""
        first = self._calls
        self._is_begun = False
        try:
            yield from calls
        except (NotACallError, AnswerEndedError) as error:
            self._held.clear()
            raw = self.cursor.forget()
            if not self._is_constrained:
                self._calls = first
            if isinstance(error, NotACallError) or not self._is_begun:
                self._content(raw)
            else:
                self.cursor.rest()
            return
        self._space.drop()
        self._deltas += self._held
        self._held.clear()
        try:
            yield from self.read_closing()
        except AnswerEndedError:
            self.cursor.rest()
        self.cursor.forget()

    def _answer(self) -> Waiting[None]:
        try:
            if self.tools:
                yield from self.read_start()
            while True:
                opener = yield from self.cursor.until(self._openers, self._before)
                yield from self.attempt(self.read_calls(opener))
        except AnswerEndedError:
            self._content(self.cursor.rest())
            self._say(self._space.flush())

    def _call(self, delta: CallDelta) -> None:
        if self._is_constrained:
            self._deltas.append(ChatDelta(call=delta))
            self._is_begun = True
            self.cursor.forget()
        else:
            self._held.append(ChatDelta(call=delta))

    def _before(self, text: str) -> None:
        self.cursor.forget()
        self._content(text)

    def _content(self, text: str) -> None:
        self._say(self._space.feed(plain(text)))

    def _say(self, text: str) -> None:
        if text:
            self._deltas.append(ChatDelta(content=text))

    def _taken(self) -> list[ChatDelta]:
        deltas, self._deltas = self._deltas, []
        return deltas


def plain(text: str) -> str:
    """``text`` as it is shown: markers are but their letters."""
    return text.replace(MARK, "")
