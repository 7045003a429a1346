"""What a tool's schema says of its arguments, for those who do not write them as one JSON object.

Owns the way from a schema to properties, their types, and the cases in which a value fits. It writes no
grammar and reads no text: ``string_rules``, ``xml_calls``, ``dsml``, ``gemma_rules`` and ``pythonic`` do.

A case is a list of schemas without parts of their own, all of which a value must fit; a value fits a schema
if it fits one of its cases. What has too many cases, refers to itself or says ``not`` has none that are
known. Everything is looked at once per tool, and only so much of it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from nexa_runtime.chat.dialects.base import UnsupportedSchemaError
from nexa_runtime.chat.messages import Json, Tool
from nexa_runtime.chat.schema_walk import LISTS, MAPS, ONE, as_list, as_map, resolve
from nexa_runtime.errors import InvalidRequestError

ALL_TYPES = frozenset({"string", "number", "integer", "boolean", "null", "array", "object"})
STRING = frozenset({"string"})

Schema = Mapping[str, Json]
Case = tuple[Schema, ...]

NOTES = frozenset({
    "$anchor", "$comment", "$id", "$schema", "default", "deprecated", "description", "discriminator",
    "examples", "readOnly", "title", "writeOnly", "x-guidance",
})  # fmt: skip
"""Keywords that ask nothing of a value."""
DEFINITIONS = frozenset({"$defs", "definitions"})
_PARTS = frozenset({"$ref", "allOf", "anyOf", "oneOf"})
_UNTOLD = ("not", "if", "$dynamicRef", "$recursiveRef")
"""Keywords that no case tells of."""
_NO_PLAIN_OBJECT = (
    "anyOf", "oneOf", "enum", "const", "patternProperties", "propertyNames", "minProperties", "maxProperties",
    "dependencies", "dependentRequired", "dependentSchemas", *_UNTOLD,
)  # fmt: skip
_MAX_CASES = 256
_MAX_STEPS = 20_000
"""Most schemas and cases of one tool to look at: about 10 ms."""
_MAX_DEPTH = 48


class _UntoldError(Exception):
    """The cases of a schema are not known."""


@dataclass(frozen=True, slots=True)
class Value:
    """``types``: those that values may have. ``cases``: None if they are not known.

    ``is_free``: any value of these types fits.
    """

    types: frozenset[str]
    cases: tuple[Case, ...] | None
    is_free: bool


_UNTOLD_VALUE = Value(ALL_TYPES, None, is_free=False)


@dataclass(frozen=True, slots=True)
class Arguments:
    """Of an object: its properties in order, each with whether it must be there.

    ``extra``: where none is described, the schema of any; None: there are none.
    """

    properties: Mapping[str, tuple[Schema, bool]]
    extra: Schema | None = None


class ToolSchemas:
    """The schemas of one tool."""

    def __init__(self, tool: Tool) -> None:
        self.tool = tool
        self._root: dict[str, Json] = {**tool.parameters}
        self._cases: dict[int, tuple[Case, ...] | None] = {}
        self._kept: list[Json] = []
        """Keeps alive what ``_cases`` knows by its id."""
        self._num_steps = 0
        self._names: dict[str, str] = {}
        """``$ref`` → what the copies call it."""
        self._copies: dict[str, tuple[Json, list[str]]] = {}
        """``$ref`` → a copy of what it names, and to what that refers."""
        self._alone: dict[str, dict[str, Json]] = {}

    def arguments(self, *, is_exact: bool) -> Arguments:
        """What the tool's arguments are. Where that is not simple, they are anything; with ``is_exact``, it
        raises ``UnsupportedSchemaError``.
        """
        try:
            return self.object(self._root)
        except UnsupportedSchemaError:
            if is_exact:
                raise
            return Arguments({}, {})

    def object(self, schema: Schema) -> Arguments:
        """What an object of this schema has. Raises ``UnsupportedSchemaError``."""
        parts = list(self._object_parts(schema))
        wanted = [name for part in parts for name in as_list(part, "required") if isinstance(name, str)]
        described = dict.fromkeys(name for part in parts for name in as_map(part, "properties"))
        properties: dict[str, tuple[Schema, bool]] = {}
        # What must be there and is not described comes last.
        for name in [*described, *(one for one in wanted if one not in described)]:
            schemas = [
                as_map(part, "properties").get(name, part.get("additionalProperties", True)) for part in parts
            ]
            if name not in described:
                schemas = [one for one in schemas if one is not False]
            if False not in schemas:
                properties[name] = (_all_of(schemas), name in wanted)
            elif name in wanted:
                self.refuse("required", f"{name!r} is required and never valid")
        rests = [part.get("additionalProperties", part.get("unevaluatedProperties", True)) for part in parts]
        return Arguments(properties, None if described or wanted or False in rests else _all_of(rests))

    def refuse(self, keyword: str, reason: str) -> NoReturn:
        """Raise ``UnsupportedSchemaError``."""
        raise UnsupportedSchemaError(self.tool.name, keyword, reason)

    def value(self, schema: Schema) -> Value:
        """What is known of values of this schema."""
        try:
            cases = self._cases_of(schema if isinstance(schema, dict) else {**schema}, 0)
        except _UntoldError:
            return _UNTOLD_VALUE
        types, free = frozenset[str](), frozenset[str]()
        for case in cases:
            types |= types_of(case)
            free |= types_of(case) if all(part.keys() <= {"type"} for part in case) else frozenset()
        return Value(types, cases, types <= free) if types else _UNTOLD_VALUE

    def alone(self, schema: Schema) -> dict[str, Json]:
        """``schema`` so that it can stand by itself: with what it refers to, and without notes."""
        references: list[str] = []
        copy = self._copied_object(schema, references)
        if not references:
            return copy
        if (key := json.dumps(copy)) in self._alone:
            return self._alone[key]
        definitions: dict[str, Json] = {}
        while references:
            reference = references.pop()
            if (name := self._name(reference)) not in definitions:
                if reference not in self._copies:
                    further: list[str] = []
                    self._copies[reference] = self._copied(self.target(reference), further), further
                definitions[name], more = self._copies[reference]
                references += more
        self._alone[key] = {**copy, "$defs": definitions}
        return self._alone[key]

    def _object_parts(self, schema: Schema) -> Iterator[dict[str, Json]]:
        """The plain objects that an object's schema consists of."""
        waiting: list[Json] = [{**schema}]
        for _ in range(_MAX_CASES):
            if not waiting:
                return
            part = waiting.pop(0)
            if part is False:
                self.refuse("allOf", "nothing fits a part of it")
            if not isinstance(part, dict):
                continue
            if wrong := [key for key in _NO_PLAIN_OBJECT if key in part]:
                self.refuse(wrong[0], f"it has {wrong[0]!r} beside or instead of an object's properties")
            if isinstance(part.get("unevaluatedProperties"), dict):
                self.refuse("unevaluatedProperties", "its 'unevaluatedProperties' is a schema")
            yield part
            waiting += as_list(part, "allOf")
            if isinstance(reference := part.get("$ref"), str):
                waiting.append(self.target(reference))
        if waiting:
            self.refuse("$ref", "it refers to itself or has too many parts")

    def _cases_of(self, schema: Json, depth: int) -> tuple[Case, ...]:
        if not isinstance(schema, dict):
            return () if schema is False else ((),)
        if id(schema) not in self._cases:
            self._cases[id(schema)] = None  # what refers to itself is not known
            self._kept.append(schema)
            self._cases[id(schema)] = self._new_cases(schema, depth)
        cases = self._cases[id(schema)]
        if cases is None:
            raise _UntoldError
        return cases

    def _new_cases(self, schema: dict[str, Json], depth: int) -> tuple[Case, ...]:
        if depth > _MAX_DEPTH or any(key in schema for key in _UNTOLD):
            raise _UntoldError
        own = {key: one for key, one in schema.items() if key not in NOTES | DEFINITIONS | _PARTS}
        cases: list[Case] = [(own,) if own else ()]
        parts = list(as_list(schema, "allOf"))
        if isinstance(reference := schema.get("$ref"), str):
            parts.append(self.target(reference))
        for part in parts:
            cases = self._both(cases, self._cases_of(part, depth + 1))
        for key in ("anyOf", "oneOf"):
            if branches := as_list(schema, key):
                found: list[Case] = []
                for one in branches:
                    found += self._both([()], self._cases_of(one, depth + 1))
                cases = self._both(cases, found)
        return tuple(cases)

    def _both(self, left: Sequence[Case], right: Sequence[Case]) -> list[Case]:
        """The cases of what must fit one of either."""
        self._num_steps += 1 + len(left) * len(right)
        if len(left) * len(right) > _MAX_CASES or self._num_steps > _MAX_STEPS:
            raise _UntoldError
        return [one + other for one in left for other in right]

    def target(self, reference: str) -> Json:
        """What a ``$ref`` names; anything, if that is nowhere."""
        try:
            return resolve(self._root, reference)
        except InvalidRequestError:
            return True

    def _copied(self, node: Json, references: list[str]) -> Json:
        return self._copied_object(node, references) if isinstance(node, dict) else node

    def _copied_object(self, node: Schema, references: list[str]) -> dict[str, Json]:
        """A copy in which references lead to definitions by names of our own; adds them to ``references``."""
        copy: dict[str, Json] = {}
        for key, one in node.items():
            if key in NOTES | DEFINITIONS:
                continue
            if key == "$ref" and isinstance(one, str):
                references.append(one)
                copy[key] = f"#/$defs/{self._name(one)}"
            elif key in MAPS and isinstance(one, dict):
                copy[key] = {name: self._copied(part, references) for name, part in one.items()}
            elif key in LISTS and isinstance(one, list):
                copy[key] = [self._copied(part, references) for part in one]
            else:
                copy[key] = self._copied(one, references) if key in ONE else one
        return copy

    def _name(self, reference: str) -> str:
        return self._names.setdefault(reference, f"d{len(self._names)}")


def types_of(case: Case) -> frozenset[str]:
    """The types that values of a case may have."""
    allowed = ALL_TYPES
    for part in case:
        allowed &= _named(part.get("type"))
        if "const" in part:
            allowed &= {type_of(part["const"])}
        if isinstance(values := part.get("enum"), list):
            allowed &= {type_of(value) for value in values}
    return allowed


def type_of(value: object) -> str:
    """What JSON calls the type of a value."""
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "integer" if value.is_integer() else "number"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"


def _named(value: Json) -> frozenset[str]:
    names = value if isinstance(value, list) else [value]
    known = frozenset(name for name in names if isinstance(name, str)) & ALL_TYPES
    if "number" in known:
        known |= {"integer"}
    return known or ALL_TYPES


def _all_of(schemas: Sequence[Json]) -> Schema:
    """One schema for what fits all of them."""
    found = [one for one in schemas if isinstance(one, dict) and one]
    return found[0] if len(found) == 1 else {"allOf": [*found]} if found else {}
