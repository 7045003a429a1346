"""What a schema may be before it is compiled, and what closing one means."""

import json
from typing import Any

import jsonschema
import pytest

from nexa_runtime.chat.schema import (
    MAX_DEPTH,
    check_schema,
    closed,
    is_plain,
    num_repetitions,
    parse_schema,
)
from nexa_runtime.errors import InvalidRequestError


def lists(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


def chain(length: int) -> dict[str, Any]:
    definitions: dict[str, Any] = {f"d{n}": {"$ref": f"#/$defs/d{n + 1}"} for n in range(length)}
    return {"$ref": "#/$defs/d0", "$defs": {**definitions, f"d{length}": {"type": "null"}}}


REFUSED: dict[str, tuple[Any, str]] = {
    "a remote reference": ({"$ref": "https://example.org/a.json"}, "leads out of it"),
    "a reference to a file": ({"items": {"$ref": "other.json#/a"}}, "leads out of it"),
    "a reference to nothing": ({"$ref": "#/$defs/none"}, "names nothing in it"),
    "a reference to an anchor that is not there": ({"$ref": "#none"}, "names nothing in it"),
    "a reference to a number": ({"$ref": "#/a", "a": 1}, "names no schema"),
    "a bad reference behind a reference": (
        {"$ref": "#/x/y", "x": {"y": {"$ref": "http://a"}}},
        "leads out of it",
    ),
    "100 levels": (lists(100), "levels deep"),
    "a million levels": (lists(1_000_000), "levels deep"),
    "too many bytes": ({"description": "x" * 200_000}, "longer than 128 KiB"),
    "too many properties": ({"properties": {f"p{n}": {} for n in range(2_001)}}, "2000 properties"),
    "too many values": ({"enum": list(range(10_001))}, "10000 enum values"),
    "a list": ([], "neither an object nor a boolean"),
    "multiples that have much in common": (
        {"allOf": [{"multipleOf": 9973}, {"multipleOf": 0.9967}]},
        "multipleOf",
    ),
    "a bound beyond all": ({"type": "integer", "minimum": 10**30}, "63 bits"),
    "an infinite number": ({"maximum": float("inf")}, "cannot hold"),
    "half a character": ({"const": "\ud800"}, "cannot hold"),
    "a pattern of many": ({"type": "string", "pattern": "^(a{0,999}b){0,999}$"}, "repeats something"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_schema_out_of_bounds_is_refused_in_one_sentence(name: str) -> None:
    schema, reason = REFUSED[name]
    with pytest.raises(InvalidRequestError, match=reason) as caught:
        check_schema(schema, "tools[0].function.parameters")
    assert caught.value.param == "tools[0].function.parameters"
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "", '{"a": NaN}', "[" * 100_000, '{"const": 1' + "0" * 5000 + "}"])
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="not valid JSON"):
        parse_schema(text, "schema")


TAKEN: dict[str, Any] = {
    "true": True,
    "as deep as may be": lists(MAX_DEPTH - 1),
    "a reference to the whole": {"properties": {"next": {"$ref": "#"}}},
    "an escaped reference": {"$ref": "#/$defs/a~1b%20~0", "$defs": {"a/b ~": {}}},
    "a reference into a list": {"$ref": "#/anyOf/1", "anyOf": [{}, {"type": "null"}]},
    "an anchor": {"$ref": "#here", "$defs": {"a": {"$anchor": "here"}}},
    "a property named as a keyword": {"properties": {"$ref": {"type": "string"}, "enum": {}}},
    "a constant that looks like a reference": {"const": {"$ref": "http://a"}},
    "multiples of one kind": {"items": [{"multipleOf": 0.01}, {"multipleOf": 100_000}, {"multipleOf": 2.5}]},
    "a long chain": chain(2_000),
}


@pytest.mark.parametrize("name", TAKEN)
def test_a_schema_within_bounds_is_taken(name: str) -> None:
    assert parse_schema(json.dumps(TAKEN[name]), "schema") == TAKEN[name]


def test_what_may_take_long_to_compile_is_not_plain() -> None:
    point: dict[str, Any] = {"type": "object", "properties": {"x": {"type": "number"}}}
    assert is_plain({"anyOf": [point, {"type": "null"}], "description": "a point"})
    assert is_plain({"allOf": [{"$ref": "#/$defs/p"}], "$defs": {"p": point}})
    assert not is_plain({"allOf": [{"minimum": 1}, {"multipleOf": 3}]})
    assert not is_plain(
        {"properties": {"a": {"$ref": "#/$defs/p", "required": ["x"]}}, "$defs": {"p": point}}
    )
    assert not is_plain(chain(1_000))


