"""Calls in an answer, whatever surrounds them.

Owns what all dialects agree on: what a call is and what becomes of text that only looks like one, how calls
are handed on, and how call objects in JSON are read. It knows no family's markers. The families' parsers
derive from ``CallParser``.

A call whose name is none of the tools' is no call. Without a constraint it is held back until it is whole
and its arguments are an object; what turns out to be none is content, to the last character. Under a
constraint it is handed on as it comes, and where the answer is cut in what surrounds a call, what was held
back of that is dropped: it is markup. Space around calls is dropped, what follows them is content again.
"""

from abc import abstractmethod
from collections.abc import Iterable, Sequence

from nexa_runtime.chat.dialects.base import CallDelta, ChatDelta, new_call_id, plain
from nexa_runtime.chat.dialects.json_scan import object_text, text_of
from nexa_runtime.chat.dialects.reading import Sink, SteppedParser, Steps, Stops, TrailingSpace
from nexa_runtime.chat.messages import Tool

_NAME_KEYS = ("name", "tool_name")
_ARGUMENTS_KEYS = ("arguments", "parameters")
_FUNCTION_KEY = "function"


class NotACallError(Exception):
    """What was taken for a call is none."""


class CallParser(SteppedParser):
    """Content, and blocks of calls that begin with one of ``triggers``."""

    def __init__(self, tools: Sequence[Tool], triggers: Iterable[str], *, is_constrained: bool) -> None:
        super().__init__()
        self._names = {tool.name for tool in tools}
        self._triggers = Stops(triggers if tools else ())
        self._is_constrained = is_constrained
        self._num_calls = 0
        self._num_before = 0
        self._name: str | None = None
        self._arguments: list[str] = []
        self._early: list[str] = []
        self._has_arguments = False
        self._space = TrailingSpace()
        self._is_after_call = False
        self._has_content = False
        """Whether there is any, since the last call."""
        self._has_written = False
        """Whether anything was read as content, in this block."""

    def feed(self, text: str) -> list[ChatDelta]:
        if self._names:
            return super().feed(text)
        shown = plain(text)
        return [ChatDelta(content=shown)] if shown else []

    def _read(self) -> Steps[None]:
        while trigger := (yield from self._reader.text(self._triggers, self._write, leaves_rest=True)):
            self._reader.taken[:] = [trigger]
            yield from self._attempt(trigger)
        # With a grammar, what is all but nothing begins a call. Behind words, it may be a part of them.
        if self._has_content or not self._is_constrained:
            self._write(self._reader.rest())
        if not self._is_after_call:
            self._say(self._space.take())

    @abstractmethod
    def _block(self, trigger: str) -> Steps[None]:
        """Reads the calls behind ``trigger``, up to the last thing that belongs to them. Raises
        ``NotACallError``.
        """

    def _attempt(self, trigger: str) -> Steps[None]:
        """Reads a block, of which ``trigger`` was taken. What of it is no call becomes content."""
        self._num_before = self._num_calls
        self._has_written = is_content = False
        try:
            yield from self._block(trigger)
        except NotACallError:
            is_content = True
        is_cut = self._is_constrained and self._reader.is_at_end
        if is_cut:
            self._reader.rest()
            if not self._has_written:
                self._space.take()
        if self._name is not None and self._is_constrained:
            self._end_call()
        elif not is_cut and (is_content or not self._has_calls()):
            self._write("".join(self._reader.taken))
        self._name = None

    def _has_calls(self) -> bool:
        """Whether this block has."""
        return self._num_calls > self._num_before

    def _write(self, text: str) -> None:
        self._reader.taken.clear()
        self._has_written = True
        text = self._space.add(plain(text))
        if text and self._is_after_call:
            text = text.lstrip()
            self._is_after_call = False
        self._say(text)

    def _say(self, text: str) -> None:
        if text:
            self._has_content = True
            self._emit(ChatDelta(content=text))

    # A call: _begin, _open, _add as often as there is something to add, _close.

    def _begin(self) -> None:
        """A call may begin here: what is read from here on is content if none does."""
        if self._has_calls():
            self._reader.taken.clear()

    def _open(self, name: str) -> None:
        """The call's name is known."""
        if name not in self._names:
            raise NotACallError
        self._name = name
        self._arguments.clear()
        if self._is_constrained:
            self._emit_call()

    def _add(self, text: str) -> None:
        """More of the arguments."""
        if self._is_constrained:
            self._emit(ChatDelta(call=CallDelta(self._num_calls, text)))
        else:
            self._arguments.append(text)

    def _close(self) -> None:
        """The call is whole."""
        if not self._is_constrained:
            self._emit_call("".join(self._arguments))
        self._end_call()

    def _emit_call(self, arguments: str = "") -> None:
        self._space.take()
        self._is_after_call, self._has_content = True, False
        self._emit(ChatDelta(call=CallDelta(self._num_calls, arguments, new_call_id(), self._name)))

    def _end_call(self) -> None:
        self._num_calls += 1
        self._name = None
        self._reader.taken.clear()

    # What calls are made of.

    def _expect(self, *texts: str) -> Steps[None]:
        """Reads ``texts``, between which there may be space."""
        for text in texts:
            yield from self._reader.space()
            if not (yield from self._reader.literal(text)):
                raise NotACallError

    def _json(self, sink: Sink) -> Steps[None]:
        if not (yield from self._reader.json(sink)):
            raise NotACallError

    def _json_text(self) -> Steps[str]:
        """Reads a JSON string. Returns its text, quotes and escapes included."""
        if (yield from self._reader.peek()) != '"':
            raise NotACallError
        parts: list[str] = []
        yield from self._json(parts.append)
        return "".join(parts)

    def _arguments_object(self, sink: Sink) -> Steps[None]:
        """Reads the arguments: an object, or a string that holds one."""
        yield from self._reader.space()
        if (yield from self._reader.peek()) == "{":
            yield from self._json(sink)
        elif (text := object_text((yield from self._json_text()))) is not None:
            sink(text)
        else:
            raise NotACallError

    def _calls(self) -> Steps[None]:
        """Reads a call object, or a list of them."""
        yield from self._reader.space()
        if not (yield from self._reader.literal("[")):
            yield from self._call()
            return
        while True:
            yield from self._reader.space()
            if (yield from self._reader.literal("]")):
                return
            yield from self._call()
            yield from self._reader.space()
            if not (yield from self._reader.literal(",")):
                yield from self._reader.literal("]")
                return

    def _call(self) -> Steps[None]:
        """Reads a call object, whose members may come in any order, and others among them."""
        self._begin()
        self._early = []
        self._has_arguments = False
        yield from self._members(is_nested=False)
        if self._name is None:
            raise NotACallError
        if not self._has_arguments:
            self._add("{}")
        self._close()

    def _members(self, *, is_nested: bool) -> Steps[None]:
        yield from self._expect("{")
        yield from self._reader.space()
        if (yield from self._reader.literal("}")):
            return
        while True:
            key = text_of((yield from self._json_text()))
            yield from self._expect(":")
            yield from self._reader.space()
            yield from self._member(key, is_nested)
            yield from self._reader.space()
            if not (yield from self._reader.literal(",")):
                break
            yield from self._reader.space()
        yield from self._expect("}")

    def _member(self, key: str, is_nested: bool) -> Steps[None]:
        if key == _FUNCTION_KEY and not is_nested and (yield from self._reader.peek()) == "{":
            yield from self._members(is_nested=True)
        elif key in _NAME_KEYS and self._name is None:
            self._open(text_of((yield from self._json_text())))
            for text in self._early:
                self._add(text)
        elif key in _ARGUMENTS_KEYS and not self._has_arguments:
            self._has_arguments = True
            yield from self._arguments_object(self._early.append if self._name is None else self._add)
        elif key in _NAME_KEYS + _ARGUMENTS_KEYS:
            raise NotACallError
        else:
            yield from self._json(lambda text: None)
