"""Harmony, the format of gpt-oss: an answer is messages, each on a channel and maybe to somebody.

Owns the format and its grammar. It needs no stage for reasoning: that is a channel. The registry picks it,
``serving`` feeds its parsers.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from nexa_runtime.chat.dialects.base import (
    CallDelta,
    ChatDelta,
    Dialect,
    Parser,
    ReasoningTags,
    lark_json,
    new_call_id,
    plain,
)
from nexa_runtime.chat.dialects.calls import NotACallError
from nexa_runtime.chat.dialects.lark_rules import Rules
from nexa_runtime.chat.dialects.prompts import one_call_per_turn
from nexa_runtime.chat.dialects.reading import Sink, SteppedParser, Steps, Stops, TrailingSpace
from nexa_runtime.chat.dialects.string_rules import ANY
from nexa_runtime.chat.dialects.words import word
from nexa_runtime.chat.messages import Conversation, Message, Tool

_START, _CHANNEL, _CONSTRAIN = "<|start|>", "<|channel|>", "<|constrain|>"
_MESSAGE, _END = "<|message|>", "<|end|>"
_TO, _FUNCTIONS = " to=", "functions."
_RECIPIENT = re.compile(r"(?:^|\s)to=([^\s<]+)")
_WORD = re.compile(r"\s*(\w*)")
_MAX_HEADER = 256


class Harmony(Dialect):
    """``<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{}``."""

    name = "harmony"
    markers = (_START, _CHANNEL, _CONSTRAIN, _MESSAGE, _END)
    channel = ReasoningTags(f"{_CHANNEL}analysis{_MESSAGE}", f"{_END}{_START}assistant")
    reasoning_key = "thinking"

    @classmethod
    def fits(cls, template: str) -> bool:
        return _CHANNEL in template and _MESSAGE in template

    def prepare(self, conversation: Conversation) -> Conversation:
        """The template writes one call per message, and takes thoughts or content beside it but not both."""
        turns = one_call_per_turn(conversation.messages)
        return replace(conversation, messages=tuple(map(_unambiguous, turns)))

    def parser(self, tools: Sequence[Tool], *, is_reasoning: bool = False, is_constrained: bool) -> Parser:
        return _HarmonyParser(self, tools, is_reasoning=is_reasoning, is_constrained=is_constrained)

    def grammar(self, tools: Sequence[Tool], *, is_forced: bool, is_parallel: bool) -> str:
        rules = Rules()
        arguments = {tool.name: rules.rule(lark_json(tool.parameters)) for tool in tools}
        if is_forced:
            header = f"{_CHANNEL}commentary{_TO}{_FUNCTIONS}{{}} {_CONSTRAIN}json{_MESSAGE}"
            calls = [f"{self.lark(header.format(name))} {json}" for name, json in arguments.items()]
            return rules.grammar(" | ".join(calls))
        channel = f'{self.lark(_CHANNEL)} ("commentary" | "analysis")'
        body = f'(" " {self.lark(_CONSTRAIN)}? "json")? {self.lark(_MESSAGE)}'
        names = [(self.lark(f"{_TO}{_FUNCTIONS}{name}"), json) for name, json in arguments.items()]
        calls = [f"({channel} {to} | {to} {channel}) {body} {json}" for to, json in names]
        speech = rules.rule(f'{self.lark(_CHANNEL)} ("analysis" | "commentary" | "final") {body}')
        text = rules.terminal(f"/{ANY}/")
        ended = (
            f"{text} {self.lark(_END)}"
            if _END in self.special_texts
            else rules.rule(f"{text} {self.lark(_END)}", "[lazy]")
        )
        before = f"({speech} {ended} {self.lark(_START + 'assistant')})*"
        return rules.grammar(f"{before} ({speech} {text} | {' | '.join(calls)})")


@dataclass(frozen=True, slots=True)
class _Header:
    """Which channel a message is on, and to whom it goes."""

    channel: str = "final"
    recipient: str | None = None
    is_broken: bool = False

    @property
    def function(self) -> str | None:
        """The name of the function that the message calls."""
        if self.recipient is None or self.recipient in ("assistant", "user", "all"):
            return None
        return self.recipient.removeprefix(_FUNCTIONS)


class _Speech:
    """Messages of one kind, put together to one text."""

    def __init__(self, emit: Sink) -> None:
        self._emit = emit
        self._space = TrailingSpace()
        self._is_new = self._has_text = False

    def start(self) -> None:
        """A message begins; space around messages is dropped."""
        self._space.take()
        self._is_new = True

    def add(self, text: str) -> None:
        """More of the message."""
        text = plain(text)
        if self._is_new:
            text = text.lstrip()
        if ready := self._space.add(text):
            self._emit("\n\n" + ready if self._is_new and self._has_text else ready)
            self._is_new, self._has_text = False, True

    def end(self) -> None:
        """The answer ends: space at its end is part of it."""
        if space := self._space.take():
            self._emit(space)


class _HarmonyParser(SteppedParser):
    def __init__(
        self, dialect: Dialect, tools: Sequence[Tool], *, is_reasoning: bool, is_constrained: bool
    ) -> None:
        super().__init__()
        self._names = {tool.name for tool in tools}
        self._is_reasoning = is_reasoning
        self._is_constrained = is_constrained
        self._header_end = dialect.marked(_MESSAGE)
        self._openings = [dialect.marked(_START), dialect.marked(_CHANNEL)]
        self._body_end = Stops([dialect.marked(_END), *self._openings])
        self._opening = ""
        self._num_calls = 0
        self._content = _Speech(lambda text: self._emit(ChatDelta(content=text)))
        self._thoughts = _Speech(lambda text: self._emit(ChatDelta(reasoning=text)))

    def _read(self) -> Steps[None]:
        if self._is_reasoning:
            yield from self._body(_Header("analysis"))
        while (yield from self._reader.peek()) or self._opening:
            yield from self._body((yield from self._header()))

    def _header(self) -> Steps[_Header]:
        """Reads what stands before a message. Text without it is content."""
        self._reader.taken[:] = [self._opening]
        for one in (*self._openings, _TO):
            if self._opening or (yield from self._reader.literal(one)):
                break
        else:
            if self._is_constrained and self._reader.is_at_end:
                self._reader.rest()
                self._reader.taken.clear()
            return _Header()
        try:
            yield from word(self._reader, self._header_end, _MAX_HEADER)
        except NotACallError:
            is_cut = not (yield from self._reader.peek())
            if is_cut and (self._is_constrained or _TO not in "".join(self._reader.taken)):
                self._reader.taken.clear()
            return _Header(is_broken=True)
        return _header(plain("".join(self._reader.taken)))

    def _body(self, header: _Header) -> Steps[None]:
        """Reads a message, up to what ends it."""
        raw = "".join(self._reader.taken)
        self._reader.taken.clear()
        self._opening = ""
        if header.function in self._names:
            stop = yield from self._call(header.function, raw)
        else:
            is_thought = header.channel == "analysis" and not header.function
            speech = self._thoughts if is_thought else self._content
            speech.start()
            if header.function or header.is_broken:
                speech.add(raw)
            stop = yield from self._say(speech)
        self._opening = stop if stop in self._openings else ""

    def _call(self, name: str, raw: str) -> Steps[str | None]:
        """Reads the arguments of a call, behind which the answer may end. ``raw``: its header."""
        call = CallDelta(self._num_calls, id=new_call_id(), name=name)
        parts: list[str] = []
        if self._is_constrained:
            self._emit(ChatDelta(call=call))
        yield from self._reader.space()
        is_object = (yield from self._reader.peek()) == "{"
        sink = self._argue if self._is_constrained else parts.append
        is_whole = is_object and (yield from self._reader.json(sink))
        self._content.start()
        if not self._is_constrained and is_whole:
            self._emit(ChatDelta(call=replace(call, arguments="".join(parts))))
        elif not self._is_constrained:
            self._content.add(raw + "".join(self._reader.taken))
        self._num_calls += is_whole or self._is_constrained
        return (yield from self._say(self._content))

    def _say(self, speech: _Speech) -> Steps[str | None]:
        """Reads what is left of a message."""
        stop = yield from self._reader.text(self._body_end, speech.add)
        if stop is None:
            speech.end()
        return stop

    def _argue(self, text: str) -> None:
        self._emit(ChatDelta(call=CallDelta(self._num_calls, text)))


def _header(text: str) -> _Header:
    """What the text up to ``<|message|>`` says."""
    _, has_channel, channel = text.rpartition(_CHANNEL)
    word = _WORD.match(channel) if has_channel else None
    recipient = _RECIPIENT.search(text.replace(_CHANNEL, " "))
    return _Header(word[1] if word else "final", recipient[1] if recipient else None)


def _unambiguous(message: Message) -> Message:
    return replace(message, content=None) if message.tool_calls and message.reasoning else message
