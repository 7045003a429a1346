"""Calls with a name and parameters between tags, each value as bare text.

Owns how such parameters become JSON, piece by piece, and what grammars say of them. The tags are the
business of the families (``qwen3_coder``, ``glm``, ``minimax``, ``dsml``).

A value whose schema wants a string is that text. Of any other schema it is JSON, or a text if it is no JSON
of a type that the schema allows; a string stands between quotes there where its text would be read as
something else, or where a grammar could not hold the bare text to the schema.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from nexa_runtime.chat.dialects.base import MARK, Dialect, lark_json, plain
from nexa_runtime.chat.dialects.calls import CallParser, NotACallError
from nexa_runtime.chat.dialects.lark_rules import Rules, text_body
from nexa_runtime.chat.dialects.reading import Steps, Stops
from nexa_runtime.chat.dialects.string_rules import ANY, is_bare, texts_of
from nexa_runtime.chat.dialects.tool_schemas import (
    ALL_TYPES,
    STRING,
    Schema,
    ToolSchemas,
    Value,
    types_of,
)
from nexa_runtime.chat.dialects.typed_text import escaped, json_text
from nexa_runtime.chat.dialects.words import until, word
from nexa_runtime.chat.messages import Json, Tool

_MAX_KEY = 256
_KEY = r'/[^\s<>"=]{1,64}/'
"""The name of a parameter that no schema names."""
_OPENINGS = frozenset('"[{')
"""What JSON begins with that may have the text of an end tag in it."""
_BLANKS = r"[ \t\n\r]*"
_WORDS: dict[str, tuple[str, Json]] = {
    "null": ("null", None),
    "true": ("boolean", True),
    "false": ("boolean", False),
}
"""JSON's words: of which type, and for what value."""


class XmlCallParser(CallParser):
    """Adds parameters to the arguments of a call."""

    def __init__(self, tools: Sequence[Tool], triggers: Iterable[str], *, is_constrained: bool) -> None:
        super().__init__(tools, triggers, is_constrained=is_constrained)
        self._tools = {tool.name: tool for tool in tools}
        self._values: dict[str, dict[str, tuple[frozenset[str], bool]]] = {}
        """By tool and parameter: the types of its values, and whether they are bare text."""
        self._known: dict[str, tuple[frozenset[str], bool]] = {}
        self._has_any = False

    def _open(self, name: str) -> None:
        super()._open(name)
        if name not in self._values:
            schemas = ToolSchemas(self._tools[name])
            properties = schemas.arguments(is_exact=False).properties
            values = {key: schemas.value(schema) for key, (schema, _) in properties.items()}
            self._values[name] = {key: (value.types, is_bare(value)) for key, value in values.items()}
        self._known = self._values[name]
        self._has_any = False

    def _key(self, stop: str) -> Steps[str]:
        """The name of a parameter, up to ``stop``."""
        key = (yield from word(self._reader, stop, _MAX_KEY)).strip()
        if not key or "\n" in key:
            raise NotACallError
        return key

    def _value(self, key: str, stop: Stops) -> Steps[None]:
        """The value of a parameter, up to ``stop``: strings as they come, all else when it is whole."""
        types, is_text = self._known.get(key, (ALL_TYPES, False))
        self._start(key)
        if is_text:
            yield from self._bare(stop)
        else:
            text = yield from self._whole(stop)
            self._add(json_text(plain(text), types))

    def _start(self, key: str) -> None:
        """A parameter begins."""
        self._add((", " if self._has_any else "{") + json.dumps(key, ensure_ascii=False) + ": ")
        self._has_any = True

    def _bare(self, stop: Stops) -> Steps[None]:
        """A string as it stands there."""
        self._add('"')
        yield from until(self._reader, stop, self._text)
        self._add('"')

    def _whole(self, stop: Stops) -> Steps[str]:
        """A value's text. What would end it does not, inside of JSON."""
        parts = [(yield from self._reader.space())]
        is_json = (yield from self._reader.peek()) in _OPENINGS
        if not is_json or not (yield from self._reader.json(parts.append)):
            self._reader.unread("".join(parts))
            parts.clear()
        yield from until(self._reader, stop, parts.append)
        return "".join(parts)

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

    def can_hold(self, key: str) -> bool:
        """Whether the parser reads such a key as it was written."""
        stop = self.between.split("\n")[0]
        is_clean = key == key.strip() and "\n" not in key and MARK not in key
        return is_clean and 0 < len(key) <= _MAX_KEY and stop not in key


