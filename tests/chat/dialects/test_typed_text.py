"""Bare text typed by a schema, and what schemas say of types, whatever they are."""

import time

import pytest

from nexa_runtime.chat.dialects.typed_text import ALL_TYPES, STRING, described, json_text, resolved, types
from nexa_runtime.chat.messages import Json


@pytest.mark.parametrize(
    ("schema", "wanted"),
    [
        ({}, ALL_TYPES),
        ({"type": "string"}, STRING),
        ({"type": "number"}, {"number", "integer"}),
        ({"type": ["string", "null"]}, {"string", "null"}),
        ({"type": "what"}, ALL_TYPES),
        ({"enum": ["a", "b"]}, STRING),
        ({"const": 1}, {"integer"}),
        ({"enum": ["a", None, True, 1.5, [], {}]}, ALL_TYPES - {"integer"}),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, {"string", "null"}),
        ({"oneOf": [{"enum": ["a"]}, {"type": "string"}]}, STRING),
        ({"allOf": [{"type": ["string", "null"]}, {"type": "string"}]}, STRING),
        ({"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"type": "string"}}}, STRING),
        ({"$ref": "#/definitions/a", "definitions": {"a": {"$ref": "#/definitions/a"}}}, ALL_TYPES),
        ({"$ref": "http://elsewhere"}, ALL_TYPES),
        ({"$ref": "#/$defs/a/b", "$defs": {"a": [1]}}, ALL_TYPES),
        ({"anyOf": [1, "x"]}, ALL_TYPES),
    ],
)
def test_types(schema: dict[str, Json], wanted: set[str]) -> None:
    assert types(schema) == wanted


def test_a_schema_that_is_many() -> None:
    many: list[Json] = [{"$ref": "#/$defs/a"}] * 50
    started = time.monotonic()
    assert types({"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": many, "allOf": many}}}) == ALL_TYPES
    assert time.monotonic() - started < 1


def test_what_is_beside_a_reference_counts_too() -> None:
    root: dict[str, Json] = {"$defs": {"a": {"type": "string", "maxLength": 3}}}
    assert resolved({"$ref": "#/$defs/a", "maxLength": 2}, root) == {**root, "type": "string", "maxLength": 2}


def test_properties() -> None:
    schema: dict[str, Json] = {"properties": {"a": {"type": "null"}, "b": True}, "required": ["b", "c", 1]}
    assert described(schema) == {"a": ({"type": "null"}, False), "b": ({}, True), "c": ({}, True)}
    assert described({"properties": [], "required": "a"}) == {}


@pytest.mark.parametrize(
    ("text", "allowed", "wanted"),
    [
        ("5", STRING, '"5"'),
        ("5", ALL_TYPES, "5"),
        (" 5\n", {"integer"}, "5"),
        ("5", {"string", "null"}, '"5"'),
        ("null", {"string", "null"}, "null"),
        ("None", {"string", "null"}, '"None"'),
        ("None", {"null"}, "null"),
        ("True", {"boolean"}, "true"),
        ("5.0", {"string", "integer"}, "5.0"),
        ("5.5", {"string", "integer"}, '"5.5"'),
        ("NaN", {"number"}, '"NaN"'),
        ('{"a": [1]}', {"object"}, '{"a": [1]}'),
        ("{'a': 1}", {"object"}, "\"{'a': 1}\""),
        ('a "b"\n\\ é\x00', ALL_TYPES, '"a \\"b\\"\\n\\\\ é\\u0000"'),
        ("[" * 100_000, {"array"}, f'"{"[" * 100_000}"'),
        ("1" * 10_000, {"integer"}, f'"{"1" * 10_000}"'),
    ],
)
def test_json_text(text: str, allowed: set[str], wanted: str) -> None:
    assert json_text(text, frozenset(allowed)) == wanted
