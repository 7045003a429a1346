"""Grammar rules for arguments as Gemma writes them, made from a tool's schema.

Owns which parts of a schema the rules keep to. Everything else is written as plain JSON, which the parser
reads as well and llguidance holds to its schema. ``gemma`` puts the rules into its grammars.
"""

import json
import re
from collections.abc import Mapping

from nexa_runtime.chat.dialects.base import Dialect, UnsupportedSchemaError, lark_json, lark_literal
from nexa_runtime.chat.dialects.lark_rules import Rules, listed, text_body
from nexa_runtime.chat.dialects.string_rules import texts_of
from nexa_runtime.chat.dialects.tool_schemas import (
    DEFINITIONS,
    NOTES,
    Arguments,
    Schema,
    ToolSchemas,
    type_of,
)
from nexa_runtime.chat.messages import Json, Tool
from nexa_runtime.chat.schema_walk import as_list

_KEY = "/[A-Za-z_][A-Za-z0-9_-]{0,63}/"
_BARE_KEY = re.compile(r"[A-Za-z_$@][\w.$@ -]{0,198}[\w.$@-]|[A-Za-z_$@]")
"""Keys that stand without quotes."""
_MAX_DEPTH = 32
"""Below, there is plain JSON."""
_SCALARS = ("number", "integer", "boolean", "null")
_NUMBER = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_CHOICES = {"anyOf", "oneOf", "enum", "const"}
_UNKEPT = {
    "$ref", "allOf", "not", "if", "prefixItems", "additionalItems", "uniqueItems", "contains", "minContains",
    "maxContains", "unevaluatedItems", "unevaluatedProperties", "patternProperties", "propertyNames",
    "minProperties", "maxProperties", "dependencies", "dependentRequired", "dependentSchemas", "$dynamicRef",
    "$recursiveRef",
}  # fmt: skip
"""Keywords that no rule keeps to."""


def arguments_rule(rules: Rules, dialect: Dialect, tool: Tool, quote: str, *, is_forced: bool) -> str:
    """A rule's text for the arguments of ``tool``. ``quote``: what is around strings."""
    schemas = ToolSchemas(tool)
    arguments = schemas.arguments(is_exact=is_forced or tool.is_strict)
    return _Schemas(rules, dialect, quote, schemas).object(arguments)


class _Schemas:
    """Rules for schemas. What others refer to has a rule of its own, which may refer to itself."""

    def __init__(self, rules: Rules, dialect: Dialect, quote: str, schemas: ToolSchemas) -> None:
        self._rules = rules
        self._dialect = dialect
        self._quote = quote
        self._schemas = schemas
        self._known: dict[str, str] = {}
        self._depth = 0

    def object(self, arguments: Arguments) -> str:
        """A rule's text for an object."""
        if arguments.extra is not None:
            member = self._rules.rule(f'{self._rules.terminal(_KEY)} ":" {self._value(arguments.extra)}')
            return f'"{{" ({member} ("," {member})*)? "}}"'
        items = [
            (self._rules.rule(f"{self._key(key)} {self._value(one)}"), is_required)
            for key, (one, is_required) in arguments.properties.items()
        ]
        return f'"{{" {listed(self._rules, items, ",")} "}}"'

    def _value(self, schema: Schema) -> str:
        """A rule for a value."""
        reference = schema.get("$ref", "")
        is_named = isinstance(reference, str) and not (schema.keys() - NOTES - DEFINITIONS - {"$ref"})
        if self._depth == _MAX_DEPTH or not is_named:
            return self._rules.rule(self._alternatives(schema))
        # Any value at all has a name of its own too: it may hold others.
        if (name := str(reference)) not in self._known:
            self._known[name] = self._rules.reserve()
            whole = self._schemas.target(name) if name else True
            self._rules.define(
                self._known[name], self._alternatives(whole if isinstance(whole, dict) else {})
            )
        return self._known[name]

    def _alternatives(self, schema: Schema) -> str:
        if self._depth == _MAX_DEPTH:
            return self._json(schema)
        self._depth += 1
        try:
            return " | ".join(self._kinds(schema))
        finally:
            self._depth -= 1

    def _json(self, schema: Schema, *types: Json) -> str:
        """A value as JSON; of these types alone, if there are any."""
        alone = self._schemas.alone(schema)
        return self._rules.rule(lark_json({**alone, "type": [*types]} if types else alone))

    def _kinds(self, schema: Schema) -> list[str]:
        asked = schema.keys() - NOTES - DEFINITIONS - {"type"}
        choices = asked & _CHOICES
        types = self._schemas.value(schema).types
        if asked & _UNKEPT or (choices and len(asked) > 1):
            return [self._json(schema)]
        if choices & {"enum", "const"}:
            values = schema.get("enum", [schema.get("const")])
            listed = [one for one in values if type_of(one) in types] if isinstance(values, list) else []
            return [self._dialect.lark(self._written(one)) for one in listed] or [self._json(schema)]
        if choices:
            branches = [one for key in choices for one in as_list({**schema}, key)]
            if "type" in schema or False in branches or not branches:
                return [self._json(schema)]
            return [self._value(one if isinstance(one, dict) else {}) for one in branches]
        kinds = [self._string(schema)] if "string" in types else []
        if scalars := [one for one in _SCALARS if one in types]:
            kinds.append(self._json({key: schema[key] for key in _NUMBER if key in schema}, *scalars))
        if "array" in types:
            kinds.append(self._array(schema))
        if "object" in types:
            kinds.append(self._inner_object(schema))
        return kinds

    def _string(self, schema: Schema) -> str:
        texts = texts_of(self._schemas.value(schema))
        if not texts:
            return self._json(schema, "string")
        return (
            f"{self._dialect.lark(self._quote)} {text_body(self._rules, self._dialect, texts, self._quote)}"
        )

    def _array(self, schema: Schema) -> str:
        items = schema.get("items", True)
        if not isinstance(items, dict) and items is not True:
            return self._json(schema, "array")
        item = self._value(items if isinstance(items, dict) else {})
        least, most = schema.get("minItems"), schema.get("maxItems")
        least = least if isinstance(least, int) else 0
        if most == 0:
            return '"[" "]"'
        upper = most - 1 if isinstance(most, int) else ""
        some = f'"[" {item} ("," {item}){{{max(least - 1, 0)},{upper}}} "]"'
        return some if least else f'{some} | "[" "]"'

    def _inner_object(self, schema: Schema) -> str:
        try:
            return self.object(self._schemas.object(schema))
        except UnsupportedSchemaError:
            return self._json(schema, "object")

    def _key(self, key: str) -> str:
        return lark_literal(f"{_written_key(key)}:")

    def _written(self, value: Json) -> str:
        """A value as Gemma writes it; as JSON where it has what is around strings."""
        match value:
            case str():
                is_bare = self._quote not in value
                return f"{self._quote}{value}{self._quote}" if is_bare else json.dumps(value)
            case list():
                return f"[{','.join(map(self._written, value))}]"
            case Mapping():
                members = (f"{_written_key(key)}:{self._written(one)}" for key, one in value.items())
                return f"{{{','.join(members)}}}"
            case _:
                return json.dumps(value)


def _written_key(key: str) -> str:
    """A key as Gemma writes it; as JSON where that could not be read."""
    return key if _BARE_KEY.fullmatch(key) else json.dumps(key, ensure_ascii=False)