def xml_parameters(rules: Rules, dialect: Dialect, tool: Tool, tags: XmlTags, *, is_forced: bool) -> str:
    """A rule's text for all the parameters of ``tool``, in order."""
    schemas = ToolSchemas(tool)

    def member(key: str | None, schema: Schema) -> str:
        head = f"{dialect.lark(tags.before)} {rules.terminal(_KEY)} {dialect.lark(tags.between)}"
        if key is not None:
            head = dialect.lark(tags.before + key + tags.between)
        return f"{head} {_value(rules, dialect, schemas, schema, tags)}"

    return parameters(schemas, member, tags.can_hold, is_exact=is_forced or tool.is_strict)


def parameters(
    schemas: ToolSchemas,
    member: Callable[[str | None, Schema], str],
    can_hold: Callable[[str], bool],
    *,
    is_exact: bool,
) -> str:
    """A rule's text for parameters in order. ``member``: one of them, the key None for any.

    One whose key cannot be written is left out if it may be.
    """
    arguments = schemas.arguments(is_exact=is_exact)
    if arguments.extra is not None:
        return f"({member(None, arguments.extra)})*"
    words = []
    for key, (schema, is_required) in arguments.properties.items():
        if can_hold(key):
            words.append(member(key, schema) if is_required else f"({member(key, schema)})?")
        elif is_required and is_exact:
            schemas.refuse("properties", f"the model cannot write the name of the property {key[:80]!r}")
    return " ".join(words)


def _value(rules: Rules, dialect: Dialect, schemas: ToolSchemas, schema: Schema, tags: XmlTags) -> str:
    """A value and what is after it."""
    value = schemas.value(schema)
    texts = texts_of(value)
    if "string" in value.types and value.is_free:
        return text_body(rules, dialect, [f"/{ANY}/"], tags.after)
    if texts and value.types == STRING:
        return text_body(rules, dialect, texts, tags.after)
    as_json = f"{rules.rule(lark_json(schemas.alone(schema)))} {dialect.lark(tags.after)}"
    if not texts:
        return as_json
    return f"({text_body(rules, dialect, _unmistakable(rules, value, texts), tags.after)} | {as_json})"


def _unmistakable(rules: Rules, value: Value, texts: Sequence[str]) -> list[str]:
    """Bare texts that are not read as JSON, and JSON's words. What begins as JSON does is left to JSON, for
    a lexeme of bare text would swallow it.
    """
    first = '"'
    first += r"\[" if "array" in value.types else ""
    first += r"\{" if "object" in value.types else ""
    first += "0-9-" if value.types & {"number", "integer"} else ""
    words = [word for word, (kind, _) in _WORDS.items() if kind in value.types]
    without = f" & ~/{_BLANKS}[{first}]{ANY}/"
    without += f" & ~/{_BLANKS}({'|'.join(words)}){_BLANKS}/" if words else ""
    one = texts[0] if len(texts) == 1 else rules.terminal(" | ".join(map(rules.terminal, texts)))
    return [one + without, *(f'"{word}"' for word in words if _has_word(value, word))]


def _has_word(value: Value, word: str) -> bool:
    """Whether a word of JSON's is a value that fits."""
    kind, wanted = _WORDS[word]
    for case in value.cases or ():
        lists = [one for part in case if isinstance(one := part.get("enum"), list)]
        lists += [[part["const"]] for part in case if "const" in part]
        if kind in types_of(case) and all(any(one is wanted for one in values) for values in lists):
            return True
    return False
