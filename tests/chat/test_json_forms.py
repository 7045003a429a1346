"""Thirty bounded schemas: whatever a mask lets through is JSON that fits."""

import json
from typing import Any

import jsonschema
import pytest

from nexa_runtime.chat.constraint import ConstraintCompiler
from nexa_runtime.chat.grammar import GrammarKind, GrammarSource
from nexa_runtime.llama import Model, TokenMask
from tests.chat.walks import feed, record, walk

STRING = {"type": "string", "maxLength": 8}
DIGIT = {"type": "integer", "minimum": 0, "maximum": 9}


def items(schema: dict[str, Any], low: int, high: int) -> dict[str, Any]:
    return {"type": "array", "items": schema, "minItems": low, "maxItems": high}


def tree(levels: int) -> dict[str, Any]:
    """A recursive schema whose depth is bounded by definitions that name one another."""
    nodes: dict[str, Any] = {
        f"n{n}": record(v=DIGIT, c=items({"$ref": f"#/$defs/n{n + 1}"}, 0, 2)) for n in range(levels)
    }
    return {"$ref": "#/$defs/n0", "$defs": {**nodes, f"n{levels}": {"type": "null"}}}


SCHEMAS: dict[str, dict[str, Any]] = {
    "one text": record(name=STRING),
    "lengths": record(word={"type": "string", "minLength": 3, "maxLength": 5}),
    "a range": record(age={"type": "integer", "minimum": 0, "maximum": 120}),
    "a negative range": record(n={"type": "integer", "minimum": -1005, "maximum": -7}),
    "exclusive bounds": record(n={"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 7}),
    "a range of numbers": record(n={"type": "number", "minimum": 0.25, "maximum": 1.5}),
    "a multiple": record(n={"type": "integer", "minimum": 0, "maximum": 1000, "multipleOf": 35}),
    "a decimal multiple": record(n={"type": "number", "minimum": 0, "maximum": 10, "multipleOf": 0.25}),
    "booleans and null": record(a={"type": "boolean"}, b={"type": "null"}),
    "an enum of texts": record(color={"enum": ["red", "green", 'bl"ue', "größe", "日本"]}),
    "an enum of values": record(value={"enum": [1, "two", None, True, [3, 4], {"a": 5}]}),
    "constants": record(kind={"const": "fixed"}, other={"const": {"b": [1, 2.5, "x y"]}}),
    "a pattern": record(code={"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"}),
    "a pattern with choices": record(time={"type": "string", "pattern": "^([01][0-9]|2[0-3]):[0-5][0-9]$"}),
    "nested objects": record(outer=record(middle=record(inner=STRING))),
    "a list": record(values=items(DIGIT, 1, 4)),
    "a list of objects": record(points=items(record(x=DIGIT, y=DIGIT), 0, 3)),
    "lists of lists": record(grid=items(items({"type": "boolean"}, 2, 2), 2, 2)),
    "a tuple": {"type": "array", "prefixItems": [STRING, DIGIT], "items": False, "minItems": 2},
    "references": {
        **record(a={"$ref": "#/$defs/one"}, b={"$ref": "#/$defs/one"}),
        "$defs": {"one": record(c={"$ref": "#/$defs/two"}), "two": {"enum": ["x", "y"]}},
    },
    "any of two types": record(value={"anyOf": [{"type": "boolean"}, DIGIT]}),
    "any of two objects": {
        "anyOf": [record(kind={"const": "cat"}, lives=DIGIT), record(kind={"const": "dog"}, name=STRING)]
    },
    "one of two objects": {
        "oneOf": [record(kind={"const": "cat"}, lives=DIGIT), record(kind={"const": "dog"}, name=STRING)]
    },
    "a type or null": record(nick={"type": ["string", "null"], "maxLength": 8}),
    "optional properties": {
        "type": "object",
        "properties": {"a": STRING, "b": DIGIT, "c": {"type": "null"}},
        "required": ["b"],
        "additionalProperties": False,
    },
    "all of": {"allOf": [{"$ref": "#/$defs/base"}, {"properties": {"b": DIGIT}, "required": ["b"]}],
               "$defs": {"base": {"type": "object", "properties": {"a": STRING}, "required": ["a"]}},
               "maxProperties": 2},
    "a map": {
        "type": "object",
        "patternProperties": {"^[a-c]{1,3}$": DIGIT},
        "additionalProperties": False,
        "maxProperties": 2,
    },
    "formats": record(
        day={"type": "string", "format": "date"},
        id={"type": "string", "format": "uuid"},
        at={"type": "string", "format": "time"},
        ip={"type": "string", "format": "ipv4"},
    ),
    "a tree": tree(3),
    "a list at the top": items({"enum": ["a", "b", "c"]}, 1, 5),
    "an order": record(
        customer=record(name=STRING, vip={"type": "boolean"}),
        lines=items(record(sku={"type": "string", "pattern": "^[a-z]{3}[0-9]{2}$"}, count=DIGIT), 1, 3),
        note={"anyOf": [STRING, {"type": "null"}]},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def compiler(model: Model) -> ConstraintCompiler:
    return ConstraintCompiler(model.vocab)


def source(kind: GrammarKind, text: str, *, is_strict: bool = False) -> GrammarSource:
    return GrammarSource(kind, text, "form", is_strict)


def of_schema(schema: Any, *, is_strict: bool = False) -> GrammarSource:
    return source(GrammarKind.JSON_SCHEMA, json.dumps(schema), is_strict=is_strict)


def start(compiler: ConstraintCompiler, one: GrammarSource) -> TokenMask:
    return compiler.compile(one, "tenant").start()


def test_there_are_thirty_schemas() -> None:
    assert len(SCHEMAS) >= 30


@pytest.mark.parametrize("name", SCHEMAS)
def test_json_of_a_schema_is_valid_20_times_of_20(
    compiler: ConstraintCompiler, model: Model, name: str
) -> None:
    schema = SCHEMAS[name]
    checker = jsonschema.Draft202012Validator(
        schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    )
    one = of_schema(schema, is_strict=name == "all of")
    for seed in range(20):
        checker.validate(json.loads(walk(start(compiler, one), model.vocab, seed)))


def test_a_strict_schema_has_no_other_properties(compiler: ConstraintCompiler, model: Model) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"]}
    for seed in range(10):
        text = walk(start(compiler, of_schema(schema, is_strict=True)), model.vocab, seed)
        assert text == '{"a": 1}'


def test_a_recursive_schema_can_be_followed_to_any_depth(compiler: ConstraintCompiler, model: Model) -> None:
    schema = {"$ref": "#/$defs/n", "$defs": {"n": record(v=DIGIT, c=items({"$ref": "#/$defs/n"}, 0, 2))}}
    mask = start(compiler, of_schema(schema))
    depth = 12
    feed(mask, model.vocab, '{"v": 1, "c": [' * depth + '{"v": 2, "c": []}' + "]}" * depth)
    assert mask.is_complete
