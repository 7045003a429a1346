"""Harmony, the format of gpt-oss: an answer is messages, each on a channel and maybe to somebody.

Owns the format and its grammar. It needs no stage for reasoning: that is a channel. The registry picks it,
``serving`` feeds its parsers.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from nexa_runtime.chat.dialects.base import CallDelta, ChatDelta, Dialect, Parser, lark_json, new_call_id
from nexa_runtime.chat.dialects.lark_rules import ANY, Rules
from nexa_runtime.chat.dialects.scan import (
    AnswerEndedError,
    Cursor,
    NotACallError,
    SpaceKeeper,
    Stops,
    Waiting,
    plain,
)
from nexa_runtime.chat.dialects.typed_text import loads
from nexa_runtime.chat.messages import Conversation, Message, Role, Tool

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
    reasoning_key = "thinking"

    @classmethod
    def fits(cls, template: str) -> bool:
        return _CHANNEL in template and _MESSAGE in template

    def prepare(self, conversation: Conversation) -> Conversation:
        """The template writes one call per message, and takes thoughts or content beside it but not both."""
        return replace(conversation, messages=tuple(_one_by_one(conversation.messages)))

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

    def __init__(self, emit: Callable[[str], None]) -> None:
        self._emit = emit
        self._space = SpaceKeeper()
        self._separator = self._next_separator = ""

    def start(self) -> None:
        """A message begins."""
        self._space.drop()
        self._separator = self._next_separator

    def feed(self, text: str) -> None:
        """More of the message."""
        if ready := self._space.feed(plain(text)):
            self._emit(self._separator + ready)
            self._separator, self._next_separator = "", "\n\n"

    def flush(self) -> None:
        """Space at the end is wanted."""
        if space := self._space.flush():
            self._emit(space)


class _HarmonyParser(Parser):
    def __init__(
        self, dialect: Dialect, tools: Sequence[Tool], *, is_reasoning: bool, is_constrained: bool
    ) -> None:
        self._cursor = Cursor()
        self._names = {tool.name for tool in tools}
        self._is_constrained = is_constrained
        self._message = Stops(dialect.marked(_MESSAGE))
        self._end = dialect.marked(_END)
        self._openings = [dialect.marked(_START), dialect.marked(_CHANNEL), _TO]
        self._body_end = Stops(self._end, *self._openings[:2])
        self._calls = 0
        self._deltas: list[ChatDelta] = []
        self._content = _Speech(lambda text: self._deltas.append(ChatDelta(content=text)))
        self._thoughts = _Speech(lambda text: self._deltas.append(ChatDelta(reasoning=text)))
        self._reader = self._answer(_Header("analysis") if is_reasoning else None)

    def feed(self, text: str) -> list[ChatDelta]:
        self._cursor.feed(text)
        return self._run()

    def finish(self) -> list[ChatDelta]:
        self._cursor.is_ended = True
        return self._run()

    def _run(self) -> list[ChatDelta]:
        next(self._reader, None)
        deltas, self._deltas = self._deltas, []
        return deltas

    def _answer(self, header: _Header | None) -> Waiting[None]:
        try:
            while True:
                yield from self._body(header or (yield from self._header()))
                header = None
        except AnswerEndedError:
            return

    def _header(self) -> Waiting[_Header]:
        """Reads what stands before a message. Text without it is content."""
        cursor = self._cursor
        opening = ""
        try:
            yield from cursor.literal(self._end)
            cursor.forget()
            for one in self._openings:
                if (yield from cursor.literal(one)):
                    opening = plain(one)
                    break
            else:
                return _Header()
            return _header(opening + (yield from cursor.word(self._message, _MAX_HEADER)))
        except NotACallError:
            return _Header(is_broken=True)
        except AnswerEndedError:
            raw = cursor.forget() + cursor.rest()
            if not opening or (_TO in raw and not self._is_constrained):
                self._content.start()
                self._content.feed(raw)
                self._content.flush()
            raise

    def _body(self, header: _Header) -> Waiting[None]:
        """Reads a message, up to what ends it."""
        if header.function in self._names:
            yield from self._call(header.function)
            return
        speech = self._thoughts if header.channel == "analysis" and not header.function else self._content
        speech.start()
        raw = self._cursor.forget()
        if header.function or header.is_broken:
            speech.feed(raw)
        try:
            yield from self._cursor.before(self._body_end, speech.feed)
        except AnswerEndedError:
            speech.feed(self._cursor.rest())
            speech.flush()
            raise

    def _call(self, name: str) -> Waiting[None]:
        """Reads the arguments of a call; it may end with the answer."""
        raw = self._cursor.forget()
        space = SpaceKeeper()
        space.drop()
        held: list[str] = []
        call = CallDelta(self._calls, "", new_call_id(), name)

        def add(text: str) -> None:
            if ready := space.feed(plain(text)):
                self._deltas.append(ChatDelta(call=CallDelta(call.index, ready)))

        if self._is_constrained:
            self._calls += 1
            self._deltas.append(ChatDelta(call=call))
        try:
            yield from self._cursor.before(self._body_end, add if self._is_constrained else held.append)
        except AnswerEndedError:
            held.append(self._cursor.rest())
            raise
        finally:
            if not self._is_constrained:
                self._settle(call, raw, "".join(held))

    def _settle(self, call: CallDelta, raw: str, body: str) -> None:
        """Hands on a call that was held back, or what it turned out to be."""
        arguments = plain(body).strip()
        if _is_object(arguments):
            self._calls += 1
            self._deltas.append(ChatDelta(call=call))
            self._deltas.append(ChatDelta(call=CallDelta(call.index, arguments)))
        else:
            self._content.start()
            self._content.feed(raw + body)


def _header(text: str) -> _Header:
    """What the text up to ``<|message|>`` says."""
    _, has_channel, channel = text.rpartition(_CHANNEL)
    word = _WORD.match(channel) if has_channel else None
    recipient = _RECIPIENT.search(text.replace(_CHANNEL, " "))
    return _Header(word[1] if word else "final", recipient[1] if recipient else None)


def _is_object(text: str) -> bool:
    try:
        return isinstance(loads(text), dict)
    except ValueError:
        return False


def _one_by_one(messages: Sequence[Message]) -> list[Message]:
    """Each call in a message of its own, with its result behind it."""
    results = {one.tool_call_id: one for one in messages if one.role is Role.TOOL and one.tool_call_id}
    turns: list[Message] = []
    moved: set[str] = set()
    for message in messages:
        if message.role is Role.TOOL and message.tool_call_id in moved:
            continue
        if not message.tool_calls:
            turns.append(message)
            continue
        content = None if message.reasoning else message.content
        for number, call in enumerate(message.tool_calls):
            one = replace(message, content=content, tool_calls=(call,))
            turns.append(one if number == 0 else replace(one, content=None, reasoning=None))
            if len(message.tool_calls) > 1 and call.id in results:
                turns.append(results[call.id])
                moved.add(call.id)
    return turns
