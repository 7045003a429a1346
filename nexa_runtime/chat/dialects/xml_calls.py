"""Calls with a name and parameters between tags, each value as bare text.

Owns how such parameters become JSON, piece by piece, and what grammars say of them. The tags are the
business of the families (``qwen3_coder``, ``glm``).
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nexa_runtime.chat.dialects.base import Dialect, lark_json, lark_literal
from nexa_runtime.chat.dialects.calls import CallParser, NotACallError
from nexa_runtime.chat.dialects.lark_rules import Rules, text_body
from nexa_runtime.chat.dialects.reading import Steps, Stops
from nexa_runtime.chat.dialects.typed_text import (
    ALL_TYPES,
    STRING,
    Schema,
    described,
    escaped,
    is_open,
    json_text,
    resolved,
    types,
)
from nexa_runtime.chat.dialects.words import plain, until, word
from nexa_runtime.chat.messages import Tool

_MAX_KEY = 256


class XmlCallParser(CallParser):
    """Adds parameters to the arguments of a call."""

    def __init__(self, tools: Sequence[Tool], triggers: Iterable[str], *, is_constrained: bool) -> None:
        super().__init__(tools, triggers, is_constrained=is_constrained)
        self._schemas = {tool.name: tool.parameters for tool in tools}
        self._types: dict[str, frozenset[str]] = {}
        self._has_any = False

    def _open(self, name: str) -> None:
        super()._open(name)
        root = self._schemas[name]
        self._types = {key: types(resolved(one, root)) for key, (one, _) in described(root).items()}
        self._has_any = False

    def _key(self, stop: str) -> Steps[str]:
        """The name of a parameter, up to ``stop``."""
        key = (yield from word(self._reader, stop, _MAX_KEY)).strip()
        if not key or "\n" in key:
            raise NotACallError
        return key

    def _value(self, key: str, stop: Stops) -> Steps[None]:
        """The value of a parameter, up to ``stop``: strings as they come, all else when it is whole."""
        allowed = self._types.get(key, ALL_TYPES)
        self._add((", " if self._has_any else "{") + json.dumps(key, ensure_ascii=False) + ": ")
        self._has_any = True
        if allowed == STRING:
            self._add('"')
            yield from until(self._reader, stop, self._text)
            self._add('"')
        else:
            parts: list[str] = []
            yield from until(self._reader, stop, parts.append)
            self._add(json_text(plain("".join(parts)), allowed))

    def _text(self, part: str) -> None:
        if text := plain(part):
            self._add(escaped(text))

    def _close(self) -> None:
        self._add("}" if self._has_any else "{}")
        super()._close()


@dataclass(frozen=True, slots=True)
class XmlTags:
    """What is around a parameter: ``before`` its key, ``between`` key and value, ``after`` the value."""

    before: str
    between: str
    after: str


def xml_parameters(rules: Rules, dialect: Dialect, tool: Tool, tags: XmlTags) -> str:
    """A rule's text for all the parameters of ``tool``, in order."""
    if is_open(tool.parameters):
        key = rules.terminal(r"/[^\n<>]{1,64}/")
        value = _value(rules, dialect, {}, tags)
        return f"({dialect.lark(tags.before)} {key} {dialect.lark(tags.between)} {value})*"
    words = []
    for key, (schema, is_required) in described(tool.parameters).items():
        value = _value(rules, dialect, resolved(schema, tool.parameters), tags)
        member = f"{dialect.lark(tags.before + key + tags.between)} {value}"
        words.append(member if is_required else f"({member})?")
    return " ".join(words)


def _value(rules: Rules, dialect: Dialect, schema: Schema, tags: XmlTags) -> str:
    """A value and what is after it."""
    allowed = types(schema)
    if isinstance(values := schema.get("enum", [schema["const"]] if "const" in schema else None), list):
        texts = [one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for one in values]
        return f"({' | '.join(lark_literal(one) for one in texts)}) {dialect.lark(tags.after)}"
    if "string" not in allowed:
        return f"{rules.rule(lark_json(schema))} {dialect.lark(tags.after)}"
    return text_body(rules, dialect, schema, tags.after)
