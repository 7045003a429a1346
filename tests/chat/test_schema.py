"""What a schema may be before it is compiled, and what closing one means."""

import json
import time
from types import MappingProxyType
from typing import Any

import jsonschema
import pytest

from nexa_runtime.chat.schema import (
    MAX_BYTES,
    MAX_DEPTH,
    check_schema,
    closed,
    is_plain,
    num_repetitions,
    parse_schema,
)
from nexa_runtime.chat.schema_walk import resolve
from nexa_runtime.errors import InvalidRequestError


def lists(levels: int, inner: Any = None) -> dict[str, Any]:
    schema: dict[str, Any] = inner or {"type": "string"}
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
    "multiples whose common one has millions of digits": (
        {"allOf": [{"multipleOf": float(f"{n}e300")} for n in range(10_001, 14_001)]},
        "multipleOf",
    ),
    "a multiple of very many digits": ({"multipleOf": 2**200}, "multipleOf"),
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
    "multiples far apart": {"items": [{"multipleOf": 1e-30}, {"multipleOf": 1e30}, {"multipleOf": 0.25}]},
    "a multiple that is none": {"multipleOf": True},
    "an open bracket": {"pattern": "[" * 100_000},
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
    assert not is_plain({"required": [f"p{n}" for n in range(2_001)]})


def test_many_small_schemas_are_plain_up_to_a_number_together() -> None:
    schemas: list[Any] = [{"properties": {f"p{n}": {"type": "null"} for n in range(199)}} for _ in range(10)]
    assert is_plain(*schemas)
    assert not is_plain(*schemas, {"type": "null"})


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
        ("[{9}", 1),
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


def test_a_reference_is_followed_however_it_is_spelled() -> None:
    schema: Any = {"$defs": {"a b": {"type": "null"}}, "anyOf": [True, {"$anchor": "here"}]}
    for reference in ("#/$defs/a b", "#/$defs/a%20b", "#/%24defs/%61%20b"):
        assert resolve(schema, reference) == {"type": "null"}
    assert resolve(schema, "#/anyOf/0") is True
    assert resolve(MappingProxyType(schema), "#") == schema
    assert resolve(schema, "#here") is True
    for reference in ("#/$defs/none", "#/anyOf/2", "#/anyOf", "other.json", ""):
        with pytest.raises(InvalidRequestError):
            resolve(schema, reference)


def test_a_whole_has_one_copy_of_a_part_however_often_it_is_named() -> None:
    spelled = [f"#/$defs/{name}" for name in ("base", "%62ase", "b%61se", "%62%61%73%65")]
    wholes: dict[str, Any] = {f"p{n}": {"allOf": [{"$ref": one}, {}]} for n, one in enumerate(spelled)}
    new: Any = closed({"properties": wholes, "$defs": {"base": BASE}})
    assert list(new["$defs"]) == ["base", "open0"]
    assert is_valid(new, {"p0": {"id": 1}})
    assert not is_valid(new, {"p3": {"id": 1, "z": 1}})


def test_an_anchor_is_a_part_of_a_whole_too() -> None:
    definitions: dict[str, Any] = {"base": {"$anchor": "here", **BASE}}
    new = closed({"allOf": [{"$ref": "#here"}, {"properties": {"name": True}}], "$defs": definitions})
    assert is_valid(new, {"id": 1, "name": "x"})
    assert not is_valid(new, {"id": "x"})
    assert not is_valid(new, {"id": 1, "z": 1})
    assert json.dumps(new).count("$anchor") == 1


def test_the_names_of_a_whole_keep_their_order() -> None:
    name: dict[str, Any] = {"properties": {"name": {}, "id": {}, "age": {}}}
    new: Any = closed({"allOf": [{"$ref": "#/$defs/base"}, name], "$defs": {"base": BASE}})
    assert list(new["properties"]) == ["id", "name", "age"]


def wholes(length: int, last: Any, part: Any) -> dict[str, Any]:
    """A chain of wholes, each of which is a part of the one before."""
    definitions: dict[str, Any] = {
        f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n + 1}"}, part(n)]} for n in range(length)
    }
    return {"properties": {"q": {"$ref": "#/$defs/a0"}}, "$defs": {**definitions, f"a{length}": last}}


LONGER = "with its objects closed, as strict, it is longer than 128 KiB"
MANY = "too many of its schemas"
COSTLY: dict[str, tuple[dict[str, Any], str | None]] = {
    "a chain": (wholes(2_400, {"type": "null"}, lambda n: {}), LONGER),
    "a shorter one": (wholes(1_000, {"type": "null"}, lambda n: {}), None),
    "a chain with a name": (wholes(2_400, {"properties": {"a": {}}}, lambda n: {}), LONGER),
    "a shorter one with a name": (wholes(700, {"properties": {"a": {}}}, lambda n: {}), None),
    "a chain with many names": (wholes(1_600, {}, lambda n: {"properties": {f"p{n}": {}}}), MANY),
    "a chain with all names at its end": (
        wholes(1_900, {"properties": {f"p{n}": {} for n in range(1_500)}}, lambda n: {}),
        LONGER,
    ),
    "copies within copies": (
        {
            "$defs": {"a": {"description": "x" * 20_000, **lists(40)}},
            "allOf": [{"$ref": "#/$defs/a" + "/items" * n} for n in range(40)],
        },
        None,
    ),
    "large copies within copies": (
        {
            "$defs": {"a": lists(80, {"description": "x" * 40_000})},
            "allOf": [{"$ref": "#/$defs/a" + "/items" * n} for n in range(80)],
        },
        LONGER,
    ),
}


@pytest.mark.parametrize("name", COSTLY)
def test_the_work_of_closing_is_bounded_and_so_is_what_it_makes(name: str) -> None:
    """0.1 s at most."""
    schema, reason = COSTLY[name]
    check_schema(schema, "schema")
    started = time.process_time()
    if reason is None:
        assert len(json.dumps(closed(schema, "schema"))) <= MAX_BYTES
    else:
        with pytest.raises(InvalidRequestError, match=reason) as caught:
            closed(schema, "schema")
        assert caught.value.param == "schema"
    assert time.process_time() - started < 1


def test_a_whole_that_is_its_own_part_cannot_be_closed() -> None:
    schema: Any = {"properties": {"a": {}}, "anyOf": [{"$ref": "#/anyOf/1"}, {"$ref": "#"}]}
    check_schema(schema, "schema")
    with pytest.raises(InvalidRequestError, match="is the whole again"):
        closed(schema, "schema")
