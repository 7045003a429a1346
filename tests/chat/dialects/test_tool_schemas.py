"""What a tool's schema says of its arguments, whatever it is."""

import json
import re
from datetime import date, timedelta

import pytest

from nexa_runtime.chat.dialects import string_rules
from nexa_runtime.chat.dialects.base import Dialect, UnsupportedSchemaError
from nexa_runtime.chat.dialects.gemma import Gemma4
from nexa_runtime.chat.dialects.glm import Glm
from nexa_runtime.chat.dialects.pythonic import Pythonic
from nexa_runtime.chat.dialects.qwen3_coder import Qwen3Coder
from nexa_runtime.chat.dialects.string_rules import texts_of
from nexa_runtime.chat.dialects.tool_schemas import ALL_TYPES, STRING, Arguments, ToolSchemas
from nexa_runtime.chat.messages import Json, Tool
from tests.chat.dialects.transcripts import run


def schemas(parameters: dict[str, Json]) -> ToolSchemas:
    return ToolSchemas(Tool("put", None, parameters))


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
        ({"$ref": "#/$defs/a~1b%20", "$defs": {"a/b ": {"type": "string"}}}, STRING),
        ({"$ref": "#/definitions/a", "definitions": {"a": {"$ref": "#/definitions/a"}}}, ALL_TYPES),
        ({"$ref": "http://elsewhere"}, ALL_TYPES),
        ({"$ref": "#/$defs/a/b", "$defs": {"a": [1]}}, ALL_TYPES),
        ({"anyOf": [1, "x"]}, ALL_TYPES),
        ({"not": {"type": "string"}}, ALL_TYPES),
        ({"allOf": [{"type": "string"}, {"type": "null"}]}, ALL_TYPES),
    ],
)
def test_types(schema: dict[str, Json], wanted: set[str]) -> None:
    assert schemas(schema).value(schema).types == wanted


def test_which_values_are_free() -> None:
    wanted: list[tuple[dict[str, Json], bool]] = [
        ({}, True),
        ({"type": ["string", "null"], "description": "x"}, True),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, True),
        ({"type": ["string", "null"], "maxLength": 3}, False),
        ({"anyOf": [{"type": "string", "minLength": 1}, {"type": "null"}]}, False),
        ({"not": {}}, False),
    ]
    for schema, is_free in wanted:
        assert schemas(schema).value(schema).is_free is is_free, schema


def test_an_object_in_parts() -> None:
    parameters: dict[str, Json] = {
        "type": "object",
        "properties": {"a": {"type": "null"}, "b": True, "never": False},
        "allOf": [
            {"$ref": "#/$defs/part"},
            {
                "properties": {"a": {"title": "A"}, "b": {"type": "null"}},
                "additionalProperties": {"const": 1},
            },
        ],
        "required": ["b", "d", 1],
        "$defs": {"part": {"required": ["c"], "properties": {"c": {}}}},
    }
    assert schemas(parameters).arguments(is_exact=True).properties == {
        "a": ({"allOf": [{"type": "null"}, {"title": "A"}]}, False),
        "b": ({"type": "null"}, True),
        "c": ({"const": 1}, True),
        "d": ({"const": 1}, True),
    }
    assert schemas({"properties": [], "required": "a"}).object({}) == Arguments({}, {})
    assert schemas({}).object({"additionalProperties": False}) == Arguments({})
    assert schemas({}).object({"additionalProperties": {"const": 1}}).extra == {"const": 1}


def test_alone_a_schema_has_what_it_refers_to_and_nothing_else() -> None:
    parameters: dict[str, Json] = {
        "properties": {"a": {"$ref": "#/$defs/a"}, "b": {"type": "null", "description": "B"}},
        "$defs": {
            "a": {"items": {"$ref": "#/$defs/a"}, "const": {"$ref": "#/$defs/big"}},
            "big": {"type": "string"},
        },
    }
    one = schemas(parameters)
    assert one.alone({"type": "null", "description": "B"}) == {"type": "null"}
    alone = {"items": {"$ref": "#/$defs/d0"}, "const": {"$ref": "#/$defs/big"}}
    for _ in range(2):
        assert one.alone({"$ref": "#/$defs/a"}) == {"$ref": "#/$defs/d0", "$defs": {"d0": alone}}
    beside = one.alone({"properties": {"$ref": {"$ref": "#/properties/b"}}})
    assert beside == {"properties": {"$ref": {"$ref": "#/$defs/d1"}}, "$defs": {"d1": {"type": "null"}}}


