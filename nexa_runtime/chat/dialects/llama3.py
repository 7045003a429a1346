"""Llama 3's way: the whole answer is a call object, or comes behind ``<|python_tag|>``.

Owns the family's texts, and the turns that its templates want. ``registry`` chooses it.
"""

import json
from collections.abc import Sequence
from dataclasses import replace

from nexa_runtime.chat.dialects.base import Dialect, Parser, lark_literal
from nexa_runtime.chat.dialects.calls import CallParser, NotACallError
from nexa_runtime.chat.dialects.lark_rules import Rules, named_calls
from nexa_runtime.chat.dialects.prompts import one_call_per_turn
from nexa_runtime.chat.dialects.reading import Steps
from nexa_runtime.chat.dialects.string_rules import ANY, regex
from nexa_runtime.chat.messages import Conversation, Tool

_TAG = "<|python_tag|>"
_BEFORE_NAME, _BEFORE_ARGUMENTS, _AFTER_ARGUMENTS = '{"name": "', '", "parameters": ', "}"
_SEPARATOR = "; "


class Llama3Parser(CallParser):
    """Objects one behind the other, or ``name.call(argument="…")``, which Llama writes for its own tools."""

    def __init__(self, dialect: Dialect, tools: Sequence[Tool], *, is_constrained: bool) -> None:
        super().__init__(tools, [dialect.marked(_TAG)], is_constrained=is_constrained)
        self._has_tools = bool(tools)

    def _read(self) -> Steps[None]:
        if self._has_tools:
            yield from self._reader.space()
            if (yield from self._reader.peek()) == "{":
                yield from self._attempt("")
            else:
                self._write("".join(self._reader.taken))
        yield from super()._read()

    def _block(self, trigger: str) -> Steps[None]:
        yield from self._reader.space()
        if (yield from self._reader.peek()) != "{":
            yield from self._python_call()
            return
        while (yield from self._reader.peek()) == "{":
            yield from self._call()
            yield from self._reader.space()
            if (yield from self._reader.literal(";")):
                yield from self._reader.space()

    def _python_call(self) -> Steps[None]:
        self._open((yield from self._reader.name()))
        yield from self._expect(".call(")
        yield from self._reader.space()
        start = "{"
        while not (yield from self._reader.literal(")")):
            key = yield from self._reader.name()
            if not key:
                raise NotACallError
            yield from self._expect("=")
            self._add(f"{start}{json.dumps(key)}: ")
            yield from self._json(self._add)
            yield from self._reader.space()
            if (yield from self._reader.literal(",")):
                yield from self._reader.space()
            elif (yield from self._reader.peek()) != ")":
                raise NotACallError
            start = ", "
        self._add("}" if start == ", " else "{}")
        self._close()


class Llama3(Dialect):
    """``{"name": …, "parameters": {…}}``, and several with ``;`` between them."""

    name = "llama3"
    markers = (_TAG,)

    @classmethod
    def fits(cls, template: str) -> bool:
        return "<|start_header_id|>" in template and '"parameters"' in template

    def prepare(self, conversation: Conversation) -> Conversation:
        """These templates refuse more than one call per message."""
        return replace(conversation, messages=one_call_per_turn(conversation.messages))

    def parser(self, tools: Sequence[Tool], *, is_reasoning: bool = False, is_constrained: bool) -> Parser:
        return Llama3Parser(self, tools, is_constrained=is_constrained)

    def grammar(self, tools: Sequence[Tool], *, is_forced: bool, is_parallel: bool) -> str:
        rules, begin = Rules(), lark_literal(_BEFORE_NAME)
        call = named_calls(rules, self, tools, "", _BEFORE_ARGUMENTS, _AFTER_ARGUMENTS)
        calls = f"{call} ({lark_literal(_SEPARATOR)} {begin} {call})*" if is_parallel else call
        if is_forced:
            return rules.grammar(f"{begin} {calls}")
        tagged = f"({self.lark(_TAG)} {begin} {calls})?" if _TAG in self.special_texts else ""
        text = rules.terminal(rf"/{ANY}/ & ~/[ \n\t]*{regex(_BEFORE_NAME)}{ANY}/")
        head = rules.rule(rf"/[ \n\t]*/ {begin}", "[lazy]")
        return rules.grammar(f"{text} {tagged} | {head} {calls}")
