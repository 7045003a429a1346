"""What stands around content and calls: the reasoning in front of them, tags that only wrap them.

Owns two stages that are put in front of a parser of calls. They never look for calls themselves. Dialects
build their parsers with ``with_reasoning`` and ``WrappedStage``.
"""

from nexa_runtime.chat.dialects.base import ChatDelta, Dialect, Parser, plain
from nexa_runtime.chat.dialects.reading import SteppedParser, Steps, Stops, TrailingSpace


class _Stage(SteppedParser):
    """Hands the text on to another parser, without a look at it once its own part is over."""

    def __init__(self, inner: Parser) -> None:
        super().__init__()
        self._inner = inner
        self._is_passed = False

    def feed(self, text: str) -> list[ChatDelta]:
        return self._inner.feed(text) if self._is_passed else super().feed(text)

    def finish(self) -> list[ChatDelta]:
        return self._inner.finish() if self._is_passed else super().finish()

    def _pass_on(self, text: str) -> None:
        for delta in self._inner.feed(text):
            self._emit(delta)

    def _pass_rest(self) -> None:
        """The inner parser reads on from here."""
        self._pass_on(self._reader.rest())
        self._is_passed = True
        if self._reader.is_at_end:
            for delta in self._inner.finish():
                self._emit(delta)


class ReasoningStage(_Stage):
    """Reasoning between ``opening``, the first of the answer or already in the prompt, and ``closing``."""

    def __init__(self, opening: str, closing: str, inner: Parser, *, is_open: bool) -> None:
        super().__init__(inner)
        self._opening = opening
        self._closing = Stops([closing])
        self._is_open = is_open
        self._space = TrailingSpace()

    def _read(self) -> Steps[None]:
        space = yield from self._reader.space()
        is_opened = yield from self._reader.literal(self._opening)
        if is_opened or self._is_open:
            yield from self._reader.space()
            if (yield from self._reader.text(self._closing, self._think)) is None:
                self._say(self._space.take())
            yield from self._reader.space()
        else:
            self._pass_on(space)
        self._pass_rest()

    def _think(self, text: str) -> None:
        self._reader.taken.clear()
        self._say(self._space.add(plain(text)))

    def _say(self, text: str) -> None:
        if text:
            self._emit(ChatDelta(reasoning=text))


class WrappedStage(_Stage):
    """An answer that may stand between two tags: they are dropped, with the space inside of them."""

    def __init__(self, opening: str, closing: str, inner: Parser) -> None:
        super().__init__(inner)
        self._opening = opening
        self._closing = Stops([closing])
        self._space = TrailingSpace()

    def _read(self) -> Steps[None]:
        space = yield from self._reader.space()
        if (yield from self._reader.literal(self._opening)):
            yield from self._reader.space()
            if (yield from self._reader.text(self._closing, self._unwrap)) is None:
                self._pass_on(self._space.take())
            yield from self._reader.space()
        else:
            self._pass_on(space)
        self._pass_rest()

    def _unwrap(self, text: str) -> None:
        self._reader.taken.clear()
        self._pass_on(self._space.add(text))


def with_reasoning(dialect: Dialect, inner: Parser, *, is_reasoning: bool) -> Parser:
    """``inner`` behind a stage for the dialect's tags, if it has any."""
    if dialect.reasoning is None:
        return inner
    opening, closing = dialect.marked(dialect.reasoning.opening), dialect.marked(dialect.reasoning.closing)
    return ReasoningStage(opening, closing, inner, is_open=is_reasoning)
