"""Calls written as Python: Llama 3.2 and 4, LFM2.

Owns the format and its grammar. The registry picks it, ``serving`` feeds its parsers.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from nexa_runtime.chat.dialects.base import MARK, Dialect, Parser, ReasoningTags, lark_json, lark_literal
from nexa_runtime.chat.dialects.calls import CallParser, NotACallError
from nexa_runtime.chat.dialects.lark_rules import Opened, Rules, free, listed
from nexa_runtime.chat.dialects.prompts import arguments_value
from nexa_runtime.chat.dialects.python_values import read_literal
from nexa_runtime.chat.dialects.reading import Steps
from nexa_runtime.chat.dialects.reasoning import with_reasoning
from nexa_runtime.chat.dialects.tool_schemas import Schema, ToolSchemas
from nexa_runtime.chat.dialects.words import word
from nexa_runtime.chat.messages import Conversation, Message, Tool, ToolCall

_MAX_KEY = 256
_NO_KEY = frozenset("\"'()[]{},\n=" + MARK)
_FIRST = r"/[ \t\n\r]*\[[ \t\n\r]*/"
"""What may stand before calls without markers."""
_BOOLEAN = '("True" | "False")'


class Pythonic(Dialect):
    """``[f(a="x"), g()]``, at the start of the answer or between two markers."""

    name = "pythonic"
    markers: ClassVar[tuple[str, ...]] = ("<|python_start|>", "<|python_end|>")
    _opening: ClassVar = "<|python_start|>"
    _closing: ClassVar = "<|python_end|>"
    _is_bare: ClassVar = True
    """Whether a grammar leaves the markers out."""

    @classmethod
    def fits(cls, template: str) -> bool:
        return "[func_name1(" in template or (cls._opening in template and '{"name": "' not in template)

    def parser(self, tools: Sequence[Tool], *, is_reasoning: bool = False, is_constrained: bool) -> Parser:
        inner = _PythonicParser(
            tools, self.marked(self._opening), self.marked(self._closing), is_constrained=is_constrained
        )
        return with_reasoning(self, inner, is_reasoning=is_reasoning)

    def grammar(self, tools: Sequence[Tool], *, is_forced: bool, is_parallel: bool) -> str:
        rules = Rules()
        calls = [
            (f"{tool.name}(", rules.rule(f'{_arguments(rules, tool, is_forced=is_forced)} ")"'))
            for tool in tools
        ]
        call = rules.rule(" | ".join(f"{lark_literal(head)} {arguments}" for head, arguments in calls))
        more = f"({lark_literal(', ')} {call})*" if is_parallel else ""
        marked = rules.rule(f'"[" {call} {more} "]" {self.lark(self._closing)}')
        if is_forced and self._is_bare:
            return rules.grammar(f'"[" {call} {more} "]"')
        if is_forced:
            return rules.grammar(f"{self.lark(self._opening)} {marked}")
        heads = [
            f"{rules.rule(f'{_FIRST} {lark_literal(head)}', '[lazy]')} {arguments}"
            for head, arguments in calls
        ]
        first = rules.rule(f'({" | ".join(heads)}) {more} "]"')
        return free(rules, self, [Opened(self._opening, marked)], is_parallel=is_parallel, first=first)


class Lfm2(Pythonic):
    """LFM2 and 2.5. Where the template knows no calls, earlier ones become part of the content."""

    name = "lfm2"
    markers = ("<|tool_call_start|>", "<|tool_call_end|>", "<think>", "</think>")
    reasoning = ReasoningTags("<think>", "</think>")
    reasoning_key = "thinking"
    _opening = "<|tool_call_start|>"
    _closing = "<|tool_call_end|>"
    _is_bare = False

    @classmethod
    def fits(cls, template: str) -> bool:
        return "List of tools: " in template

    def prepare(self, conversation: Conversation) -> Conversation:
        if "tool_calls" in self.template:
            return conversation
        return replace(conversation, messages=tuple(map(self._written, conversation.messages)))

    def _written(self, message: Message) -> Message:
        if not message.tool_calls:
            return message
        calls = ", ".join(map(_python_call, message.tool_calls))
        opening, closing = self.marked(self._opening), self.marked(self._closing)
        text = f"{message.content or ''}{opening}[{calls}]{closing}"
        return replace(message, content=text, tool_calls=())


class _PythonicParser(CallParser):
    def __init__(self, tools: Sequence[Tool], opening: str, closing: str, *, is_constrained: bool) -> None:
        super().__init__(tools, (opening,), is_constrained=is_constrained)
        self._closing = closing

    def _read(self) -> Steps[None]:
        if self._names:
            yield from self._attempt("")
        yield from super()._read()

    def _block(self, trigger: str) -> Steps[None]:
        yield from self._expect("[")
        while True:
            yield from self._reader.space()
            yield from self._call()
            yield from self._reader.space()
            if (yield from self._reader.literal("]")):
                break
            yield from self._expect(",")
        yield from self._reader.space()
        yield from self._reader.literal(self._closing)

    def _call(self) -> Steps[None]:
        self._begin()
        name = yield from self._reader.name()
        yield from self._expect("(")
        self._open(name)
        before = "{"
        yield from self._reader.space()
        while not (yield from self._reader.literal(")")):
            key = (yield from word(self._reader, "=", _MAX_KEY)).strip()
            if not key or not _NO_KEY.isdisjoint(key):
                raise NotACallError
            yield from self._reader.space()
            value = yield from read_literal(self._reader)
            self._add(f"{before}{json.dumps(key, ensure_ascii=False)}: {value}")
            before = ", "
            yield from self._reader.space()
            if not (yield from self._reader.literal(",")):
                yield from self._expect(")")
                break
            yield from self._reader.space()
        self._add("}" if before == ", " else "{}")
        self._close()


def _arguments(rules: Rules, tool: Tool, *, is_forced: bool) -> str:
    """A rule's text for all the arguments of ``tool``, in order."""
    schemas, is_exact = ToolSchemas(tool), is_forced or tool.is_strict
    arguments = schemas.arguments(is_exact=is_exact)
    if arguments.extra is not None:
        name = rules.terminal("/[A-Za-z_][A-Za-z0-9_]{0,63}/")
        argument = f'{name} "=" {_value(rules, schemas, arguments.extra)}'
        return f'({argument} (", " {argument})*)?'
    items = []
    for key, (schema, is_required) in arguments.properties.items():
        if _can_be_key(key):
            value = _value(rules, schemas, schema)
            items.append((rules.rule(f"{lark_literal(key + '=')} {value}"), is_required))
        elif is_required and is_exact:
            schemas.refuse("properties", f"the model cannot write the name of the property {key[:80]!r}")
    return listed(rules, items, ", ")


def _can_be_key(key: str) -> bool:
    """Whether the parser reads such a key as it was written."""
    return key == key.strip() and 0 < len(key) <= _MAX_KEY and _NO_KEY.isdisjoint(key)


def _value(rules: Rules, schemas: ToolSchemas, schema: Schema) -> str:
    """A value: JSON is Python enough, but for constants alone."""
    value = schemas.value(schema)
    if value.types == {"boolean"} and value.is_free:
        return _BOOLEAN
    return rules.rule(lark_json(schemas.alone(schema)))


def _python_call(call: ToolCall) -> str:
    arguments = arguments_value(call)
    items = arguments.items() if isinstance(arguments, dict) else ()
    return f"{call.name}({', '.join(f'{key}={_python(value)}' for key, value in items)})"


def _python(value: object) -> str:
    return repr(value) if value is None or isinstance(value, bool) else json.dumps(value, ensure_ascii=False)