@pytest.mark.parametrize(
    ("pattern", "most"),
    [
        ("abc", 1),
        ("a{3}", 3),
        ("(a{2,5}b){4}", 20),
        ("(a{2,5})b{40}", 40),
        ("((a{10}){10}){10}|x{7}", 1000),
        (r"\({9}[({8})]{7}\)", 9),
        ("a{99999999999999}", 999999999),
    ],
)
def test_repetitions_within_one_another_multiply(pattern: str, most: int) -> None:
    assert num_repetitions(pattern) == most


OPEN: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}}}


def is_valid(schema: Any, value: Any) -> bool:
    jsonschema.Draft202012Validator.check_schema(schema)
    return bool(jsonschema.Draft202012Validator(schema).is_valid(value))


@pytest.mark.parametrize(
    ("wrapped", "fits", "fits_not"),
    [
        (OPEN, {"a": 1}, {"a": 1, "z": 1}),
        ({"items": OPEN}, [{"a": 1}], [{"z": 1}]),
        ({"prefixItems": [OPEN, {"items": OPEN}]}, [{"a": 1}, [{}]], [{}, [{"z": 1}]]),
        ({"properties": {"b": OPEN}}, {"b": {"a": 1}}, {"b": {"z": 1}}),
        ({"anyOf": [OPEN, {"type": "null"}]}, {"a": 1}, {"z": 1}),
        ({"oneOf": [{"required": ["a"], **OPEN}, {"type": "string"}]}, {"a": 1}, {"a": 1, "z": 1}),
        ({"$ref": "#/$defs/o", "$defs": {"o": OPEN}}, {"a": 1}, {"z": 1}),
        ({"type": ["object", "null"]}, {}, {"z": 1}),
    ],
)
def test_objects_are_closed_wherever_they_stand(wrapped: Any, fits: Any, fits_not: Any) -> None:
    assert is_valid(wrapped, fits)
    assert is_valid(wrapped, fits_not)
    assert is_valid(closed(wrapped), fits)
    assert not is_valid(closed(wrapped), fits_not)


BASE: dict[str, Any] = {"type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"]}


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [{"$ref": "#/$defs/base"}, {"properties": {"name": {"type": "string"}}}]},
        {"allOf": [{"$ref": "#/$defs/base"}], "properties": {"name": {"type": "string"}}},
        {"$ref": "#/$defs/base", "properties": {"name": {"type": "string"}}},
        {
            "$ref": "#/$defs/base",
            "anyOf": [{"properties": {"name": {"type": "string"}}}, {"minProperties": 1}],
        },
    ],
)
def test_a_whole_of_several_schemas_is_closed_around_all_their_names(schema: dict[str, Any]) -> None:
    new = closed({**schema, "$defs": {"base": BASE}})
    assert is_valid(new, {"id": 1, "name": "x"})
    assert not is_valid(new, {"id": 1, "z": 1})
    assert not is_valid(new, {"id": "x"})
    assert not is_valid(new, {"id": 1, "name": 2}) or "anyOf" in schema


def test_a_definition_stays_closed_where_it_is_used_alone() -> None:
    whole: dict[str, Any] = {
        "allOf": [{"$ref": "#/$defs/base"}, {"properties": {"name": {"type": "string"}}}]
    }
    new = closed({"properties": {"a": whole, "b": {"$ref": "#/$defs/base"}}, "$defs": {"base": BASE}})
    assert is_valid(new, {"a": {"id": 1, "name": "x"}, "b": {"id": 1}})
    assert not is_valid(new, {"b": {"id": 1, "name": "x"}})


@pytest.mark.parametrize(
    "schema",
    [
        {**OPEN, "additionalProperties": {"type": "integer"}},
        {**OPEN, "additionalProperties": True},
        {**OPEN, "patternProperties": {"^z": {}}},
        {"allOf": [OPEN, {"additionalProperties": {"type": "integer"}}]},
    ],
)
def test_what_says_something_of_other_properties_stays_as_it_is(schema: dict[str, Any]) -> None:
    assert is_valid(closed(schema), {"z": 1})


def test_the_original_is_not_changed() -> None:
    schema: dict[str, Any] = {"$ref": "#/$defs/base", "properties": {"a": OPEN}, "$defs": {"base": BASE}}
    before = json.dumps(schema)
    closed(schema)
    assert json.dumps(schema) == before


def test_recursive_definitions_are_closed_too() -> None:
    tree: dict[str, Any] = {"type": "object", "properties": {"next": {"$ref": "#/$defs/tree"}}}
    part: dict[str, Any] = {"allOf": [{"$ref": "#/$defs/tree"}, {"properties": {"leaf": {"type": "null"}}}]}
    new = closed({**part, "$defs": {"tree": tree}})
    assert is_valid(new, {"leaf": None, "next": {"next": {}}})
    assert not is_valid(new, {"next": {"next": {"leaf": None}}})
