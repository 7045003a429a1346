"""Reading what is not JSON: words, names of parameters, single characters.

Owns the small readers that several families need. Each raises ``NotACallError`` where it finds nothing or the
answer ends. The parsers of the dialects that are not plain JSON use them.
"""

from nexa_runtime.chat.dialects.base import plain
from nexa_runtime.chat.dialects.calls import NotACallError
from nexa_runtime.chat.dialects.reading import Reader, Sink, Steps, Stops


def char(reader: Reader) -> Steps[str]:
    """The next character."""
    one = yield from reader.peek()
    if not (yield from reader.literal(one or " ")):
        raise NotACallError
    return one


def expect(reader: Reader, text: str) -> Steps[None]:
    """Reads ``text``, which must be next."""
    if not (yield from reader.literal(text)):
        raise NotACallError


def run(reader: Reader, characters: frozenset[str], limit: int) -> Steps[str]:
    """All that follows of ``characters``; at most ``limit``."""
    parts: list[str] = []
    while (one := (yield from reader.peek())) and one in characters:
        yield from reader.literal(one)
        parts.append(one)
        if len(parts) > limit:
            raise NotACallError
    return "".join(parts)


def word(reader: Reader, stop: str, limit: int) -> Steps[str]:
    """What stands before ``stop``, which is read too; at most ``limit`` characters."""
    parts: list[str] = []
    while not (yield from reader.literal(stop)):
        if len(parts) == limit:
            raise NotACallError
        parts.append((yield from char(reader)))
    return plain("".join(parts))


def until(reader: Reader, stops: Stops, sink: Sink) -> Steps[str]:
    """Reads up to and with one of ``stops``, which it returns."""
    stop = yield from reader.text(stops, sink, leaves_rest=True)
    if stop is None:
        raise NotACallError
    return stop