def test_dates_exist() -> None:
    pattern = re.compile(string_rules._FORMATS["date"])
    days = [date(2023, 1, 1) + timedelta(days=index) for index in range(800)]
    assert all(pattern.fullmatch(one.isoformat()) for one in days)
    for year in (1900, 2000, 2100, 2400, 2023):
        for month in range(14):
            for day in range(34):
                text = f"{year:04}-{month:02}-{day:02}"
                try:
                    date.fromisoformat(text)
                except ValueError:
                    assert not pattern.fullmatch(text), text


def test_texts() -> None:
    wanted: list[tuple[dict[str, Json], int]] = [
        ({"type": "string"}, 1),
        ({"type": "null"}, 0),
        ({"anyOf": [{"const": "a"}, {"maxLength": 2}, {"type": "null"}]}, 2),
        ({"allOf": [{"enum": ["a", "b"]}, {"enum": ["c"]}]}, 0),
        ({"type": "string", "minLength": 3, "maxLength": 2}, 0),
        ({"enum": ["abc"], "maxLength": 2}, 0),
    ]
    for schema, count in wanted:
        texts = texts_of(schemas(schema).value(schema))
        assert texts is not None, schema
        assert len(texts) == count, schema
    untold: list[dict[str, Json]] = [
        {"type": "string", "pattern": "a(?=b)"},
        {"type": "string", "minLength": 2000},
        {"type": "string", "format": "ipv6"},
        {"type": "string", "not": {"const": "a"}},
    ]
    for schema in untold:
        assert texts_of(schemas(schema).value(schema)) is None


def test_a_schema_that_is_many() -> None:
    many: list[Json] = [{"$ref": "#/$defs/a"}] * 50
    chains: dict[str, Json] = {f"c{index}": {"$ref": f"#/$defs/c{index + 1}"} for index in range(190)}
    chains["c190"] = {"type": "string"}
    hostile: list[dict[str, Json]] = [
        {"a": {"anyOf": many, "allOf": many}},
        {"a": {"anyOf": [{"$ref": f"#/$defs/c{index}"} for index in range(190)]}, **chains},
        {"a": {"allOf": [{"anyOf": [{"maxLength": number} for number in range(200)]}] * 3}},
        {"a": {"$ref": "#/$defs/b0"}, **{f"b{i}": {"$ref": f"#/$defs/b{i + 1}"} for i in range(3000)}},
    ]
    for definitions in hostile:
        parameters: dict[str, Json] = {
            "type": "object",
            "properties": {f"p{index}": {"$ref": "#/$defs/a", "title": str(index)} for index in range(100)},
            "$defs": definitions,
        }
        tool = Tool("put", None, parameters)
        for kind in (Qwen3Coder, Pythonic, Gemma4):
            assert len(kind({}).grammar([tool], is_forced=True, is_parallel=False)) < 1_000_000
        call = "<tool_call><function=put><parameter=p1>x</parameter></function>" * 50
        assert len(run(Qwen3Coder({}), [call], tools=[tool]).calls) == 50


@pytest.mark.parametrize("kind", [Qwen3Coder, Glm, Pythonic, Gemma4])
def test_a_large_schema_is_no_larger_as_a_grammar(kind: type[Dialect]) -> None:
    definitions: dict[str, Json] = {
        f"d{index}": {"type": "array", "description": "x" * 200, "items": {"$ref": "#/$defs/d0"}}
        for index in range(200)
    }
    properties: dict[str, Json] = {
        f"p{index}": {"type": "integer", "minimum": index} if index else {"$ref": "#/$defs/d7"}
        for index in range(200)
    }
    parameters: dict[str, Json] = {"type": "object", "properties": properties, "$defs": definitions}
    grammar = kind({}).grammar([Tool("put", None, parameters)], is_forced=True, is_parallel=False)
    assert len(grammar) < 1.5 * len(json.dumps(parameters))


def test_what_is_too_large_is_refused() -> None:
    definitions: dict[str, Json] = {"a": {"enum": ["x" * 100 + str(index) for index in range(500)]}}
    properties: dict[str, Json] = {
        f"p{index}": {"type": "array", "items": {"$ref": "#/$defs/a"}, "minItems": index}
        for index in range(100)
    }
    parameters: dict[str, Json] = {"type": "object", "properties": properties, "$defs": definitions}
    with pytest.raises(UnsupportedSchemaError, match="too large together"):
        Qwen3Coder({}).grammar([Tool("put", None, parameters)], is_forced=False, is_parallel=False)
