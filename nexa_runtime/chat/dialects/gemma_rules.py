"""Grammar rules for arguments as Gemma writes them, made from a tool's schema.

Owns which parts of a schema the rules keep to. ``gemma`` puts them into its grammars.
"""

import json
from collections.abc import Mapping

from nexa_runtime.chat.dialects.base import Dialect, lark_json, lark_literal
from nexa_runtime.chat.dialects.lark_rules import Rules, listed, text_body
from nexa_runtime.chat.dialects.typed_text import Schema, described, is_open, object_of, resolved, types
from nexa_runtime.chat.messages import Json, Tool

_KEY = "/[A-Za-z_][A-Za-z0-9_-]{0,63}/"
_MAX_DEPTH = 32
"""Below, anything goes."""
_SCALARS = ("number", "integer", "boolean", "null")


def arguments_rule(rules: Rules, dialect: Dialect, tool: Tool, quote: str) -> str:
    """A rule's text for the arguments of ``tool``. ``quote``: what is around strings."""
    return _Schemas(rules, dialect, quote, tool.parameters).arguments()


class _Schemas:
    """Rules for schemas. What others refer to has a rule of its own, which may refer to itself."""

    def __init__(self, rules: Rules, dialect: Dialect, quote: str, root: Schema) -> None:
        self._rules = rules
        self._dialect = dialect
        self._quote = quote
        self._root = root
        self._known: dict[str, str] = {}
        self._depth = 0

    def arguments(self) -> str:
        return self._object(self._root)

    def _value(self, schema: Schema) -> str:
        """A rule for a value."""
        key = schema.get("$ref") if schema and self._depth < _MAX_DEPTH else ""
        if not isinstance(key, str):
            return self._rules.rule(self._alternatives(schema))
        if key not in self._known:
            self._known[key] = self._rules.reserve()
            whole = resolved(schema, self._root) if key else {}
            self._rules.define(self._known[key], self._alternatives(whole))
        return self._known[key]

    def _alternatives(self, schema: Schema) -> str:
        self._depth += 1
        try:
            return " | ".join(self._kinds(schema))
        finally:
            self._depth -= 1

    def _kinds(self, schema: Schema) -> list[str]:
        values = schema.get("enum", [schema["const"]] if "const" in schema else None)
        if isinstance(values, list):
            return [self._literal(value) for value in values]
        branches = schema.get("anyOf", schema.get("oneOf"))
        if isinstance(branches, list):
            return [self._value(object_of(one)) for one in branches]
        allowed = types(schema)
        kinds: list[str] = []
        if "string" in allowed:
            kinds.append(f"{self._mark} {text_body(self._rules, self._dialect, schema, self._quote)}")
        if scalars := [one for one in _SCALARS if one in allowed]:
            names: list[Json] = [*scalars]
            kinds.append(self._rules.rule(lark_json({**schema, "type": names})))
        if "array" in allowed:
            kinds.append(self._array(schema))
        if "object" in allowed:
            kinds.append(self._object(schema))
        return kinds

    @property
    def _mark(self) -> str:
        return self._dialect.lark(self._quote)

    def _array(self, schema: Schema) -> str:
        items = schema.get("items")
        item = self._value(object_of(items))
        least, most = schema.get("minItems"), schema.get("maxItems")
        least = least if isinstance(least, int) else 0
        if most == 0:
            return '"[" "]"'
        upper = most - 1 if isinstance(most, int) else ""
        some = f'"[" {item} ("," {item}){{{max(least - 1, 0)},{upper}}} "]"'
        return some if least else f'{some} | "[" "]"'

    def _object(self, schema: Schema) -> str:
        if is_open(schema):
            member = self._rules.rule(f'{self._rules.terminal(_KEY)} ":" {self._value({})}')
            return f'"{{" ({member} ("," {member})*)? "}}"'
        items = [
            (self._rules.rule(f"{lark_literal(key + ':')} {self._value(one)}"), is_required)
            for key, (one, is_required) in described(schema).items()
        ]
        return f'"{{" {listed(self._rules, items, ",")} "}}"'

    def _literal(self, value: Json) -> str:
        """A value as Gemma writes it."""
        return self._dialect.lark(_written(value, self._quote))


def _written(value: Json, quote: str) -> str:
    match value:
        case str():
            return f"{quote}{value}{quote}"
        case list():
            return f"[{','.join(_written(one, quote) for one in value)}]"
        case Mapping():
            return f"{{{','.join(f'{key}:{_written(one, quote)}' for key, one in value.items())}}}"
        case _:
            return json.dumps(value)
